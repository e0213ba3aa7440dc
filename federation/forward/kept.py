"""Idle connections of local HTTP servers, which an exit keeps for the next request of the entry that used them.

The exit parses no HTTP. An entry knows the framing, and says that the answer is over and how long it was (mux.py, KEEP); a
connection is kept if exactly as many bytes came from the backend, and none waits in it. It is for that entry alone: a member
that lies about it spoils its own answers, nobody else's.

    idle connection                      what becomes of it
    the backend closes it, or sends      closed at once
    KEEP_S went by                       closed, before the usual backend would
    backend down, or somewhere else      closed with all of that backend
    descriptors are short                all are closed
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from federation.reactor import fdlimit
from federation.reactor.duplex import NullDuplex

if TYPE_CHECKING:
    from collections.abc import Hashable

    from federation.reactor.loop import Reactor, Timer
    from federation.reactor.sockets import SocketDuplex

    Key = tuple[Hashable, str]  # a backend, and the peer id of an entry; empty: this node's own clients

# uvicorn (vLLM, SGLang), llama.cpp and Node's servers close a connection that is idle for 5 s. If the exit does it first, no
# request is sent into a connection that is being closed.
KEEP_S = 4.0
MOST_OF_ENTRY = 64  # idle at one backend
MOST = 512  # idle in all


class Kept:
    """All idle connections of this node's backends."""

    def __init__(self, reactor: Reactor) -> None:
        self._reactor = reactor
        self._idle: dict[Key, list[_Idle]] = {}  # of a backend, for an entry: the latest one last
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, backend: Hashable, entry_id: str, end: SocketDuplex) -> bool:
        """Keep a connection that has no other end; returns whether it is kept."""
        key = (backend, entry_id)
        idle = self._idle.get(key, ())
        if len(idle) >= MOST_OF_ENTRY or self._count >= MOST or fdlimit.is_reserve(end.sock.fileno()):
            return False
        if not end.is_silent():
            return False
        self._idle.setdefault(key, []).append(_Idle(self, key, end))
        self._count += 1
        return True

    def take(self, backend: Hashable, entry_id: str) -> SocketDuplex | None:
        """The connection that was used last: its backend still has it, most likely. Set its `other` now."""
        while idle := self._idle.get((backend, entry_id)):
            end = idle[-1].end
            if end.is_silent():
                idle[-1].forget()
                return end
            idle[-1].close()
        return None

    def has(self, end: SocketDuplex) -> bool:
        return isinstance(end.other, _Idle)

    def drop(self, backend: Hashable) -> None:
        self._close([key for key in self._idle if key[0] is backend])

    def drop_all(self) -> None:
        self._close(list(self._idle))

    def _close(self, keys: list[Key]) -> None:
        for key in keys:
            for idle in list(self._idle.get(key, ())):
                idle.close()

    def _forget(self, key: Key, one: _Idle) -> None:
        idle = self._idle[key]
        idle.remove(one)
        self._count -= 1
        if not idle:
            del self._idle[key]


class _Idle(NullDuplex):
    """The other end of an idle connection: bytes on it are nobody's."""

    __slots__ = ("_kept", "_key", "_timer", "end")

    def __init__(self, kept: Kept, key: Key, end: SocketDuplex) -> None:
        self.end = end
        self._kept = kept
        self._key = key
        self._timer: Timer | None = kept._reactor.call_later(KEEP_S, self.close)
        end.other = self
        end.hand_over(lambda _end: self.forget())
        end.resume_writing()

    def writable(self) -> int:
        return 1  # to hear of the end

    def send(self, data: bytes | memoryview) -> None:
        self.close()

    def send_eof(self) -> None:
        self.close()

    def close(self) -> None:
        """In order: the backend has nothing under way."""
        self.end.send_eof()
        self.end.leave()
        self.forget()

    def forget(self) -> None:
        """The connection is taken, or closed."""
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
            self._kept._forget(self._key, self)
