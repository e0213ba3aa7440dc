"""The methods by which two ends of a byte path talk: a client's socket, a tunnel, and any end in between.

client's socket                         tunnel
read: data = recv(other.room())    ->   send(data)       the tunnel's turn to buffer
read stops at room() == 0          <-   other.resume()   the tunnel has room again
...                                ->   taken(n)         n bytes that the tunnel brought went to the client
"""

from __future__ import annotations

from typing import Protocol


class Duplex(Protocol):
    """One end of a byte path. Two ends that are joined hold each other as `other` and call only these methods."""

    def room(self) -> int:
        """Bytes this end takes right now; 0 means wait for `other.resume()`."""

    def send(self, data: bytes | memoryview) -> None:
        """Take `data`, at most `room()` bytes; a memoryview is only valid during the call."""

    def send_eof(self) -> None:
        """Nothing follows in this direction; the reverse direction goes on. Idempotent."""

    def abort(self, reason: str) -> None:
        """The caller broke and is closed: reset this end. Idempotent. Whatever this end calls back, the caller ignores."""

    def taken(self, n: int) -> None:
        """`n` bytes that this end delivered have left the machine's buffers: give credit for more."""

    def resume(self) -> None:
        """The caller has room again."""


class Joinable(Duplex, Protocol):
    """An end that passes on all that it receives, to the present `other`."""

    other: Duplex


class NullDuplex:
    """A Duplex in place of none: it takes nothing and calls nothing. A base for ends that need few of the methods."""

    __slots__ = ()

    def room(self) -> int:
        return 0

    def send(self, data: bytes | memoryview) -> None: ...
    def send_eof(self) -> None: ...
    def abort(self, reason: str) -> None: ...
    def taken(self, n: int) -> None: ...
    def resume(self) -> None: ...


def join(a: Joinable, b: Joinable) -> None:
    """Join two ends: the bytes that one receives go to the other."""
    a.other = b
    b.other = a
