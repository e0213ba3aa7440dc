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
    """The next message, of `at_most` bytes. Raises ProtocolViolation, whatever the bytes."""
    (length,) = _LENGTH.unpack(await _exactly(stream, _LENGTH.size))
    if length > at_most:
        raise ProtocolViolation(f"a message of {length} bytes, where at most {at_most} are allowed")
    try:
        return msgpack.unpackb(await _exactly(stream, length))
    except ValueError:
        raise ProtocolViolation("a message that is not msgpack") from None


async def _exactly(stream: TrioStream, n: int) -> bytes:
    data = bytearray()
    while len(data) < n:
        chunk = await stream.receive_some(n - len(data))
        if not chunk:
            raise ProtocolViolation("the stream ended in the middle of a message")
        data += chunk
    return bytes(data)
