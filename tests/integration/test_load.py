"""Real daemons, each an entry: nobody is over capacity, all wait in order, an exit sends back what it has too much of."""

from __future__ import annotations

import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from harness import Server, federation, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from fleet import Fleet
    from harness import Address, Daemon

HOLD_S = 0.3
APART_S = 0.01  # of clients: so that "in order" means something


class Counting:
    """A server that takes HOLD_S for a line, in this process, and knows how many it had at once and in which order."""

    def __init__(self, name: str, directory: Path) -> None:
        self.name = name
        self.now = self.most = 0
        self.began: list[tuple[float, str]] = []
        self.hold = threading.Event()
        self.hold_s = HOLD_S
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.server = Server(f"counting-{name}", directory / f"counting-{name}", [], {})
        self.server.address = self._listener.getsockname()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        with sock:
            line = sock.recv(64).decode().strip()
            if not line:  # a health check
                return
            with self._lock:
                self.now += 1
                self.most = max(self.most, self.now)
                self.began.append((time.monotonic(), line))
            self.hold.wait(self.hold_s)
            with self._lock:
                self.now -= 1
            sock.sendall(self.name.encode())

    def forget(self) -> None:
        self.most = 0
        self.began = []

    def close(self) -> None:
        self.hold.set()
        self._listener.close()


@pytest.fixture
def counting(fleet: Fleet) -> Iterator[Any]:
    made: list[Counting] = []

    def make(name: str) -> Counting:
        made.append(Counting(name, fleet.directory))
        return made[-1]

    yield make
    for one in made:
        one.close()


def ask(entry: Address, what: str) -> str:
    with socket.create_connection(entry, timeout=30) as sock:
        sock.sendall(f"{what}\n".encode())
        return sock.recv(64).decode()


def wait_whole(daemons: list[Daemon], offering: int) -> None:
    for daemon in daemons:
        wait_until(lambda d=daemon: len(d.offers()) == offering, within=30, what=f"{daemon.name} reaches everybody")


def in_flight(daemons: list[Daemon]) -> list[int]:
    return [row["in_flight"] for daemon in daemons for row in daemon.peers()] + [
        daemon.status()["connections"]["now"] for daemon in daemons
    ]


def test_nobody_is_over_capacity_and_all_wait_in_order(fleet: Fleet, counting: Any) -> None:
    """Two services on two machines of 2 and 8 at once; all clients at one entry, then at three."""
    small, big = counting("small"), counting("big")
    options = ("--hold", "30", "--log-level", "warning", "--no-detect")
    services = ("default", "other")
    both = [{name: one.server for name in services} for one in (small, big)]
    first = fleet.daemon("small", *options, "--capacity", "2", backends=both[0], services=services)
    second = fleet.daemon("big", *options, "--capacity", "8", backends=both[1], services=services, peer=first)
    third = fleet.daemon("entry", *options, services=services, peer=first)
    nodes = [first, second, third]
    wait_whole(nodes, 2)
    for entries, clients in (([third], 60), (nodes, 60)):
        small.forget()
        big.forget()
        with ThreadPoolExecutor(clients) as pool:
            answers = []
            for n in range(clients):
                entry = entries[n % len(entries)].entry(services[n // len(entries) % 2])
                answers.append(pool.submit(ask, entry, str(n)))
                time.sleep(APART_S)
            assert {answer.result() for answer in answers} == {"small", "big"}
        assert (small.most, big.most) == (2, 8)
        assert len(small.began + big.began) == clients
        if len(entries) == 1:
            rows = third.api("explain?last=500")["decisions"]
            again = {row["id"] for row in rows if row["sent_back"]}
            assert len({row["id"] for row in rows} - again) >= 2 + 8
            for service in services:  # who came first is served first
                order = [row["id"] for row in rows if row["service"] == service and row["id"] not in again]
                assert order == sorted(order)
    wait_until(lambda: not any(in_flight(nodes)), within=10, what="all counters are zero")


def test_an_exit_sends_back_and_explain_says_so(fleet: Fleet, counting: Any) -> None:
    """Two entries that see the same two idle exits ask the same one at the same moment."""
    exits = [counting("x"), counting("y")]
    options = ("--log-level", "warning", "--no-detect", "--replay", "never")
    nodes: list[Daemon] = []
    for name, one in (("x", exits[0]), ("y", exits[1]), ("a", None), ("b", None)):
        offer = {"backend": one.server} if one else {}
        vram = ("--vram", "8GB" if name == "x" else "4GB")
        nodes.append(fleet.daemon(name, *options, *vram, peer=nodes[0] if nodes else None, **offer))
    wait_whole(nodes, 2)
    a, b = nodes[2:]

    def both() -> bool:
        for one in exits:
            one.forget()
        with ThreadPoolExecutor(2) as pool:
            answers = [pool.submit(ask, daemon.entry(), "now") for daemon in (a, b)]
            assert sorted(answer.result() for answer in answers) == ["x", "y"]  # nobody waits for the other
        assert [one.most for one in exits] == [1, 1]
        return any(row["sent_back"] for daemon in (a, b) for row in daemon.api("explain?last=4")["decisions"])

    wait_until(both, within=60, what="two entries ask the same exit at once")
    teller = next(d for d in (a, b) if any(r["sent_back"] for r in d.api("explain?last=9")["decisions"]))
    told = federation("explain", "--last", "9", "--state-dir", str(teller.state_dir), home=fleet.directory).stdout
    assert "had 1, we believed 0: picked again" in told
    row = next(r for r in teller.api("explain?last=9")["decisions"] if r["sent_back"])
    assert (row["failed"], row["attempt"]) == (None, 1)
    status = teller.status()["connections"]
    assert (status["failed"], status["retried"]) == (0, 0)  # no failure, not even with --replay never


def test_a_stopped_exit_with_a_low_load_draws_nobody_once_it_is_suspect(fleet: Fleet, counting: Any) -> None:
    idle, busy = counting("idle"), counting("busy")
    options = ("--log-level", "warning", "--no-detect")
    first = fleet.daemon("idle", *options, backend=idle.server)
    second = fleet.daemon("busy", *options, backend=busy.server, peer=first)
    entry = fleet.daemon("third", *options, peer=first)
    wait_whole([first, second, entry], 2)
    busy.hold_s = 60.0
    with ThreadPoolExecutor(16) as pool:
        held = [pool.submit(ask, second.entry(), "held") for _ in range(8)]
        wait_until(lambda: busy.now + idle.now == 8, within=10, what="all are served")
        first.signal(signal.SIGSTOP)
        try:
            wait_until(lambda: entry.offers() == {"busy"}, within=15, what="the stopped one is suspect")
            idle.forget()
            busy.forget()
            busy.hold_s = 0.0
            began = time.monotonic()
            assert [ask(entry.entry(), "x") for _ in range(10)] == ["busy"] * 10
            assert time.monotonic() - began < 5.0
            assert not idle.began
        finally:
            first.signal(signal.SIGCONT)
            busy.hold.set()
            idle.hold.set()
        for answer in held:
            answer.result()
