"""Fixtures of several files, and what the process that prints the summary does, also when xdist's workers ran the tests."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.nodes import MakeNode

hypothesis.settings.register_profile("any machine", deadline=None)  # a busy one takes its time
hypothesis.settings.load_profile("any machine")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--daemons", metavar="DIR", default="",
        help="integration tests: daemons run the package in DIR, as scripts/compile makes it, and not the checkout's",
    )  # fmt: skip


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """No freezing of this process's objects, and no shouting by py-libp2p."""
    monkeypatch.setattr(gc, "freeze", lambda: None)
    threshold = gc.get_threshold()
    caplog.set_level("ERROR", "libp2p")
    yield
    gc.set_threshold(*threshold)


@pytest.fixture
def make(tmp_path: Path, quiet: None) -> MakeNode:
    """Makes nodes, by name; the same name is the same state directory."""
    from tests.support.nodes import node  # all of libp2p: not for those who need no node

    def make(name: str = "one", **fields: Any) -> object:
        return node(tmp_path / name, **{"name": name, **fields})

    return make


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [report for outcome in ("passed", "failed") for report in terminalreporter.getreports(outcome)]
    figures = [found for report in reports for found in report.user_properties if found[0].startswith("figure: ")]
    if figures:
        terminalreporter.section("figures")
        for what, value in figures:
            terminalreporter.write_line(f"{what.removeprefix('figure: ')}: {value}")
