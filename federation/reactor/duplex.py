"""The methods that two ends of a byte path call on each other: a client's socket, a tunnel, and any end in between.

client's socket                       tunnel
read: data = recv(other.writable())   ->   send(data)               the tunnel's turn to buffer
read stops at writable() == 0         <-   other.resume_writing()   the tunnel takes bytes again
...                                   ->   acknowledge(n)           n bytes that the tunnel brought went to the client
"""

from __future__ import annotations

from typing import Protocol


class Duplex(Protocol):
    """One end of a byte path. Two ends that are joined hold each other as `other` and call only these methods."""

    def writable(self) -> int:
        """Bytes that this end takes right now. After a 0 the caller waits until this end calls its `resume_writing()`."""

    def send(self, data: bytes | memoryview) -> None:
        """Take `data`, at most `writable()` bytes; a memoryview is only valid during the call."""

    def send_eof(self) -> None:
        """Nothing follows in this direction; the reverse direction goes on. Idempotent."""

    def abort(self, reason: str) -> None:
        """The caller broke and is closed: reset this end. Idempotent. Whatever this end calls back, the caller ignores."""

    def acknowledge(self, n: int) -> None:
        """The caller has passed on `n` bytes that this end delivered: they have left its buffers, so grant as many again."""

    def resume_writing(self) -> None:
        """The caller takes bytes again, after its `writable()` was 0."""


class Joinable(Duplex, Protocol):
    """An end that passes on all that it receives, to the present `other`."""

    other: Duplex

    @property
    def is_unheard(self) -> bool:
        """Whether it has ended, and surely nothing that was sent to it has arrived."""


class Keepable:
    """A Joinable that carries one request, and may leave its backend's connection to the next one."""

    __slots__ = ()

    keeps: bool  # else `keep` must not be called

    @property
    def is_unheard(self) -> bool:
        return False

    def keep(self, answered: int) -> None:
        """The request and its answer of so many bytes are over: the backend's connection is clean, as far as the caller
        has seen. The caller lets go of this end, which is gone."""
        raise NotImplementedError


class NullDuplex:
    """A Duplex in place of none: it takes nothing and calls nothing. A base for ends that need few of the methods."""

    __slots__ = ()

    def writable(self) -> int:
        return 0

    def send(self, data: bytes | memoryview) -> None: ...
    def send_eof(self) -> None: ...
    def abort(self, reason: str) -> None: ...
    def acknowledge(self, n: int) -> None: ...
    def resume_writing(self) -> None: ...


def join(a: Joinable, b: Joinable) -> None:
    """Join two ends: the bytes that one receives go to the other."""
    a.other = b
    b.other = a
