"""Messages on a stream between members: 4 bytes of length, then msgpack."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import msgpack

from federation.errors import ProtocolViolation

if TYPE_CHECKING:
    from federation.net.streams import TrioStream

_LENGTH = struct.Struct(">I")


async def send(stream: TrioStream, message: object) -> None:
    data = msgpack.packb(message)
    await stream.send_all(_LENGTH.pack(len(data)) + data)


async def receive(stream: TrioStream, *, at_most: int) -> Any:
    """The next message, of `at_most` bytes: some kB, since a MB of empty lists takes 0.2 s to read.

    Raises ProtocolViolation, whatever the bytes.
    """
    try:
        return msgpack.unpackb(await _next(stream, at_most))
    except ValueError:
        raise ProtocolViolation("a message that is not msgpack") from None


async def receive_rows(stream: TrioStream, *, at_most: int, rows: int, fields: int) -> list[list[Any]]:
    """The next message, if it is a list of at most so many rows of so many plain values; builds no other objects from it.

    Raises ProtocolViolation, whatever the bytes.
    """
    data = await _next(stream, at_most)
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


async def _next(stream: TrioStream, at_most: int) -> bytes:
    (length,) = _LENGTH.unpack(await _exactly(stream, _LENGTH.size))
    if length > at_most:
        raise ProtocolViolation(f"a message of {length} bytes, where at most {at_most} are allowed")
    return await _exactly(stream, length)


async def _exactly(stream: TrioStream, n: int) -> bytes:
    data = bytearray()
    while len(data) < n:
        chunk = await stream.receive_some(n - len(data))
        if not chunk:
            raise ProtocolViolation("the stream ended in the middle of a message")
        data += chunk
    return bytes(data)
