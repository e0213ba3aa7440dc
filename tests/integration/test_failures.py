"""Peers and backends that die or hang under traffic: four clients make a new connection every 20 ms meanwhile.

Two entries see every failure at the same time. `eager` replays a request until the backend's first byte, so none may
fail. `careful` has the default: what a backend has received is not sent again, so only that may fail, and nothing may
be delivered twice.
"""

from __future__ import annotations

import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from harness import SLACK, http_get, wait_until
from load import Load, received

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fleet import Fleet
    from harness import Daemon, Server
    from load import Request

EXITS = ("v", "w", "x")
ANSWER_DELAY_S = 0.02  # so that requests are under way at any moment
SERVES_AGAIN_S = 3.0
AFTERMATH = 400  # requests through each entry after the failure; two seconds of them


class Network:
    def __init__(self, fleet: Fleet) -> None:
        self.backends = {name: fleet.backend("http", name, "--delay", str(ANSWER_DELAY_S)) for name in EXITS}
        first = fleet.daemon("v", backend=self.backends["v"])
        others = {n: fleet.daemon(n, backend=self.backends[n], peer=first, wait=False) for n in EXITS[1:]}
        self.exits = {"v": first, **others}
        self.eager = fleet.daemon("eager", "--replay", "first-byte", peer=first, wait=False)
        self.careful = fleet.daemon("careful", "--open-timeout", "500ms", peer=first, wait=False)
        for daemon in (*others.values(), *self.entries):
            daemon.wait_ready()
        self.wait_whole()
        # Who is killed sooner than that knows nobody when it is back, and waits until somebody tries it again.
        wait_until(lambda: (first.state_dir / "peers.json").exists(), within=5, what="v has saved whom it knows")

    @property
    def entries(self) -> list[Daemon]:
        return [self.eager, self.careful]

    def wait_whole(self) -> None:
        wait_until(lambda: all(e.offers() == set(EXITS) for e in self.entries), within=20, what="all exits are offered")

    @contextmanager
    def under_load(self, victim: str) -> Iterator[tuple[Load, Load]]:
        """Traffic through both entries; the block begins once the victim has its share of it."""
        with Load(self.eager.entry()) as eager, Load(self.careful.entry()) as careful:
            loads = (eager, careful)
            wait_until(lambda: all(load.answered_by(victim) >= 10 for load in loads), within=10, what="a steady load")
            yield loads


@pytest.fixture(scope="module")
def network(fleet: Fleet) -> Network:
    return Network(fleet)


@pytest.fixture(autouse=True)
def _whole(network) -> None:
    """What an earlier test broke is whole again."""
    network.wait_whole()


def wait_aftermath(loads: tuple[Load, Load], since: float) -> None:
    wait_until(lambda: all(load.finished_since(since) >= AFTERMATH for load in loads), within=30, what="the aftermath")


def wait_serving(loads: tuple[Load, Load], victim: str, since: float) -> float:
    """Until `victim` answers again through both entries; how long that took."""
    wait_until(
        lambda: all(load.answered_by(victim, since=since) for load in loads),
        within=SERVES_AGAIN_S,
        what=f"{victim} serves again",
    )
    return time.monotonic() - since


def unexplained(load: Load, backend: Server) -> list[Request]:
    """Failed requests of which the victim's backend had not a byte when they failed."""
    seen = received(backend)
    return [r for r in load.failed if not any(when <= r.finished for when in seen.get(r.target, []))]


def delivered_twice(load: Load, network: Network) -> list[str]:
    journals = [received(backend) for backend in network.backends.values()]
    targets = [request.target for request in load.requests]
    return [target for target in targets if sum(len(journal.get(target, [])) for journal in journals) > 1]


def summary(loads: tuple[Load, Load], since: float) -> str:
    def one(load: Load) -> str:
        slowest = max(request.took_s for request in load.requests if request.finished >= since)
        return f"{len(load.failed)} of {len(load.requests)} failed, slowest {slowest * 1e3:.0f} ms"

    return "eager {}; careful {}".format(*map(one, loads))


def test_peer_killed(network, figure) -> None:
    victim, backend = network.exits["v"], network.backends["v"]
    rows_before = {row["peer_id"]: row["name"] for row in network.eager.peers()}
    with network.under_load("v") as loads:
        killed = time.monotonic()
        victim.kill()
        wait_aftermath(loads, killed)
        victim.launch()
        back = victim.wait_ready()
        took = wait_serving(loads, "v", back)
    eager, careful = loads
    figure("peer killed", f"{summary(loads, killed)}; back after {took:.2f} s of being ready")
    assert eager.failed == []
    # Killed between OPENED and the backend's first byte, it takes along what the entry may not send again.
    assert [request for request in unexplained(careful, backend) if request.started > killed] == []
    assert delivered_twice(careful, network) == []
    # Nobody waits for the dead: it is out of selection within a second.
    late = [r for load in loads for r in load.requests if killed + 1.0 <= r.started < back and r.took_s > 1.0 * SLACK]
    assert late == []
    # The same row, and no ghost of its earlier life.
    assert {row["peer_id"]: row["name"] for row in network.eager.peers()} == rows_before


def test_peer_stopped(network, figure) -> None:
    victim, backend = network.exits["w"], network.backends["w"]
    with network.under_load("w") as loads:
        stopped = time.monotonic()
        victim.signal(signal.SIGSTOP)
        wait_aftermath(loads, stopped)
        victim.signal(signal.SIGCONT)
        took = wait_serving(loads, "w", time.monotonic())
    eager, careful = loads
    figure("peer stopped", f"{summary(loads, stopped)}; back after {took:.2f} s")
    assert eager.failed == []
    assert unexplained(careful, backend) == []
    assert delivered_twice(careful, network) == []


def test_backend_killed(network, figure) -> None:
    backend = network.backends["x"]
    with network.under_load("x") as loads:
        backend.kill()
        killed = time.monotonic()
        wait_aftermath(loads, killed)
        backend.start()
        took = wait_serving(loads, "x", time.monotonic())
    eager, careful = loads
    figure("backend killed", f"{summary(loads, killed)}; back after {took:.2f} s")
    assert eager.failed == []
    # What the kernel had received for it when it died, it could not write down any more: that had begun by then.
    assert [request for request in unexplained(careful, backend) if request.started > killed] == []
    assert delivered_twice(careful, network) == []


def test_peer_stopped_between_open_and_dial_delivers_nothing_afterwards(network) -> None:
    """The OPEN waits in the stopped peer's socket; the entry gives up and goes elsewhere; then the peer wakes up."""
    victim, backend = network.exits["v"], network.backends["v"]
    retried_before = network.careful.status()["connections"]["retried"]
    victim.signal(signal.SIGSTOP)
    targets = [f"/open-and-dial/{number}" for number in range(9)]
    with ThreadPoolExecutor(len(targets)) as pool:
        answers = list(pool.map(lambda target: http_get(network.careful.entry(), target), targets))
    assert {(answer.status, answer.body) for answer in answers} <= {(200, b"w"), (200, b"x")}
    # Some had been sent to the victim: else this test shows nothing.
    assert network.careful.status()["connections"]["retried"] > retried_before
    victim.signal(signal.SIGCONT)
    # Once the victim serves a later request of the same entry it has worked through all that waited for it.
    numbers = iter(range(10_000))
    wait_until(
        lambda: http_get(network.careful.entry(), f"/later/{next(numbers)}").body == b"v",
        within=10,
        what="the victim serves again",
    )
    assert [target for target in targets if target in received(backend)] == []


def test_stops_at_any_moment_never_deliver_twice(network) -> None:
    """Stopped and continued again and again under load, a peer is caught in every phase of an opening."""
    victim = network.exits["w"]
    with network.under_load("w") as loads:
        for _ in range(4):
            stopped = time.monotonic()
            victim.signal(signal.SIGSTOP)
            gave_up = stopped + 0.6  # careful's open timeout and a little
            wait_until(lambda gave_up=gave_up: loads[1].finished_since(gave_up) >= 5, within=10, what="careful went on")
            victim.signal(signal.SIGCONT)
            resumed = time.monotonic()
            wait_until(lambda t=resumed: loads[1].answered_by("w", since=t) >= 5, within=10, what="w serves again")
    eager, careful = loads
    assert eager.failed == []
    assert unexplained(careful, network.backends["w"]) == []
    assert delivered_twice(careful, network) == []
