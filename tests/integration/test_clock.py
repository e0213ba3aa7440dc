"""Nodes whose wall clock is an hour off take part like any other."""

from __future__ import annotations

import itertools
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from harness import http_get, wait_until

if TYPE_CHECKING:
    from fleet import Fleet
    from harness import Daemon

NAMES = {"right", "ahead", "behind"}
FULL_CIRCLE_S = 15.0  # in which every node announces itself at least twice


def clock_off_by(offset: str) -> dict[str, str]:
    (library,) = Path("/usr/lib").glob("*/faketime/libfaketime.so.1")
    return {"LD_PRELOAD": str(library), "FAKETIME": offset, "FAKETIME_DONT_FAKE_MONOTONIC": "1", "NO_FAKE_STAT": "1"}


@pytest.fixture(scope="module")
def nodes(fleet: Fleet) -> dict[str, Daemon]:
    right = fleet.daemon("right", backend=fleet.backend("http", "right"))
    nodes = {"right": right}
    for name, offset in (("ahead", "+1h"), ("behind", "-1h")):
        backend = fleet.backend("http", name)
        nodes[name] = fleet.daemon(name, backend=backend, peer=right, environment=clock_off_by(offset), wait=False)
    for node in nodes.values():
        node.wait_ready()
    return nodes


@pytest.mark.parametrize(("offset", "seconds"), [("+1h", 3600), ("-1h", -3600)])
def test_the_clock_really_is_off(offset: str, seconds: int) -> None:
    command = [sys.executable, "-c", "import time; print(time.time())"]
    shown = subprocess.run(command, env=clock_off_by(offset), capture_output=True, text=True, check=True).stdout
    assert float(shown) - time.time() == pytest.approx(seconds, abs=10)


def test_they_are_seen_at_once(nodes) -> None:
    wait_until(lambda: all(node.sees() == NAMES for node in nodes.values()), within=2.0, what="all see all")


def test_they_stay_fresh_for_everybody(nodes) -> None:
    ages: dict[tuple[str, str], list[float]] = {}

    def announced_twice() -> bool:
        for node in nodes.values():
            for row in node.peers():
                assert row["online"], (node.name, row)
                assert 0 <= row["last_seen_age_s"] < FULL_CIRCLE_S, (node.name, row)
                if not row["self"]:
                    ages.setdefault((node.name, row["name"]), []).append(row["last_seen_age_s"])
        # An age that falls back is a new announcement.
        return all(sum(b < a for a, b in itertools.pairwise(seen)) >= 2 for seen in ages.values())

    wait_until(announced_twice, within=2 * FULL_CIRCLE_S, what="two announcements of every node at every node")


@pytest.mark.parametrize("entry", sorted(NAMES))
def test_they_serve_and_are_served(nodes, entry: str) -> None:
    served = Counter(http_get(nodes[entry].entry()).body.decode() for _ in range(60))
    assert set(served) == NAMES
    assert all(15 <= count <= 26 for count in served.values()), served
