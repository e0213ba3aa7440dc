"""A local TCP socket on the reactor, as a Duplex: join it to a tunnel, or to another socket, and the bytes flow.

EOF of one direction becomes shutdown(SHUT_WR) on the other side and the reverse direction goes on; a reset becomes a
reset (SO_LINGER 0). A reader that stops fills the kernel's buffer, then `_out` up to the other end's grant, then
that end waits. Nothing is dropped and nothing times out because a reader is slow.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

import trio

from federation.reactor import keepalive
from federation.reactor.duplex import NullDuplex
from federation.reactor.loop import BROKEN, ENDING, READ, WRITE, Reactor

if TYPE_CHECKING:
    from collections.abc import Callable

    from federation.reactor.duplex import Duplex

CHUNK = 65_512  # fills one DATA frame of the mux to the brim: a byte more would be a record of its own
READS_A_TURN = 4  # a quarter of a megabyte, then the other sockets have their turn
OUT_BUFFER = 256 * 1024  # between two local sockets; from a tunnel the window bounds it
QUICKACK: int | None = getattr(socket, "TCP_QUICKACK", None)  # Linux
LOOKS_A_TURN = 1000  # at connections whose machine may have gone: a millisecond
NO_LINGER = struct.pack("ii", 1, 0)  # of SO_LINGER: a close says RST, not FIN


_NO_OTHER = NullDuplex()  # the `other` of a closed end


def _noop(_end: SocketDuplex) -> None:
    """Replaces `on_close` after it has been called."""


async def watch(reactor: Reactor) -> None:
    """End the connections whose machine has gone. Until cancelled."""
    while True:
        await trio.sleep(keepalive.LOOK_EVERY_S)
        for number, end in enumerate(list(reactor.sockets), 1):
            reactor.guard(end.look_for_its_machine)
            if number % LOOKS_A_TURN == 0:
                await trio.lowlevel.checkpoint()


class Listener(Protocol):
    """Is told what passes by a socket, before it goes on, until the listener takes itself off."""

    def on_sent(self, data: bytes | memoryview) -> None: ...
    def on_received(self, data: bytes) -> None: ...
    def on_close(self) -> None: ...


class SocketDuplex:
    """`sock` is connected and non-blocking; this end owns it. `on_close(end)` is called once, when it is closed for
    good; `end.error` then says why if not in order. Counts what it `received` from the socket and `delivered` to it."""

    __slots__ = (
        "_eof_queued", "_eof_seen", "_eof_sent", "_fd", "_is_kept_alive", "_mask", "_on_close", "_out", "_out_size",
        "_paused", "_reactor", "closed", "delivered", "error", "listener", "other", "received", "sock", "was_aborted",
    )  # fmt: skip

    other: Duplex
    is_unheard = False  # it is a local one: what it took has arrived, as far as this node can know

    def __init__(self, reactor: Reactor, sock: socket.SocketType, on_close: Callable[[SocketDuplex], None]) -> None:
        self._reactor = reactor
        self.sock = sock
        self._fd = sock.fileno()
        self._on_close = on_close
        self._out: deque[bytes | memoryview] = deque()
        self._out_size = 0
        self._mask = -1  # not in the reactor yet
        self._paused = self._is_kept_alive = False
        self._eof_seen = self._eof_queued = self._eof_sent = False
        self.received = self.delivered = 0
        self.error: str | None = None
        self.was_aborted = False  # the other side aborted; with an error and without this, it was this socket that broke
        self.closed = False
        self.listener: Listener | None = None
        reactor.sockets.add(self)

    def start(self, *, read: bool = True) -> None:
        """Set `other` first. `read` at once: a client's first bytes are usually there. Bytes sent to it may still wait."""
        if not self.closed:
            self._update()
            if read:
                self._read()

    def hand_over(self, on_close: Callable[[SocketDuplex], None]) -> None:
        """Another owner takes it from here, and hears of its end."""
        self._on_close = on_close

    def is_silent(self) -> bool:
        """Whether nothing waits in either direction, and neither side has ended."""
        if self._out or self._eof_seen or self._eof_queued or self.closed:
            return False
        try:
            self.sock.recv(1, socket.MSG_PEEK)
        except (BlockingIOError, InterruptedError):
            return True
        except OSError:
            pass
        return False

    def acknowledge_now(self) -> None:
        """Have the kernel acknowledge what came. A server with Nagle's algorithm that writes an answer's head and its body
        apart waits for that; on a connection which is not new the kernel would take 40 ms."""
        if QUICKACK is not None and not self.closed:
            with suppress(OSError):
                self.sock.setsockopt(socket.IPPROTO_TCP, QUICKACK, 1)

    # Duplex: towards the socket

    def writable(self) -> int:
        return OUT_BUFFER - self._out_size

    def send(self, data: bytes | memoryview) -> None:
        if self.closed:
            return
        if self.listener is not None:
            self.listener.on_sent(data)
        if not self._out:
            try:
                sent = self.sock.send(data)
            except (BlockingIOError, InterruptedError):
                sent = 0
            except OSError as error:
                self._broken(error)
                return
            if sent:
                self.delivered += sent
                self.other.acknowledge(sent)
            if sent == len(data):
                return
            data = data[sent:]
        self._out.append(bytes(data))
        self._out_size += len(data)
        self._update()

    def send_eof(self) -> None:
        self._eof_queued = True
        if not self._out:
            self._shutdown()

    def abort(self, reason: str) -> None:
        if not self.closed:
            self.error = reason
            self.was_aborted = True
            self._reset()

    def leave(self) -> None:
        """Close behind the EOF, without waiting for the other side's; the kernel passes on what it has. Nothing happens
        while bytes wait here."""
        if self._eof_sent:
            self._close()

    def acknowledge(self, n: int) -> None:
        """Reads are paced by `other.writable()`."""

    def resume_writing(self) -> None:
        if self._paused and not self.closed:
            self._paused = False
            self._update()
            self._read()

    # The socket

    def _on_events(self, mask: int) -> None:
        if mask == READ and not self._paused:  # mostly
            self._read()
            return
        if mask & WRITE and self._out:
            self._write_queued()
        if self.closed:
            return
        if mask & READ and not self._paused:
            self._read(is_ending=bool(mask & ENDING))
        elif mask & BROKEN:
            self._check_broken()

    def _read(self, *, is_ending: bool = False) -> None:
        """`is_ending`: there is an EOF behind the bytes here, so that both make one trip."""
        for _ in range(READS_A_TURN):
            if self._eof_seen or self.closed:
                return
            wanted = self.other.writable()
            if wanted > CHUNK:
                wanted = CHUNK
            elif wanted <= 0:
                self._paused = True
                self._update()
                return
            try:
                data = self.sock.recv(wanted)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                self._broken(error)
                return
            if not data:
                self._eof_seen = True
                self.other.send_eof()
                self._finish()
                return
            self.received += len(data)
            if self.listener is not None:
                self.listener.on_received(data)
            self.other.send(data)
            if len(data) < wanted and not is_ending:  # the socket is empty; the next event tells of more
                return

    def _write_queued(self) -> None:
        while self._out:
            chunk = self._out[0]
            try:
                sent = self.sock.send(chunk)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                self._broken(error)
                return
            self._out_size -= sent
            self.delivered += sent
            if sent < len(chunk):
                self._out[0] = memoryview(chunk)[sent:]
            else:
                self._out.popleft()
            self.other.acknowledge(sent)
            if self.closed:
                return
        if self._eof_queued:
            self._shutdown()
        else:
            self._update()
        if not self.closed:
            self.other.resume_writing()

    def _shutdown(self) -> None:
        if self._eof_sent or self.closed:
            return
        self._eof_sent = True
        if self._eof_seen:
            self._close()  # which says FIN as well
            return
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError as error:
            self._broken(error)
            return
        self._finish()

    def _finish(self) -> None:
        if self._eof_seen and self._eof_sent:
            self._close()
        else:
            self._update()

    def look_for_its_machine(self) -> None:
        """End as at a reset if the machine at the other end has gone without a word. The first look has the kernel test the
        connection: most are over before, and cost no system call."""
        if self.closed:
            return
        if not self._is_kept_alive:
            self._is_kept_alive = True
            if self.sock.family != socket.AF_UNIX:
                keepalive.keep_alive(self.sock)
        if keepalive.has_vanished(self.sock):
            self._broken(OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT)))

    def _check_broken(self) -> None:
        """ERR or HUP while nothing is to be read or written here."""
        code = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            self._broken(OSError(code, os.strerror(code)))
        elif self._paused:
            self._reactor.drop(self._fd)  # both sides have finished, we still hold bytes: HUP would never cease
            self._mask = -1

    def _broken(self, error: OSError) -> None:
        """The socket is reset or gone: the other side hears a reset."""
        if self.closed:
            return
        self.error = error.strerror or type(error).__name__
        other = self.other
        self._reset()
        other.abort(self.error)

    def _reset(self) -> None:
        with suppress(OSError):  # the kernel gave it up already
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
        self._close()

    def _close(self) -> None:
        if self.closed:
            return
        self.closed = True
        self._reactor.sockets.discard(self)
        self._reactor.close(self.sock)
        self._out.clear()
        self._out_size = 0
        if self.listener is not None:
            self.listener.on_close()
        # Release the owners: thousands of connections a second must leave no cycles to the garbage collector.
        on_close, self._on_close, self.other = self._on_close, _noop, _NO_OTHER
        on_close(self)

    def _update(self) -> None:
        mask = (0 if self._paused or self._eof_seen else READ | ENDING) | (WRITE if self._out else 0)
        if mask == self._mask or self.closed:
            return
        if self._mask < 0:
            self._reactor.add(self._fd, mask, self._on_events)
        else:
            self._reactor.change(self._fd, mask)
        self._mask = mask
