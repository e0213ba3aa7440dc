"""Messages on a stream between members: 4 bytes of length, then msgpack."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, Protocol

import msgpack
import trio

from federation.errors import ProtocolViolation

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

MAX_RECORD_BYTES = 16384  # a record with every field in use has about 1 kB

_LENGTH = struct.Struct(">I")


class Readable(Protocol):
    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray: ...


async def send(stream: trio.abc.HalfCloseableStream, message: object) -> None:
    await stream.send_all(packed(message))


def packed(message: object) -> bytes:
    return framed(msgpack.packb(message))


def framed(data: bytes) -> bytes:
    """`data` as a message."""
    return _LENGTH.pack(len(data)) + data


async def receive(stream: trio.abc.HalfCloseableStream, *, at_most: int) -> Any:
    """The next message, of `at_most` bytes: some kB, since a MB of empty lists takes 0.2 s to read.

    Raises ProtocolViolation, whatever the bytes, and BrokenResourceError where the stream ends early.
    """
    try:
        return msgpack.unpackb(await receive_bytes(stream, at_most=at_most))
    except ValueError:
        raise ProtocolViolation("a message that is not msgpack") from None


async def receive_rows(stream: Readable, *, at_most: int, rows: int, fields: int) -> list[list[Any]]:
    """The next message, if it is a list of at most so many rows of so many plain values; builds no other objects from it.

    Raises ProtocolViolation, whatever the bytes, and BrokenResourceError where the stream ends early.
    """
    data = await receive_bytes(stream, at_most=at_most)
    unpacker = msgpack.Unpacker(max_buffer_size=at_most, max_array_len=0, max_map_len=0, max_ext_len=0)
    unpacker.feed(data)
    try:
        count = unpacker.read_array_header()
        if count > rows:
            raise ProtocolViolation(f"{count} rows, where at most {rows} are allowed")
        found = []
        for _ in range(count):
            if unpacker.read_array_header() != fields:
                raise ProtocolViolation(f"a row that has not {fields} fields")
            found.append([unpacker.unpack() for _ in range(fields)])
    except (ValueError, msgpack.UnpackException):
        raise ProtocolViolation("a message that is not rows of plain values") from None
    if unpacker.tell() != len(data):
        raise ProtocolViolation("a message with something behind its rows")
    return found


async def receive_bytes(stream: Readable, *, at_most: int) -> bytes:
    """The next message, unread. Raises ProtocolViolation for a longer one, before any of it is read."""
    (length,) = _LENGTH.unpack(await read_exactly(stream.receive_some, _LENGTH.size))
    if length > at_most:
        raise ProtocolViolation(f"a message of {length} bytes, where at most {at_most} are allowed")
    return await read_exactly(stream.receive_some, length)


async def read_exactly(read: Callable[[int], Awaitable[bytes | bytearray]], n: int) -> bytes:
    """`n` bytes, whatever pieces `read(limit)` gives. Raises BrokenResourceError where it gives none: the remote may go at
    any time, which breaks no rule."""
    data = bytearray()
    while len(data) < n:
        chunk = await read(n - len(data))
        if not chunk:
            raise trio.BrokenResourceError("the stream ended early")
        data += chunk
    return bytes(data)
