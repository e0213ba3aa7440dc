"""`scripts/faults` runs these: it makes the sandbox (mount, network and process namespaces) that they need."""

from __future__ import annotations

import itertools
import json
import os
import sys
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "integration"))  # harness.py and fleet.py

from lab import Lab  # noqa: E402
from trial import Row, Trial, line, table  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

_rows: list[Row] = []
_numbers = itertools.count()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="shorter faults than those of docs/reliability.md")
    parser.addoption("--json", metavar="FILE", help="write the table there too")


def pytest_configure() -> None:
    if "FEDERATION_FAULTS_SANDBOX" not in os.environ:
        pytest.exit("the fault suite needs a sandbox of its own: run scripts/faults", returncode=2)


@pytest.hookimpl(tryfirst=True)  # before -m looks at the markers
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.faults)


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Lab]:
    lab = Lab(tmp_path_factory.mktemp("lab"), quick=request.config.getoption("--quick"))
    yield lab
    wrong = lab.close()
    assert not wrong, "\n".join(wrong)


@pytest.fixture
def trial(lab: Lab, pytestconfig: pytest.Config) -> Callable[..., AbstractContextManager[Trial]]:
    """`with trial(fault, *victims)`: traffic flows in the block; behind it the row goes into the table and is judged."""

    capture = pytestconfig.pluginmanager.get_plugin("capturemanager")
    reporter: pytest.TerminalReporter = pytestconfig.pluginmanager.get_plugin("terminalreporter")

    @contextmanager
    def begin(fault: str, *victims: str, lossy: bool = False) -> Iterator[Trial]:
        trial = Trial(lab, fault, *victims, number=next(_numbers), lossy=lossy)
        try:
            trial.begin()
            yield trial
        except BaseException:
            trial.abandon()
            raise
        row = trial.finish()
        _rows.append(row)
        with capture.global_and_fixture_disabled():
            reporter.ensure_newline()
            reporter.write_line(line(row))
        assert row.is_good, row
        assert trial.lossy or not row.served_twice, row

    return begin


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if not _rows:
        return
    terminalreporter.section("faults")
    terminalreporter.write_line(table(_rows))
    if path := config.getoption("--json"):
        Path(path).write_text(json.dumps([asdict(row) for row in _rows], indent=1) + "\n")
