"""Where the body of a message ends, on the bytes as they came. Sans-IO: views in, counts out; nothing is re-framed.

Rule 1: one message has one framing (RFC 9112, section 6.3), and the entry alone decides it, from a head that head.py found
to be sound. Who relays the body passes on the counted bytes unchanged.
Rule 2: no byte is counted that is not allowed where it stands. A line of a chunked body is checked before its end came, so a
backend never gets a half line that only a lenient parser takes for a whole one.
Rule 3: lines cost their sender. A chunk's line, its extensions, and all trailers have bounds; lines that outweigh the bytes
they frame use up OVERHEAD.

    framing    requests                     answers                            over
    NONE       no length, not chunked       1xx, 204, 304, to HEAD; CONNECT    at once
    LENGTH     Content-Length               Content-Length                     after so many bytes
    CHUNKED    Transfer-Encoding: chunked   Transfer-Encoding: chunked         after the empty line behind the last chunk
    EOF        -                            neither                            when the backend closes

A chunked body, and what `feed` makes of three views of it (used, is_over, content):

    4;x=y\\r\\nab         9  no   "ab"
    cd\\r\\n0\\r\\n        7  no   "cd"
    A: b\\r\\n\\r\\nGET     8  yes  -        the next message begins with GET

Chunk extensions and trailers pass. Not in trailers: fields that frame or route a message or say who sent it, since a backend
may merge them into the head (RFC 9110, section 6.5.1).
"""

from __future__ import annotations

import re
from enum import Enum, auto
from typing import NamedTuple, Protocol

from federation.errors import HttpInvalid

Bytes = bytes | bytearray | memoryview

MAX_LINE = 1024  # a chunk's size and extensions; no known client sends extensions at all
MAX_TRAILERS = 8 * 1024  # together: gRPC and checksums need some 200 bytes
# As Go's net/http (CVE-2023-39326): a line beyond 16 bytes has to be outweighed by the bytes of its chunk.
FREE_LINE = 16
OVERHEAD = 16 * 1024
MAX_SIZE_DIGITS = 15  # below 2**60
MAX_PADDING = 64 * 1024  # what a chunk may want that its backend did not finish

_USUAL_LINE = 24  # is looked at first, so that a chunk's line costs no copy of its content
_LINE = re.compile(rb"([0-9a-fA-F]{1,15})(?:;[\t -~\x80-\xff]*)?\r\n")
_BEGUN_LINE = re.compile(rb"[0-9a-fA-F]{1,15}(?:;[\t -~\x80-\xff]*)?\r?")
_DIGITS = re.compile(rb"[0-9a-fA-F]*")
_TRAILER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[\t -~\x80-\xff]*\r\n")
_BEGUN_TRAILER = re.compile(rb"\r|[!#$%&'*+.^_`|~0-9A-Za-z-]+(?::[\t -~\x80-\xff]*\r?)?")
_NOT_IN_TRAILERS = frozenset(
    b"content-length transfer-encoding host connection trailer te upgrade expect authorization x-api-key api-key cookie "
    b"set-cookie content-type content-encoding content-range forwarded x-forwarded-for x-forwarded-proto x-forwarded-host "
    b"x-federation-node x-federation-target x-federation-via x-session-id origin".split()
)


class Kind(Enum):
    NONE = auto()
    LENGTH = auto()
    CHUNKED = auto()
    EOF = auto()


class Framing(NamedTuple):
    kind: Kind
    length: int = 0  # of LENGTH


NO_BODY = Framing(Kind.NONE)
CHUNKED = Framing(Kind.CHUNKED)
UNTIL_EOF = Framing(Kind.EOF)


class Body(Protocol):
    """The body of one message, as it passes."""

    is_over: bool

    def feed(self, view: Bytes, content: list[memoryview] | None = None) -> int:
        """How many bytes of `view` belong to this message; look at `is_over` then. The parts of `view` that are content
        and not framing are appended to `content`. Raises HttpInvalid: then pass on nothing of `view`."""

    def eof(self) -> bool:
        """The sender has ended the connection: whether the message is whole."""

    def extra(self, content: bytes) -> bytes:
        """The bytes that put more content here; nothing if the framing does not allow it."""

    def ending(self, content: bytes) -> bytes | None:
        """The bytes which end the message for its reader with this content in place of all that did not come; None if
        the framing does not allow it. `content` ends in a byte that may be repeated where a chunk wants more of them."""


def body_of(framing: Framing) -> Body:
    if framing.kind is Kind.CHUNKED:
        return ChunkedBody()
    if framing.kind is Kind.EOF:
        return UnendedBody()
    return CountedBody(framing.length)


class CountedBody:
    """A body of known length, or none."""

    __slots__ = ("is_over", "left")

    def __init__(self, length: int) -> None:
        self.left = length
        self.is_over = length == 0

    def feed(self, view: Bytes, content: list[memoryview] | None = None) -> int:
        used = min(self.left, len(view))
        self.left -= used
        self.is_over = self.left == 0
        if content is not None and used:
            content.append(memoryview(view)[:used])
        return used

    def eof(self) -> bool:
        return self.is_over

    def extra(self, content: bytes) -> bytes:
        return b""

    def ending(self, content: bytes) -> bytes | None:
        return None


class UnendedBody:
    """A body that its sender ends by closing."""

    __slots__ = ("is_over",)

    def __init__(self) -> None:
        self.is_over = False

    def feed(self, view: Bytes, content: list[memoryview] | None = None) -> int:
        if content is not None and len(view):
            content.append(memoryview(view))
        return len(view)

    def eof(self) -> bool:
        self.is_over = True
        return True

    def extra(self, content: bytes) -> bytes:
        return content

    def ending(self, content: bytes) -> bytes | None:
        return content


class _At(Enum):
    LINE = auto()  # of a chunk's size
    CONTENT = auto()
    CONTENT_CR = auto()  # before the CR behind a chunk's content
    CONTENT_LF = auto()
    TRAILERS = auto()
    END = auto()


class ChunkedBody:
    """A chunked body."""

    __slots__ = ("_at", "_left", "_line", "_overhead", "_trailers", "is_over")

    def __init__(self) -> None:
        self.is_over = False
        self._at = _At.LINE
        self._left = 0  # of the chunk's content
        self._line = b""  # the part of a line that came so far
        self._overhead = 0
        self._trailers = 0  # bytes

    def feed(self, view: Bytes, content: list[memoryview] | None = None) -> int:
        at, size = 0, len(view)
        while at < size and self._at is not _At.END:
            if self._at is _At.LINE:
                at = self._feed_chunks(view, at, content)
            elif self._at is _At.TRAILERS:
                line, at = self._take_line(view, at, is_size=False)
                if line is not None:
                    self._trailer(line)
            else:
                at = self._feed_content(view, at, content)
        self.is_over = self._at is _At.END
        return at

    def eof(self) -> bool:
        return self.is_over

    def extra(self, content: bytes) -> bytes:
        is_between = self._at is _At.LINE and not self._line
        return b"%x\r\n%b\r\n" % (len(content), content) if is_between else b""

    def ending(self, content: bytes) -> bytes | None:
        at, line, head = self._at, self._line, b""
        left = self._left
        if at is _At.LINE and line:  # a part of a size is out, and counts
            if line.isalnum() and not int(line, 16) and len(line) < MAX_SIZE_DIGITS:
                line, head = line + b"1", b"1"  # 0 would be the last chunk
            left = int(_DIGITS.match(line)[0], 16)  # type: ignore[index]
            head += b"\n" if line.endswith(b"\r") else b"\r\n"
            if not left:
                return None
        elif at in (_At.TRAILERS, _At.END):
            return None
        elif at is not _At.CONTENT:
            head = {_At.CONTENT_CR: b"\r\n", _At.CONTENT_LF: b"\n"}.get(at, b"")
        if left > len(content) + MAX_PADDING or (left and not content):
            return None
        if left:
            head += content[:left].ljust(left, content[-1:]) + b"\r\n"
            content = content[left:]
        return head + (b"%x\r\n%b\r\n" % (len(content), content) if content else b"") + b"0\r\n\r\n"

    def _feed_chunks(self, view: Bytes, at: int, content: list[memoryview] | None) -> int:
        """From a chunk's line on, through all chunks that are here as a whole."""
        size = len(view)
        while at < size:
            line, at = self._take_line(view, at, is_size=True)
            if line is None:
                break
            left = self._begin_chunk(line)
            end = at + left
            if not left or view[end : end + 2] != b"\r\n":
                self._left, self._at = left, _At.CONTENT if left else _At.TRAILERS
                break
            if content is not None:
                content.append(memoryview(view)[at:end])
            at = end + 2
        return at

    def _feed_content(self, view: Bytes, at: int, content: list[memoryview] | None) -> int:
        """A chunk's content in parts, or a byte of the line end behind it."""
        if self._at is _At.CONTENT:
            n = min(self._left, len(view) - at)
            if content is not None:
                content.append(memoryview(view)[at : at + n])
            self._left -= n
            if not self._left:
                self._at = _At.CONTENT_CR
            return at + n
        if view[at] != (13 if self._at is _At.CONTENT_CR else 10):
            raise HttpInvalid("no line end behind a chunk")
        self._at = _At.CONTENT_LF if self._at is _At.CONTENT_CR else _At.LINE
        return at + 1

    def _take_line(self, view: Bytes, at: int, *, is_size: bool) -> tuple[bytes | None, int]:
        """A whole line with its end, or None; and the place behind it."""
        most = MAX_LINE if is_size else MAX_TRAILERS - self._trailers
        piece = bytes(view[at : at + _USUAL_LINE])
        end = piece.find(b"\n")
        if end < 0 and len(piece) == _USUAL_LINE:
            piece = bytes(view[at : at + most + 1])
            end = piece.find(b"\n")
        line = self._line + (piece[: end + 1] if end >= 0 else piece)
        if len(line) > most:
            raise HttpInvalid("a line of a chunked body, or all its trailers together, are too long")
        if end >= 0:
            self._line = b""
            return line, at + end + 1
        if not (_BEGUN_LINE if is_size else _BEGUN_TRAILER).fullmatch(line):
            raise HttpInvalid("a line of a chunked body is malformed")
        self._line = line
        return None, len(view)

    def _begin_chunk(self, line: bytes) -> int:
        """The size of a chunk."""
        match = _LINE.fullmatch(line)
        if match is None:
            raise HttpInvalid("a chunk's size is malformed")
        size = int(match[1], 16)
        if len(line) > FREE_LINE or self._overhead:
            self._overhead = max(0, self._overhead + len(line) - FREE_LINE - 2 * size)
            if self._overhead > OVERHEAD:
                raise HttpInvalid("the lines of a chunked body outweigh its content")
        return size

    def _trailer(self, line: bytes) -> None:
        self._trailers += len(line)
        if line == b"\r\n":
            self._at = _At.END
            return
        match = _TRAILER.fullmatch(line)
        if match is None:
            raise HttpInvalid("a trailer is malformed")
        if match[1].lower().replace(b"_", b"-") in _NOT_IN_TRAILERS:
            raise HttpInvalid("a field stands in the trailers that belongs into the head")
