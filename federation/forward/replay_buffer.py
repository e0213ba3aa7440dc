"""The replay buffer: a client's bytes, for as long as another peer may have to get them again. No I/O.

add(b"one "), add(b"two ")      the client sends
rewind()                        an attempt begins: all of it is pending
take(6) -> b"one tw"            the upstream has room for six bytes
rewind()                        that attempt failed: all of it is pending again
commit()                        nothing is replayed any more: only pending bytes are kept
"""

from __future__ import annotations

_NOTHING = memoryview(b"")


class ReplayBuffer:
    """`size`: bytes kept. `pending`: those that the present upstream has not had; empty is false."""

    __slots__ = ("_chunks", "pending", "size")

    def __init__(self) -> None:
        self._chunks: list[bytes] = []
        self.pending = _NOTHING
        self.size = 0

    def __bool__(self) -> bool:
        """Whether anything is kept for a replay."""
        return bool(self._chunks)

    def add(self, chunk: bytes) -> None:
        """Keep a chunk. While bytes are pending, `rewind` must follow: `take` would not bring the chunk."""
        self._chunks.append(chunk)
        self.size += len(chunk)

    def whole(self) -> bytes:
        """All that is kept; as one piece from now on, so that asking again costs nothing."""
        if len(self._chunks) != 1:
            self._chunks = [b"".join(self._chunks)]
        return self._chunks[0]

    def rewind(self, head: bytes = b"") -> None:
        """A new upstream is to have everything. `head`: what goes before it, for this upstream alone."""
        self.pending = memoryview(b"".join((head, *self._chunks)))

    def take(self, room: int) -> memoryview:
        """The next bytes for the upstream, at most `room`; they count as delivered to it."""
        chunk, self.pending = self.pending[:room], self.pending[room:]
        return chunk

    def interrupt(self) -> None:
        """The upstream is gone: nothing is pending until the next one."""
        self.pending = _NOTHING

    def commit(self) -> None:
        """Nothing will be replayed any more. Pending bytes still go out; `size` stays."""
        self._chunks = []

    def clear(self) -> None:
        """Drop all that is kept: it has been dealt with, and the next bytes are another request."""
        self._chunks = []
        self.size = 0
