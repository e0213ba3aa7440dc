"""Messages between members: what was sent arrives, and nothing else is believed."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest
import trio

from federation.errors import ProtocolViolation
from federation.net import wire


@pytest.mark.parametrize("message", [None, [], [1, "two", b"three"], {"a": [None, 2**40]}, "x" * 900])
async def test_what_is_sent_arrives(message: Any) -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    await wire.send(ours, message)  # type: ignore[arg-type]
    await wire.send(ours, "next")  # type: ignore[arg-type]
    assert await wire.receive(theirs, at_most=1000) == message  # type: ignore[arg-type]
    assert await wire.receive(theirs, at_most=1000) == "next"  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("data", "why"),
    [
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
        await wire.receive(theirs, at_most=10)  # type: ignore[arg-type]


@pytest.mark.parametrize("data", [b"", b"\x00\x00", b"\x00\x00\x00\x05abc"])
async def test_an_early_end_is_no_violation(data: bytes) -> None:
    """The remote may go at any time."""
    ours, theirs = trio.testing.memory_stream_pair()
    await ours.send_all(data)
    await ours.send_eof()
    with pytest.raises(trio.BrokenResourceError, match="ended early"):
        await wire.receive(theirs, at_most=10)  # type: ignore[arg-type]


# Rows


async def rows(data: bytes, *, at_most: int = 1000) -> list[list[Any]]:
    ours, theirs = trio.testing.memory_stream_pair()
    await ours.send_all(len(data).to_bytes(4, "big") + data)
    await ours.send_eof()
    return await wire.receive_rows(theirs, at_most=at_most, rows=2, fields=3)  # type: ignore[arg-type]


@pytest.mark.parametrize("sent", [[], [["a", 1, b"x"]], [["a", -1, None], [2**64 - 1, 0.5, True]], [[[], {}, ""]]])
async def test_rows_arrive(sent: Any) -> None:
    assert await rows(msgpack.packb(sent)) == sent


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "not rows"),
        (b"\xc1", "not rows"),
        (msgpack.packb("text"), "not rows"),
        (msgpack.packb({}), "not rows"),
        (msgpack.packb([1, 2]), "not rows"),
        (msgpack.packb([[1, 2, 3]] * 3), "3 rows"),
        (b"\xdd\xff\xff\xff\xff", "4294967295 rows"),
        (msgpack.packb([[1, 2]]), "not 3 fields"),
        (b"\x91\xdd\xff\xff\xff\xff", "not 3 fields"),
        (msgpack.packb([[1, 2, [3]]]), "not rows"),
        (msgpack.packb([[1, 2, {3: 4}]]), "not rows"),
        (msgpack.packb([[1, 2, msgpack.ExtType(5, b"x")]]), "not rows"),
        (msgpack.packb([[1, 2, 3]])[:-1], "not rows"),
        (msgpack.packb([[1, 2, 3]]) + b"\x00", "behind its rows"),
        (bytes(1001), "1001 bytes"),
    ],
)
async def test_what_is_not_rows_is_a_violation(data: bytes, why: str) -> None:
    with pytest.raises(ProtocolViolation, match=why):
        await rows(data)


async def test_a_megabyte_of_empty_lists_is_not_built() -> None:
    """It would be a million objects."""
    data = msgpack.packb([[[], [], [[]] * 60_000]])
    with pytest.raises(ProtocolViolation, match="not rows"):
        await rows(data, at_most=len(data))
