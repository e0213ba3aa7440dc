"""The load of scripts/balance, and what it is compared with: one thread, sockets and a heap of times. Linux.

A request is a line with the seconds that it takes. A backend counts a request from that line to its answer, so a health
check is none. The all-knowing dispatcher and dice are computed, on the very arrivals that the daemons had.
"""

from __future__ import annotations

import fcntl
import heapq
import os
import selectors
import socket
import struct
import time
from array import array
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterator, Sequence

BACKLOG = 512
PATIENCE_S = 30.0  # behind the last arrival, for the last answer
FULL_READ = 65536
SIOCETHTOOL, ETHTOOL_STXCSUM = 0x8946, 0x17


class Arrival(NamedTuple):
    """`at`: seconds from the start; `entry`: number of the node."""

    at: float
    entry: int
    hold_s: float


def arrivals(nodes: int, per_node: float, hold_s: float, seconds: float, rng: random.Random) -> list[Arrival]:
    """Poisson, at any entry: `per_node` requests in flight a node on average."""
    found, at = [], 0.0
    while (at := at + rng.expovariate(nodes * per_node / hold_s)) < seconds:
        found.append(Arrival(at, rng.randrange(nodes), hold_s))
    return found


class Balance(NamedTuple):
    """Of one run: time-averaged most and mean load; their quotient is what counts."""

    most: float
    mean: float

    @property
    def ratio(self) -> float:
        return self.most / self.mean if self.mean else float("nan")


def balance_of(changes: Sequence[tuple[float, int, int]], nodes: int, begin: float, end: float) -> Balance:
    """`changes`: (when, node, +1 or -1), in order of time; averaged from `begin` to `end`."""
    load = [0] * nodes
    most = total = 0.0
    before = begin
    for at, node, by in [*changes, (end, 0, 0)]:
        if at > begin:
            span = min(at, end) - before
            most += max(load) * span
            total += sum(load) * span
            before = min(at, end)
        load[node] += by
        if at >= end:
            break
    return Balance(most / (end - begin), total / nodes / (end - begin))


def dispatched(given: Sequence[Arrival], nodes: int, choose: Callable[[list[int]], int]) -> list[tuple[float, int, int]]:
    """The changes of load where `choose(loads)` sends each arrival at once."""
    load, changes = [0] * nodes, list[tuple[float, int, int]]()
    ends: list[tuple[float, int]] = []
    for arrival in given:
        while ends and ends[0][0] <= arrival.at:
            at, node = heapq.heappop(ends)
            load[node] -= 1
            changes.append((at, node, -1))
        node = choose(load)
        load[node] += 1
        changes.append((arrival.at, node, 1))
        heapq.heappush(ends, (arrival.at + arrival.hold_s, node))
    return changes + [(at, node, -1) for at, node in sorted(ends)]


def all_knowing(rng: random.Random) -> Callable[[list[int]], int]:
    return lambda load: min(range(len(load)), key=lambda node: (load[node], rng.random()))


def dice(rng: random.Random) -> Callable[[list[int]], int]:
    return lambda load: rng.randrange(len(load))


@dataclass
class Outcome:
    changes: list[tuple[float, int, int]] = field(default_factory=list)  # as the backends saw them
    took_s: list[float] = field(default_factory=list)  # answered requests, without the time that they asked for
    most_at: list[int] = field(default_factory=list)  # by node: the most at once
    errors: int = 0
    began: float = 0.0  # of the loop's clock


class Field:
    """Backends and clients of all nodes. `inside(node)`: sockets made meanwhile are on that node's network."""

    def __init__(
        self, nodes: int, inside: Callable[[int], AbstractContextManager[None]] = lambda _node: nullcontext()
    ) -> None:
        self._inside = inside
        self._selector = selectors.DefaultSelector()
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._serial = 0
        self._open = 0  # requests of clients
        self._load = [0] * nodes
        self.outcome = Outcome(most_at=[0] * nodes)
        self.listeners = [self._listen(node) for node in range(nodes)]

    @property
    def ports(self) -> list[int]:
        return [listener.getsockname()[1] for listener in self.listeners]

    def _listen(self, node: int) -> socket.socket:
        with self._inside(node):
            listener = socket.create_server(("127.0.0.1", 0), backlog=BACKLOG)
        listener.setblocking(False)
        self._selector.register(listener, selectors.EVENT_READ, lambda: self._accept(listener, node))
        return listener

    def _at(self, when: float, what: Callable[[], None]) -> None:
        self._serial += 1
        heapq.heappush(self._due, (when, self._serial, what))

    def serve_while(self, goes_on: Callable[[], bool]) -> None:
        """Answer, and run what is due."""
        while goes_on():
            self._turn()

    def _turn(self) -> None:
        now = time.monotonic()
        while self._due and self._due[0][0] <= now:
            heapq.heappop(self._due)[2]()
        wait = min(0.1, max(0.0, self._due[0][0] - time.monotonic())) if self._due else 0.1
        for key, _ in self._selector.select(wait):
            key.data()

    # Backends

    def _accept(self, listener: socket.socket, node: int) -> None:
        for _ in range(BACKLOG):
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            sock.setblocking(False)
            self._selector.register(sock, selectors.EVENT_READ, lambda sock=sock: self._asked(sock, node))

    def _asked(self, sock: socket.socket, node: int) -> None:
        try:
            line = sock.recv(64)
        except BlockingIOError:
            return
        except OSError:
            line = b""
        self._selector.unregister(sock)
        if not line:  # a health check
            sock.close()
            return
        now = time.monotonic()
        self._changed(now, node, 1)
        self._at(now + float(line), lambda: self._answer(sock, node))

    def _answer(self, sock: socket.socket, node: int) -> None:
        self._changed(time.monotonic(), node, -1)
        try:
            sock.sendall(b"done\n")
        except OSError:
            self.outcome.errors += 1
        sock.close()

    def _changed(self, now: float, node: int, by: int) -> None:
        self._load[node] += by
        outcome = self.outcome
        outcome.most_at[node] = max(outcome.most_at[node], self._load[node])
        outcome.changes.append((now, node, by))

    # Clients

    def run(self, given: Sequence[Arrival], entries: Sequence[tuple[str, int]]) -> Outcome:
        """Send each arrival to its entry at its time; until all are answered."""
        self.outcome = Outcome(most_at=[0] * len(self._load), began=time.monotonic())
        began = self.outcome.began
        for arrival in given:
            self._at(began + arrival.at, lambda arrival=arrival: self._ask(arrival, entries[arrival.entry]))
        self._open = len(given)
        deadline = began + given[-1].at + given[-1].hold_s + PATIENCE_S
        self.serve_while(lambda: self._open > 0 and time.monotonic() < deadline)
        self.outcome.errors += self._open
        return self.outcome

    def _ask(self, arrival: Arrival, entry: tuple[str, int]) -> None:
        asked_at = time.monotonic()
        with self._inside(arrival.entry):
            sock = socket.socket()
        sock.setblocking(False)
        sock.connect_ex(entry)
        self._selector.register(sock, selectors.EVENT_WRITE, lambda: self._connected(sock, arrival, asked_at))

    def _connected(self, sock: socket.socket, arrival: Arrival, asked_at: float) -> None:
        try:
            sock.send(f"{arrival.hold_s}\n".encode())
        except OSError:
            self._over(sock, failed=True)
            return
        self._selector.modify(sock, selectors.EVENT_READ, lambda: self._answered(sock, arrival, asked_at))

    def _answered(self, sock: socket.socket, arrival: Arrival, asked_at: float) -> None:
        try:
            data = sock.recv(FULL_READ)
        except OSError:
            data = b""
        if data == b"done\n":
            self.outcome.took_s.append(time.monotonic() - asked_at - arrival.hold_s)
        self._over(sock, failed=data != b"done\n")

    def _over(self, sock: socket.socket, *, failed: bool) -> None:
        self.outcome.errors += failed
        self._open -= 1
        self._selector.unregister(sock)
        sock.close()

    def close(self) -> None:
        for listener in self.listeners:
            self._selector.unregister(listener)
            listener.close()
        self._selector.close()


def write_checksums(interface: str) -> None:
    """As on a wire. A virtual cable leaves them out unless told so, and frames that the hub passes on would be dropped."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        command = array("I", [ETHTOOL_STXCSUM, 0])
        request = struct.pack("16sP16x", interface.encode(), command.buffer_info()[0])
        fcntl.ioctl(sock, SIOCETHTOOL, request)


class Hub:
    """A switch in user space that holds each frame for a while: `run` in a process of its own.

    Kernels without netem are common in virtual machines. `ports`: names of interfaces of this namespace, one a machine.
    """

    def __init__(self, ports: Sequence[str], delay_s: float) -> None:
        self._delay_s = delay_s
        self._selector = selectors.DefaultSelector()
        self._sockets: list[socket.socket] = []
        self._where: dict[bytes, socket.socket] = {}  # hardware address -> port
        self._held: list[tuple[float, int, socket.socket, bytes]] = []
        self._serial = 0
        for port in ports:
            sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))  # ETH_P_ALL
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
            sock.bind((port, 0))
            sock.setblocking(False)
            self._sockets.append(sock)
            self._selector.register(sock, selectors.EVENT_READ, sock)

    def run(self) -> None:
        parent = os.getppid()
        while os.getppid() == parent:
            wait = max(0.0, self._held[0][0] - time.monotonic()) if self._held else 0.2
            for key, _ in self._selector.select(min(wait, 0.2)):
                self._take(key.data)
            now = time.monotonic()
            while self._held and self._held[0][0] <= now:
                _, _, out, frame = heapq.heappop(self._held)
                with suppress(OSError):  # full, or longer than the port takes: TCP sends it again
                    out.send(frame)

    def _take(self, sock: socket.socket) -> None:
        due = time.monotonic() + self._delay_s
        for frame in _frames(sock):
            self._where[frame[6:12]] = sock
            known = self._where.get(frame[:6])
            for out in self._sockets if known is None else [known]:
                if out is not sock:
                    self._serial += 1
                    heapq.heappush(self._held, (due, self._serial, out, frame))


def _frames(sock: socket.socket) -> Iterator[bytes]:
    for _ in range(64):
        try:
            frame, (_, _, kind, *_) = sock.recvfrom(FULL_READ)
        except OSError:
            return
        if kind != socket.PACKET_OUTGOING:
            yield frame


def summary(took_s: Sequence[float]) -> str:
    """What the way cost beside the request itself: median and p99 in ms."""
    ordered = sorted(took_s)
    return f"{median(ordered) * 1e3:.1f} / {ordered[int(0.99 * (len(ordered) - 1))] * 1e3:.1f}" if ordered else "-"
