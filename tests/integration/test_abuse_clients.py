"""Local clients in crowds: thousands of connections, slow ones, deaf ones, and an entry that runs out of descriptors."""

from __future__ import annotations

import resource
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from harness import http_get, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fleet import Fleet
    from harness import Address, Daemon

CROWD = Path(__file__).with_name("crowd.py")
MANY = 5000
MiB = 1024 * 1024
A_CONNECTION = 16 * 1024  # bytes of memory that an idle one may cost its entry, and its exit
UPLOADERS = 200


class Crowd:
    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.connected = int(self._line())

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def open(self) -> int:
        """How many of them are still connected, as far as they know."""
        assert self._process.stdin is not None
        self._process.stdin.write("?\n")
        self._process.stdin.flush()
        return int(self._line())


@contextmanager
def crowd(address: Address, kind: str, count: int) -> Iterator[Crowd]:
    command = [sys.executable, str(CROWD), *map(str, address), kind, str(count)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Crowd(process)
        finally:
            process.kill()


@pytest.fixture(scope="module", autouse=True)
def _many_descriptors() -> Iterator[None]:
    """For the processes that this module starts."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 3 * MANY:
        pytest.skip(f"needs {3 * MANY} descriptors, the limit is {hard}: ulimit -Hn")
    resource.setrlimit(resource.RLIMIT_NOFILE, (3 * MANY, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture(scope="module")
def exit_node(fleet: Fleet, _many_descriptors: None) -> Daemon:
    backends = {"http": fleet.backend("http", "exit"), "echo": fleet.backend("echo")}
    return fleet.daemon("exit", backends=backends, services=("http",))


@pytest.fixture(scope="module")
def entry(fleet: Fleet, exit_node: Daemon) -> Daemon:
    """It serves half of a crowd itself: one link carries 4,096 tunnels."""
    entry = fleet.daemon("entry", peer=exit_node, backends={"echo": fleet.backend("echo", "own")}, services=("http", "echo"))
    wait_until(lambda: entry.offers() == {"exit", "entry"}, within=10, what="the entry sees the exit")
    return entry


def in_flight(entry: Daemon) -> int:
    return int(entry.status()["connections"]["now"])


def test_5000_connections(entry, exit_node, figure) -> None:
    """Whatever they do, they are carried, and a client more is served beside them."""
    memory = {node.name: node.rss_bytes() for node in (entry, exit_node)}
    with crowd(entry.entry("echo"), "idle", MANY - 1000) as idle, crowd(entry.entry("echo"), "slow", 1000) as slow:
        assert idle.connected + slow.connected == MANY
        wait_until(lambda: in_flight(entry) == MANY, within=60, what="the crowd is carried")
        assert http_get(entry.entry("http")).body == b"exit"
        grown = {node.name: node.rss_bytes() - memory[node.name] for node in (entry, exit_node)}
        figure("5,000 clients", ", ".join(f"{name} {size / MANY / 1024:.1f} KiB each" for name, size in grown.items()))
        assert max(grown.values()) < MANY * A_CONNECTION
        assert (idle.open(), slow.open()) == (MANY - 1000, 1000)
    wait_until(lambda: in_flight(entry) == 0, within=60, what="all are let go of")
    wait_until(lambda: max(entry.open_files(), exit_node.open_files()) < 100, within=30, what="and their descriptors")


def test_deaf_and_boundless_ones_cost_a_bounded_amount_of_memory(entry, exit_node, figure) -> None:
    memory = {node.name: node.rss_bytes() for node in (entry, exit_node)}
    with crowd(entry.entry("echo"), "deaf", UPLOADERS), crowd(entry.entry("echo"), "uploads", UPLOADERS) as boundless:
        wait_until(lambda: in_flight(entry) == 2 * UPLOADERS, within=30, what="they are carried")
        for _ in range(20):
            assert http_get(entry.entry("http")).body == b"exit"
        assert boundless.open() == UPLOADERS
        grown = {node.name: node.rss_bytes() - memory[node.name] for node in (entry, exit_node)}
        figure("400 deaf and boundless clients", ", ".join(f"{name} {size / MiB:+.0f} MiB" for name, size in grown.items()))
        assert max(grown.values()) < UPLOADERS * MiB / 2
    wait_until(lambda: in_flight(entry) == 0, within=30, what="all are let go of")


def test_an_entry_without_descriptors_serves_again_when_there_are_some(entry, fleet) -> None:
    """Its p2p port, its clients' ports and the API share a few descriptors, the last of which are not for clients."""
    resource.prlimit(entry.pid, resource.RLIMIT_NOFILE, (120, 120))
    lines = len(entry.log().splitlines())
    with crowd(entry.entry("echo"), "idle", 400):
        wait_until(lambda: "no descriptor left for a client" in entry.log(), within=10, what="it says so")
        wait_until(lambda: entry.open_files() >= 100, within=10, what="all that are for clients are taken")
        assert in_flight(entry) > 0, "the API is there for its owner"
    wait_until(lambda: _serves(entry), within=20, what="it serves again")
    wait_until(lambda: in_flight(entry) == 0, within=20, what="and is rid of the crowd")
    said = [line for line in entry.log().splitlines()[lines:] if "no descriptor left" in line]
    assert len(said) <= 4


def _serves(entry: Daemon) -> bool:
    try:
        return http_get(entry.entry("http"), timeout=5).body == b"exit"
    except OSError:
        return False
