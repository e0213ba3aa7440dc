"""Messages between members: what was sent arrives, and nothing else is believed."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest
import trio

from federation.errors import ProtocolViolation
from federation.net import messages


@pytest.mark.parametrize("message", [None, [], [1, "two", b"three"], {"a": [None, 2**40]}, "x" * 900])
async def test_what_is_sent_arrives(message: Any) -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    await messages.send(ours, message)  # type: ignore[arg-type]
    await messages.send(ours, "next")  # type: ignore[arg-type]
    assert await messages.receive(theirs, at_most=1000) == message  # type: ignore[arg-type]
    assert await messages.receive(theirs, at_most=1000) == "next"  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "ended"),
        (b"\x00\x00", "ended"),
        (b"\x00\x00\x00\x05abc", "ended"),
        (b"\x00\x00\x00\x01\xc1", "not msgpack"),
        (b"\xff\xff\xff\xff", "4294967295 bytes"),
        (b"\x00\x00\x00\x0b" + msgpack.packb("x" * 10), "11 bytes"),
    ],
)
async def test_nonsense_is_a_violation(data: bytes, why: str) -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    await ours.send_all(data)
    await ours.send_eof()
    with pytest.raises(ProtocolViolation, match=why):
        await messages.receive(theirs, at_most=10)  # type: ignore[arg-type]
