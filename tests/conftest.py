"""What the process that prints the summary does, also when xdist's workers ran the tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [report for outcome in ("passed", "failed") for report in terminalreporter.getreports(outcome)]
    figures = [found for report in reports for found in report.user_properties if found[0].startswith("figure: ")]
    if figures:
        terminalreporter.section("figures")
        for what, value in figures:
            terminalreporter.write_line(f"{what.removeprefix('figure: ')}: {value}")
