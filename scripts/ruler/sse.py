"""Token streams: a server that sends each client a chunk every 20 ms, and a client that says how late they came.

Each chunk is 200 bytes and carries its number and the monotonic time of its making, which all processes of a machine
share. What a slow path holds back waits in the server with the time it was made, so that waiting counts as delay.
Clients are spread over the twenty 1 ms slots of a period: 200 clients are ten chunks every millisecond.

Both ends ask for a better priority, which root gets: elsewhere they would be other machines, and on two cores their
own wait for a core must not read as a delay of the path.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import select
import socket
import sys
import time
from array import array
from dataclasses import dataclass, field

from .stats import percentile

CHUNK_BYTES = 200
CHUNKS_PER_S = 50
SLOTS = 1000 // CHUNKS_PER_S
SLOT_NS = 1_000_000
WARM_CHUNKS = CHUNKS_PER_S // 2  # the first half second belongs to the connects, not to the streams
_PAD = b" " + b"x" * 164 + b"\n\n"
_MAX_BACKLOG = 1 << 20  # 100 s of one stream
_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n"


def make_chunk(number: int, made_ns: int) -> bytes:
    return b"data: %06d %020d" % (number, made_ns) + _PAD


def parse_chunk(data: bytes, at: int = 0) -> tuple[int, int]:
    return int(data[at + 6 : at + 12]), int(data[at + 13 : at + 33])


class _Stream:
    """The server's side of one client."""

    __slots__ = ("chunks", "number", "pending", "slot", "sock")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.chunks = 0
        self.number = 0
        self.slot = -1  # -1: has not asked yet
        self.pending = b""


class Server:
    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.listener.setblocking(False)
        self.port = self.listener.getsockname()[1]
        self._poll = select.epoll()
        self._poll.register(self.listener, select.EPOLLIN)
        self._poll.register(sys.stdin, select.EPOLLIN | select.EPOLLHUP)
        self._streams: dict[int, _Stream] = {}
        self._slots: list[set[_Stream]] = [set() for _ in range(SLOTS)]

    def run(self) -> None:
        """Until stdin ends."""
        slot = 0
        due = time.monotonic_ns()
        while True:
            idle = not any(self._slots)
            for handle, events in self._poll.poll(0.2 if idle else 0):
                if handle == self.listener.fileno():
                    self._accept()
                elif handle == sys.stdin.fileno():
                    return
                elif stream := self._streams.get(handle):
                    self._ready(stream, events)
            now = time.monotonic_ns()
            if idle:
                due = now
            elif now < due:
                time.sleep((due - now) / 1e9)
            else:
                for stream in tuple(self._slots[slot]):
                    self._emit(stream)
                slot = (slot + 1) % SLOTS
                due += SLOT_NS  # a late slot is followed at once by the next: the rate stays

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self.listener.accept()
            except BlockingIOError:
                return
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._streams[sock.fileno()] = _Stream(sock)
            self._poll.register(sock, select.EPOLLIN)

    def _ready(self, stream: _Stream, events: int) -> None:
        try:
            if events & (select.EPOLLHUP | select.EPOLLERR):
                self._drop(stream)
            elif events & select.EPOLLOUT and stream.pending:
                self._send(stream, stream.pending)
            elif events & select.EPOLLIN:
                request = stream.sock.recv(4096)  # loopback: a request line is never split
                if not request or stream.slot >= 0:
                    self._drop(stream)
                    return
                stream.chunks = int(request.split(b" ", 2)[1].rpartition(b"=")[2])  # GET /stream?chunks=N
                stream.slot = min(range(SLOTS), key=lambda slot: len(self._slots[slot]))
                self._slots[stream.slot].add(stream)
                self._send(stream, _HEAD)
        except (OSError, ValueError, IndexError):
            self._drop(stream)

    def _emit(self, stream: _Stream) -> None:
        chunk = make_chunk(stream.number, time.monotonic_ns())
        stream.number += 1
        try:
            if not stream.pending:
                self._send(stream, chunk)
            elif len(stream.pending) < _MAX_BACKLOG:
                stream.pending += chunk
            else:
                self._drop(stream)
                return
        except OSError:
            self._drop(stream)
            return
        if stream.number >= stream.chunks:
            self._slots[stream.slot].discard(stream)
            if not stream.pending:
                self._drop(stream)

    def _send(self, stream: _Stream, data: bytes) -> None:
        had = bool(stream.pending)
        try:
            stream.pending = data[stream.sock.send(data) :]
        except BlockingIOError:
            stream.pending = data
        if stream.pending and not had:
            self._poll.modify(stream.sock, select.EPOLLIN | select.EPOLLOUT)
        elif had and not stream.pending:
            self._poll.modify(stream.sock, select.EPOLLIN)
            if stream.number >= stream.chunks > 0:
                self._drop(stream)

    def _drop(self, stream: _Stream) -> None:
        if self._streams.pop(stream.sock.fileno(), None):
            self._slots[stream.slot].discard(stream)
            stream.sock.close()


@dataclass
class Client:
    sock: socket.socket
    data: bytes = b""
    in_body: bool = False
    number: int = 0
    first_ns: int = 0
    last_ns: int = 0
    failed: bool = False


@dataclass
class Load:
    """`clients` streams of `chunks` chunks each, opened over half a second."""

    port: int
    clients: int
    chunks: int
    delays_ns: array[int] = field(default_factory=lambda: array("q"))
    clients_open: dict[int, Client] = field(default_factory=dict)

    def run(self) -> dict[str, float]:
        self._poll = select.epoll()
        everyone: list[Client] = []
        errors = 0
        start = time.monotonic()
        for index in range(self.clients):
            self._serve_until(start + 0.5 * index / self.clients)
            try:
                sock = socket.create_connection(("127.0.0.1", self.port), timeout=5)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.sendall(b"GET /stream?chunks=%d HTTP/1.1\r\nHost: bench\r\n\r\n" % self.chunks)
            except OSError:
                errors += 1
                continue
            sock.setblocking(False)
            client = self.clients_open[sock.fileno()] = Client(sock)
            everyone.append(client)
            self._poll.register(sock, select.EPOLLIN)
        self._serve_until(time.monotonic() + self.chunks / CHUNKS_PER_S + 2, all_ended=True)
        return self.report(everyone, errors)

    def _serve_until(self, deadline: float, *, all_ended: bool = False) -> None:
        while (left := deadline - time.monotonic()) > 0 and (self.clients_open or not all_ended):
            for handle, _ in self._poll.poll(left):
                if client := self.clients_open.get(handle):
                    self.receive(client)

    def receive(self, client: Client) -> None:
        try:
            data = client.sock.recv(65536)
        except OSError:
            data = b""
        now = time.monotonic_ns()
        if not data:
            self._close(client)
            return
        if client.data:
            data = client.data + data
        at = 0
        if not client.in_body:
            at = data.find(b"\r\n\r\n") + 4
            if at < 4:
                client.data = data
                return
            client.in_body = True
            client.failed = not data.startswith(b"HTTP/1.1 200 ")
        while len(data) - at >= CHUNK_BYTES and not client.failed:
            try:
                number, made_ns = parse_chunk(data, at)
            except ValueError:
                client.failed = True
                break
            at += CHUNK_BYTES
            client.failed = number != client.number
            client.number += 1
            client.first_ns = client.first_ns or made_ns
            client.last_ns = made_ns
            if number >= WARM_CHUNKS:
                self.delays_ns.append(now - made_ns)
        client.data = data[at:]
        if client.failed:
            self._close(client)

    def _close(self, client: Client) -> None:
        del self.clients_open[client.sock.fileno()]
        client.sock.close()

    def report(self, everyone: list[Client], errors: int) -> dict[str, float]:
        full = [client for client in everyone if client.number == self.chunks and not client.failed]
        nominal_ns = (self.chunks - 1) * SLOTS * SLOT_NS
        ordered = sorted(self.delays_ns) or [0]
        return {
            "clients": self.clients,
            "full": len(full),
            "chunks": sum(client.number for client in everyone),
            "chunks_expected": self.clients * self.chunks,
            "errors": errors + len(everyone) - len(full),
            "p50_us": percentile(ordered, 0.50) / 1e3,
            "p99_us": percentile(ordered, 0.99) / 1e3,
            "max_us": ordered[-1] / 1e3,
            # How far the server itself fell behind its clock: where this is large, the machine was the limit.
            "nice": os.getpriority(os.PRIO_PROCESS, 0),
            "server_late_ms": max((client.last_ns - client.first_ns - nominal_ns for client in full), default=0) / 1e6,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("mode", choices=("serve", "load"))
    parser.add_argument("--port", type=int)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--chunks", type=int, default=250)
    given = parser.parse_args()
    with contextlib.suppress(PermissionError):
        os.nice(-10)
    gc.disable()  # a pause of the ruler must not read as a delay of the path
    if given.mode == "serve":
        server = Server()
        print(server.port, flush=True)
        server.run()
    else:
        print(json.dumps(Load(given.port, given.clients, given.chunks).run()))


if __name__ == "__main__":
    main()
