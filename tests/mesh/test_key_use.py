"""Entries ask each other how much client keys were used, over real links."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

from federation.mesh import key_use
from federation.mesh.key_use import HASH_BYTES, HEARD_AT_ONCE, MAX_ANSWER_BYTES, MAX_MS, PROTOCOL, Heard, KeyUse, Use, summed
from federation.net import wire
from tests.support.hosts import peers
from tests.support.links import until

if TYPE_CHECKING:
    from federation.net.link.link import Link
    from federation.net.streams import TrioStream
    from tests.support.hosts import Peer

PHONE, LAPTOP = b"p" * HASH_BYTES, b"l" * HASH_BYTES


@pytest.fixture(autouse=True)
def never_fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_use, "FRESH_S", -60.0)


async def linked(asker: Peer, *others: Peer) -> None:
    for other in others:
        asker.knows(other)
    await until(lambda: asker.has(*others) and all(other.has(asker) for other in others))


def test_a_sum() -> None:
    answers = [[Use(PHONE, 2, 70), Use(LAPTOP, 1, 5)], [Use(PHONE, 3, 60)], []]
    assert summed(answers) == {PHONE: Use(PHONE, 5, 70), LAPTOP: Use(LAPTOP, 1, 5)}
    assert summed([]) == {}


async def test_all_that_answer_are_in_it() -> None:
    async with peers(4) as (asker, first, second, old):
        ours = KeyUse(asker.host, lambda: [Use(PHONE, 100, 100)])
        KeyUse(first.host, lambda: [Use(PHONE, 1, 10), Use(LAPTOP, 7, 70)])
        KeyUse(second.host, lambda: [Use(PHONE, 2, 5)])
        await linked(asker, first, second, old)
        expected = Heard({PHONE: Use(PHONE, 3, 10), LAPTOP: Use(LAPTOP, 7, 70)}, answered=2, asked=3)
        assert await ours.ask() == expected
        assert set(ours._deaf) == {old.id}
        assert await ours.ask() == expected
        assert asker.has(first, second, old)


async def test_nobody_is_there() -> None:
    async with peers(1) as (asker,):
        assert await KeyUse(asker.host, list).ask() == Heard({}, 0, 0)


async def test_those_who_look_together_ask_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_use, "FRESH_S", 60.0)
    async with peers(2) as (asker, other):
        asked: list[int] = []
        ours = KeyUse(asker.host, list)
        KeyUse(other.host, lambda: asked.append(1) or [])
        await linked(asker, other)
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(ours.ask)
        assert len(asked) == 1


async def test_one_that_asks_without_end_hears_nothing_more() -> None:
    async with peers(2) as (asker, other):
        ours = KeyUse(asker.host, list)
        KeyUse(other.host, lambda: [Use(PHONE, 1, 1)])
        await linked(asker, other)
        heard = [(await ours.ask()).answered for _ in range(int(HEARD_AT_ONCE) + 6)]
        assert heard[:8] == [1] * 8
        assert 0 in heard
        assert asker.has(other)


@pytest.mark.parametrize(
    "answer",
    [
        wire.framed(b"x" * (MAX_ANSWER_BYTES + 1)), wire.packed({"a": 1}), wire.packed([[PHONE, 1]]),
        wire.packed([[PHONE, 1, "x"]]), wire.packed([[PHONE[1:], 1, 1]]), wire.packed([[PHONE, -1, 1]]),
        wire.packed([[PHONE, 1, MAX_MS + 1]]), wire.packed([[PHONE, 1, 1]] * (key_use.MAX_ROWS + 1)),
        wire.packed([[PHONE, [], 1]]),
    ],
)  # fmt: skip
async def test_nonsense_ends_the_link_of_who_says_it(answer: bytes) -> None:
    async with peers(3) as (asker, bad, good):

        async def handle(_link: Link, stream: TrioStream) -> None:
            async with stream:
                await stream.send_all(answer)

        ours = KeyUse(asker.host, list)
        bad.host.handle_stream(PROTOCOL, handle)
        KeyUse(good.host, lambda: [Use(PHONE, 1, 1)])
        await linked(asker, bad, good)
        assert await ours.ask() == Heard({PHONE: Use(PHONE, 1, 1)}, answered=1, asked=2)
        await until(lambda: asker.has(good))


async def test_one_that_says_nothing_costs_a_second_and_no_link(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_use, "ASK_S", 0.3)
    async with peers(3) as (asker, mute, short):

        async def wait(_link: Link, _stream: TrioStream) -> None:
            await trio.sleep_forever()

        async def end(_link: Link, stream: TrioStream) -> None:
            await stream.send_all(b"\0\0")
            await stream.aclose()

        mute.host.handle_stream(PROTOCOL, wait)
        short.host.handle_stream(PROTOCOL, end)
        ours = KeyUse(asker.host, list)
        await linked(asker, mute, short)
        with trio.fail_after(30):
            assert await ours.ask() == Heard({}, 0, 2)
        assert asker.has(mute, short)
