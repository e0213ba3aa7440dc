"""One member as many at once (horde.py): what none of them may do alone, all of them together may not do either."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from harness import wait_until
from load import Load

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fleet import Fleet
    from harness import Daemon

HORDE = Path(__file__).with_name("horde.py")
LONG = pytest.mark.skipif("FEDERATION_LONG_TESTS" not in os.environ, reason="takes long: set FEDERATION_LONG_TESTS=1")
MiB = 1024 * 1024
LONGEST_S = 0.4  # that one request in a hundred waits on two busy cores, with the horde's own work beside it
DEAF_MEMORY = 160 * MiB  # 30 queues of 1 MiB, rows, and what an allocator keeps
ROWS_MEMORY = 40 * MiB  # 16 MiB of rows, and what an allocator keeps; it was 120


class Attacked(NamedTuple):
    quiet_s: float  # p99
    attacked_s: float  # p99
    failed: int
    share: float  # of a core
    grown: int
    result: dict[str, Any]


@pytest.fixture
def nodes(fleet: Fleet, request: pytest.FixtureRequest) -> Iterator[tuple[Daemon, Daemon]]:
    """An exit, which is attacked, and an entry: each attack meets two that have not met another."""
    name = request.node.name.replace("[", "-").rstrip("]")[-24:]
    victim = fleet.daemon(f"v-{name}", backend=fleet.backend("http", f"v-{name}"), wait=True)
    entry = fleet.daemon(f"e-{name}", peer=victim)
    wait_until(lambda: entry.offers() == {victim.name}, within=20, what="the entry sees the exit")
    yield victim, entry
    assert (entry.stop(), victim.stop()) == (0, 0)


def attack(fleet: Fleet, nodes: tuple[Daemon, Daemon], mode: str, identities: int, figure) -> Attacked:
    victim, entry = nodes
    command = [sys.executable, str(HORDE), str(fleet.token_file), victim.multiaddr, mode, str(identities)]
    with Load(entry.entry(), clients=2, every_s=0.04) as load:
        wait_until(lambda: len(load.requests) >= 100, within=30, what="a quiet measurement")
        quiet = list(load.requests)
        memory, cpu_s = victim.rss_bytes(), victim.cpu_s()
        most = memory
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=victim.environment) as horde:
            while horde.poll() is None:
                most = max(most, victim.rss_bytes())
                time.sleep(0.05)
            said = horde.stdout.read()
        cpu_s, grown = victim.cpu_s() - cpu_s, max(most, victim.rss_bytes()) - memory
    assert horde.returncode == 0
    result: dict[str, Any] = json.loads(said)
    ends = result["began"] + result["lasted_s"]
    attacked = [request for request in load.requests if result["began"] <= request.started < ends]
    assert len(attacked) >= 50, "nothing was measured"
    seen = Attacked(
        p99(quiet),
        p99(attacked),
        sum(request.failed for request in load.requests),
        cpu_s / result["lasted_s"],
        grown,
        result,
    )
    figure(
        f"{identities} identities: {mode}",
        f"p99 {seen.quiet_s * 1e3:.0f} ms quiet, {seen.attacked_s * 1e3:.0f} ms attacked; {len(attacked)} requests of "
        f"others, {seen.failed} failed; {result['sent']} sent in {result['lasted_s']:.1f} s, {result['cut']} cut off; "
        f"the victim used {seen.share:.0%} of a core, memory {grown / MiB:+.0f} MiB",
    )
    return seen


def p99(requests: list[Any]) -> float:
    took = sorted(request.took_s for request in requests)
    return took[len(took) * 99 // 100]


@pytest.mark.parametrize(
    ("mode", "identities"), [pytest.param("gossip", 20, marks=LONG), ("sync", 40), pytest.param("grafts", 40, marks=LONG)]
)
def test_many_that_speak_at_one_moment_are_heard_one_by_one(mode, identities, fleet, nodes, figure) -> None:
    seen = attack(fleet, nodes, mode, identities, figure)
    assert seen.result["sent"] >= identities
    assert seen.failed == 0
    assert seen.attacked_s < LONGEST_S


def test_nodes_with_many_gpus_take_no_more_memory_than_others(fleet, nodes, figure) -> None:
    seen = attack(fleet, nodes, "heavy", 1, figure)
    assert seen.result["sent"] > 32  # of 65: on a busy machine the node ends the exchange in its midst
    assert seen.failed == 0
    assert seen.grown < ROWS_MEMORY


@LONG
def test_neighbours_that_do_not_read_have_a_node_hold_little(fleet, nodes, figure) -> None:
    seen = attack(fleet, nodes, "deaf", 30, figure)
    assert seen.result["sent"] > 1000
    assert seen.failed == 0
    assert seen.grown < DEAF_MEMORY
