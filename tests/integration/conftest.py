"""Fixtures of the integration tests, and the reports that a failure or a measurement leaves."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from fleet import Fleet
from harness import Daemon

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HERE = Path(__file__).parent
# Whole files are handed out: one of a minute that comes last would be waited for.
LONGEST_FIRST = (
    "test_three_nodes", "test_abuse_dials", "test_abuse_member", "test_failures", "test_rotation_attacks",
    "test_abuse_outsiders", "test_paths", "test_abuse_more_outsiders", "test_without_owner", "test_abuse_links",
    "test_mixed_versions", "test_rotate_and_ban", "test_protocols",
)  # fmt: skip

_fleets: list[Fleet] = []  # alive now


@pytest.hookimpl(tryfirst=True)  # before -m looks at the markers
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.integration)
    rank = {name: number for number, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))


@pytest.fixture(scope="session", autouse=True)
def _daemons_of(request: pytest.FixtureRequest) -> None:
    Daemon.folder = request.config.getoption("--daemons")


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """One network for a module's tests. What went wrong in it or was left behind fails the module's last test."""
    fleet = Fleet(tmp_path_factory.mktemp("fleet"))
    _fleets.append(fleet)
    try:
        yield fleet
    finally:
        wrong = fleet.close()
        _fleets.remove(fleet)
    assert not wrong, "\n".join(wrong)


@pytest.fixture
def figure(record_property: Callable[[str, object], None]) -> Callable[[str, str], None]:
    """Reports a measured value; they are printed together at the end of the run, whichever process ran the test."""
    return lambda what, value: record_property(f"figure: {what}", value)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> object:
    report = yield
    if report.failed:
        for fleet in _fleets:
            for process in fleet.processes:
                if tail := process.log_tail():
                    report.sections.append((f"log of {process.name}", tail))
    return report
