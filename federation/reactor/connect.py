"""A non-blocking connect to a local server, on the reactor: a connection costs no task and, mostly, no turn of the set."""

from __future__ import annotations

import errno
import os
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from federation.reactor import fdlimit
from federation.reactor.loop import WRITE, Reactor, Timer
from federation.reactor.sockets import NO_LINGER

if TYPE_CHECKING:
    from collections.abc import Callable

CONNECT_TIMEOUT_S = 2.0  # below the entry's default open timeout of 3 s, so the entry hears the reason
FULL_QUEUE_S = 0.01  # a Unix server's queue of clients is full, and no event tells of room in it
_NONBLOCK = getattr(socket, "SOCK_NONBLOCK", 0)  # saves Linux a system call a connection


class Connect:
    """A non-blocking connect.

    `done(sock, reason)` is called once, with None for `sock` if it failed; never before the constructor has returned,
    and not after `cancel`. A server that has accepted by then hears a reset: an EOF would say that an empty request was all.
    """

    __slots__ = ("_done", "_is_over", "_reactor", "_sock", "_timer")

    def __init__(
        self,
        reactor: Reactor,
        target: tuple[int, Any],
        done: Callable[[socket.SocketType | None, str], None],
    ) -> None:
        self._reactor = reactor
        self._done = done
        self._is_over = False
        self._timer: Timer | None = None
        self._sock: socket.SocketType | None = None
        try:
            self._sock = sock = socket.SocketType(target[0], socket.SOCK_STREAM | _NONBLOCK)
        except OSError:
            self._finish_soon(fdlimit.REASON)
            return
        if fdlimit.is_reserve(sock.fileno()):
            self._finish_soon(fdlimit.REASON)
            return
        if not _NONBLOCK:
            sock.setblocking(False)
        if target[0] != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connect(sock, target[1], reactor.now() + CONNECT_TIMEOUT_S)

    def _connect(self, sock: socket.SocketType, address: Any, until: float) -> None:
        reactor = self._reactor
        code = sock.connect_ex(address)
        if code == errno.EAGAIN and sock.family == socket.AF_UNIX and reactor.now() < until:
            self._timer = reactor.call_later(FULL_QUEUE_S, lambda: self._connect(sock, address, until))
        elif code not in (0, errno.EINPROGRESS):
            self._finish_soon(os.strerror(code))
        elif _is_connected(sock):  # a server on this machine has accepted by now
            reactor.flush_soon(self._succeed)
        else:
            self._timer = reactor.call_later(CONNECT_TIMEOUT_S, self._on_timeout)
            reactor.add(sock.fileno(), WRITE, self._on_events)

    def cancel(self) -> None:
        self._is_over = True
        sock, self._sock = self._sock, None
        if self._timer is not None:
            self._timer.cancel()
        if sock is not None:
            with suppress(OSError):  # the kernel gave it up already
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
            self._reactor.close(sock)

    def _on_events(self, _mask: int) -> None:
        assert self._sock is not None
        code = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            self._fail(os.strerror(code))
            return
        self._reactor.drop(self._sock.fileno())
        self._succeed()

    def _on_timeout(self) -> None:
        self._fail(f"no answer within {CONNECT_TIMEOUT_S:g} s")

    def _succeed(self) -> None:
        if not self._is_over:
            sock, self._sock = self._sock, None
            self.cancel()
            self._done(sock, "")

    def _finish_soon(self, reason: str) -> None:
        self._reactor.flush_soon(lambda: self._fail(reason))

    def _fail(self, reason: str) -> None:
        if not self._is_over:
            self.cancel()
            self._done(None, reason)


def _is_connected(sock: socket.SocketType) -> bool:
    try:
        sock.getpeername()
    except OSError:  # ENOTCONN: on its way, or refused; the next event tells
        return False
    return True
