"""Entries ask each other which node made a thing, over real links."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from federation.mesh import whereabouts
from federation.mesh.whereabouts import DIGEST_BYTES, PROTOCOL, Whereabouts
from federation.net import wire
from tests.support.hosts import peers
from tests.support.links import until

if TYPE_CHECKING:
    import pytest

    from federation.net.link.link import Link
    from federation.net.streams import TrioStream
    from tests.support.hosts import Peer

KNOWN, UNKNOWN = b"k" * DIGEST_BYTES, b"u" * DIGEST_BYTES


async def linked(asker: Peer, *others: Peer) -> None:
    for other in others:
        asker.knows(other)
    await until(lambda: asker.has(*others) and all(other.has(asker) for other in others))


async def test_the_one_that_knows_is_heard() -> None:
    async with peers(3) as (asker, first, second):
        ours = Whereabouts(asker.host, lambda _: "")
        Whereabouts(first.host, lambda _: "")
        Whereabouts(second.host, lambda digest: first.id if digest == KNOWN else "")
        await linked(asker, first, second)
        assert await ours.ask(KNOWN) == first.id
        assert await ours.ask(UNKNOWN) == ""


async def test_nobody_is_there() -> None:
    async with peers(1) as (asker,):
        assert await Whereabouts(asker.host, lambda _: "").ask(KNOWN) == ""


async def test_an_older_node_is_asked_once() -> None:
    async with peers(2) as (asker, old):
        ours = Whereabouts(asker.host, lambda _: "")
        await linked(asker, old)
        assert await ours.ask(KNOWN) == ""
        assert set(ours._deaf) == {old.id}
        Whereabouts(old.host, lambda _: old.id)
        assert await ours.ask(KNOWN) == ""
        ours._deaf[old.id] = 0.0
        assert await ours.ask(KNOWN) == old.id
        assert ours._deaf == {}


async def test_what_a_member_may_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nonsense, too much, nothing and for ever: no name comes of it, the client waits ASK_S at most, and the link stays."""
    monkeypatch.setattr(whereabouts, "ASK_S", 0.5)
    answers: list[bytes | None] = [b"\xff\0", b"no peer", b"x" * 10_000, b"", None]

    async with peers(2) as (asker, other):
        ours = Whereabouts(asker.host, lambda _: "")

        async def handle(_link: Link, stream: TrioStream) -> None:
            async with stream:
                await wire.read_exactly(stream.receive_some, DIGEST_BYTES)
                answer = answers.pop(0)
                if answer is None:
                    await trio.sleep_forever()
                else:
                    await stream.send_all(wire.framed(answer))

        other.host.handle_stream(PROTOCOL, handle)
        await linked(asker, other)
        while answers:
            with trio.fail_after(30):
                assert await ours.ask(KNOWN) == ""
        assert asker.has(other)


async def test_who_asks_for_less_than_a_hash_hears_nothing() -> None:
    async with peers(2) as (asker, other):
        asked: list[bytes] = []
        Whereabouts(other.host, lambda digest: asked.append(digest) or "")
        await linked(asker, other)
        async with await asker.host.open_stream(other.id, PROTOCOL) as stream:
            await stream.send_all(KNOWN[:-1])
            await stream.send_eof()
            assert await stream.receive_some(1) == b""
        assert asked == []
        assert asker.has(other)
