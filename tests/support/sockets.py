"""Helpers for tests of what serves sockets: a reactor that counts, streams for the test's own side, resets."""

from __future__ import annotations

import errno
import gc
import os
import select
import socket
import struct
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio
import trio.testing

from federation.reactor.loop import Reactor
from tests.support.links import socket_pair

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from federation.reactor.loop import Handler

NO_LINGER = struct.pack("ii", 1, 0)


class CountingReactor(Reactor):
    """Counts the events that it hands out, and knows which descriptors it serves."""

    def __init__(self, *, use_epoll: bool | None = None) -> None:
        super().__init__(use_epoll=use_epoll)
        self.events = 0

    def add(self, fd: int, mask: int, handler: Handler) -> None:
        def counted(mask: int) -> None:
            self.events += 1
            handler(mask)

        super().add(fd, mask, counted)


@asynccontextmanager
async def running(reactor: Reactor) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        await nursery.start(reactor.run)
        yield
        nursery.cancel_scope.cancel()


async def quiet(*, seconds: float = 0.05) -> None:
    """Return once nothing has happened for `seconds`; a busy loop never lets this return."""
    with trio.fail_after(20):
        await trio.testing.wait_all_tasks_blocked(seconds)


def stream(sock: socket.socket) -> trio.SocketStream:
    """The test's side of a connection."""
    sock.setblocking(False)
    return trio.SocketStream(trio.socket.from_stdlib_socket(sock))


def small_buffers(*socks: socket.socket) -> None:
    """Little room in the kernel, so that a reader that stops is felt soon; more than a segment of loopback's 64 KiB."""
    for sock in socks:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)


def reset(sock: socket.socket | trio.SocketStream) -> None:
    """End the connection with RST."""
    if isinstance(sock, trio.SocketStream):
        sock.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
        sock.socket.close()
    else:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
        sock.close()


async def read_all(source: trio.SocketStream) -> bytes:
    """Until EOF."""
    data = bytearray()
    with trio.fail_after(20):
        async for chunk in source:
            data += chunk
    return bytes(data)


async def is_reset(source: trio.SocketStream) -> bool:
    """Read until the end: whether that is a reset, not an EOF."""
    try:
        await read_all(source)
    except trio.BrokenResourceError as error:
        assert isinstance(error.__cause__, OSError)
        assert error.__cause__.errno == errno.ECONNRESET
        return True
    return False


async def fill(sink: trio.SocketStream, data: bytes, *, until: Callable[[], bool]) -> int:
    """Send as much of `data` as goes until nobody takes any more and `until()`; how much that was."""
    sent = 0
    with trio.fail_after(20):
        while sent < len(data):
            try:
                sent += sink.socket._sock.send(data[sent : sent + 65536])  # type: ignore[attr-defined]
            except BlockingIOError:
                if until():
                    return sent
                await trio.sleep(0.001)
    raise AssertionError("all of it was taken: nobody stopped the sender")


async def events_while_idle(reactor: CountingReactor, *, seconds: float = 0.25) -> int:
    """How many events come in a while in which nobody does anything. The kernel's own timers may bring one or two."""
    before = reactor.events
    await trio.sleep(seconds)
    return reactor.events - before


class Listener:
    """A local server whose every step the test takes. Its kernel accepts by itself, up to the backlog."""

    def __init__(self, *, backlog: int = 16, listening: bool = True) -> None:
        self.sock = socket.socket()
        self.sock.bind(("127.0.0.1", 0))
        self.sock.setblocking(False)
        self.host, self.port = self.sock.getsockname()
        self._backlog = backlog
        self._queued: list[socket.socket] = []
        if listening:
            self.listen()

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"

    def listen(self) -> None:
        self.sock.listen(self._backlog)

    def clog(self) -> None:
        """Fill the queue: whoever connects from now on gets no answer. For a backlog of 0."""
        while True:
            sock = socket.socket()
            sock.setblocking(False)
            sock.connect_ex(self.sock.getsockname())
            self._queued.append(sock)
            poller = select.poll()
            poller.register(sock, select.POLLOUT)
            if not poller.poll(50):
                return

    async def accept(self) -> trio.SocketStream:
        with trio.fail_after(20):
            await trio.lowlevel.wait_readable(self.sock)
        return stream(self.sock.accept()[0])

    def waiting(self) -> int:
        """Connections that nobody has accepted; they are closed."""
        n = 0
        while True:
            try:
                self.sock.accept()[0].close()
            except BlockingIOError:
                return n
            n += 1

    def close(self) -> None:
        for sock in (self.sock, *self._queued):
            sock.close()

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_descriptors() -> int:
    gc.collect()  # what an earlier test has dropped is not counted
    return len(os.listdir("/dev/fd"))


__all__ = [
    "CountingReactor",
    "Listener",
    "events_while_idle",
    "fill",
    "is_reset",
    "open_descriptors",
    "quiet",
    "read_all",
    "reset",
    "running",
    "small_buffers",
    "socket_pair",
    "stream",
]
