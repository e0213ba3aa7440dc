"""The replay buffer: a client's bytes, for as long as another peer may have to get them again. No I/O.

add(b"one "), add(b"two ")      the client sends
rewind()                        an attempt begins: all of it is pending
take(6) -> b"one tw"            the upstream has room for six bytes. A piece is of one chunk; small ones are joined
rewind()                        that attempt failed: all of it is pending again
commit()                        nothing is replayed any more: only pending bytes are kept

Bytes are kept once, as they came; only small chunks are copied, so a client that sends byte by byte costs no object a byte.
"""

from __future__ import annotations

_NOTHING = memoryview(b"")
JOINED = 4096  # bytes of chunks that are copied into one


class ReplayBuffer:
    """`size`: bytes added. `pending`: how many of them the present upstream has not had."""

    __slots__ = ("_at", "_chunks", "_has_head", "_is_final", "_offset", "pending", "size")

    def __init__(self) -> None:
        self._chunks: list[bytes] = []
        self._at = self._offset = 0  # of the first pending byte: its chunk, and its place there
        self._is_final = False
        self._has_head = False  # the first chunk is the head for the present upstream
        self.pending = 0
        self.size = 0

    def __bool__(self) -> bool:
        """Whether anything is kept for a replay."""
        return bool(self._chunks) and not self._is_final

    @property
    def held(self) -> int:
        """The bytes in memory."""
        return self.pending if self._is_final else self.size

    def add(self, chunk: bytes) -> None:
        """Keep a chunk. While bytes are pending, `rewind` must follow: `take` would not bring the chunk."""
        chunks = self._chunks
        is_joined = len(chunks) > self._has_head and len(chunks[-1]) + len(chunk) <= JOINED and not self._is_final
        if is_joined:
            chunks[-1] += chunk
        else:
            chunks.append(chunk)
        self.size += len(chunk)

    def push(self, chunk: bytes) -> None:
        """One more chunk behind the pending bytes; nothing is replayed any more."""
        self.commit()
        self._chunks.append(chunk)
        self.pending += len(chunk)

    def whole(self) -> bytes:
        """All that is kept; as one piece from now on, so that asking again costs nothing."""
        if len(self._chunks) != 1:
            self._offset += sum(map(len, self._chunks[: self._at]))
            self._at = 0
            self._chunks = [b"".join(self._chunks)]
        return self._chunks[0]

    def rewind(self, head: bytes = b"") -> None:
        """A new upstream is to have everything. `head`: what goes before it, for this upstream alone."""
        if self._is_final:
            return
        if self._has_head:
            self.size -= len(self._chunks.pop(0))
        self._has_head = bool(head)
        if head:
            self._chunks.insert(0, head)
            self.size += len(head)
        self._at = self._offset = 0
        self.pending = self.size

    def take(self, room: int) -> memoryview:
        """The next bytes for the upstream, at most `room`; they count as delivered to it."""
        if not self.pending:
            return _NOTHING
        while self._offset == len(self._chunks[self._at]):
            self._drop_one()
        chunk = self._chunks[self._at]
        end = self._offset + min(room, self.pending, len(chunk) - self._offset)
        piece = memoryview(chunk)[self._offset : end]
        self.pending -= len(piece)
        self._offset = end
        if end == len(chunk):
            self._drop_one()
        return piece

    def _drop_one(self) -> None:
        """The chunk has been taken."""
        if self._is_final:
            self._chunks[self._at] = b""
        self._at += 1
        self._offset = 0

    def interrupt(self) -> None:
        """The upstream is gone: nothing is pending until the next one."""
        self.pending = 0

    def commit(self) -> None:
        """Nothing will be replayed any more. Pending bytes still go out; `size` stays."""
        if not self.pending:
            self._chunks = []
            self._at = self._offset = 0
        elif not self._is_final:
            del self._chunks[: self._at]
            self._at = 0
        self._is_final = True

    def clear(self) -> None:
        """Drop all that is kept: it has been dealt with, and the next bytes are another request."""
        self._chunks = []
        self._at = self._offset = self.pending = self.size = 0
        self._is_final = self._has_head = False
