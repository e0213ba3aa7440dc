from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio

from federation import __version__
from federation.errors import PeerUnavailable
from federation.mesh import probe
from federation.mesh.probe import Probe
from tests.support.hosts import peers
from tests.support.links import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from federation.net.link.link import Link
    from tests.support.hosts import Peer

MIB = 1 << 20


@asynccontextmanager
async def pair(*, ahead_s: float = 0.0, answers: bool = True) -> AsyncIterator[tuple[Peer, Probe, Peer]]:
    """Two linked hosts: (asker, its probe, answerer whose wall clock is `ahead_s` ahead)."""
    async with peers(2) as (asker, answerer):
        ours = Probe(asker.host, wall=lambda: 1000.0)
        if answers:
            Probe(answerer.host, wall=lambda: 1000.0 + ahead_s)
        asker.knows(answerer)
        await until(lambda: asker.has(answerer) and answerer.has(asker))
        yield asker, ours, answerer


async def test_round_trips() -> None:
    async with pair() as (_, ours, other):
        times = await ours.echo(other.id, 5)
        assert len(times) == 5
        assert all(0 < seconds < 1 for seconds in times)


async def test_what_a_peer_tells() -> None:
    async with pair(ahead_s=3600.0) as (_, ours, other):
        told = await ours.tell(other.id)
        assert told.ahead_s == pytest.approx(3600.0, abs=0.5)
        assert told.version == __version__
        assert told.seen is not None
        assert told.seen[0] == "127.0.0.1"
        assert 0 < told.rtt_s < 1


async def test_bulk_arrives_both_ways_as_far_as_asked_for() -> None:
    async with pair() as (_, ours, other):
        for move in (ours.send, ours.fetch):
            moved = await move(other.id, 3 * MIB + 17, 5.0)
            assert moved.bytes == 3 * MIB + 17
            assert 0 < moved.seconds < 5


async def test_bulk_ends_in_time() -> None:
    async with pair() as (_, ours, other):
        for move in (ours.send, ours.fetch):
            with trio.fail_after(20):
                moved = await move(other.id, 10**12, 0.2)
            assert 0 < moved.bytes < 10**12
            assert moved.seconds < 3


async def test_only_so_many_bulks_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "MAX_BULKS", 0)
    async with pair() as (_, ours, other):
        with pytest.raises(PeerUnavailable):
            await ours.send(other.id, MIB, 1.0)
        with pytest.raises(PeerUnavailable, match="busy with other"):
            await ours.fetch(other.id, MIB, 1.0)
        assert await ours.echo(other.id, 1)  # the link is as good as before


async def test_an_older_version_and_a_stranger_are_unavailable() -> None:
    async with pair(answers=False) as (_, ours, other):
        with trio.fail_after(20), pytest.raises(PeerUnavailable):
            await ours.echo(other.id, 1)
        with pytest.raises(PeerUnavailable):
            await ours.echo("12D3nobody", 1)


@pytest.mark.parametrize("sent", [b"x", b"e123", b"d", b"", b"tt"])
async def test_nonsense_costs_its_sender_a_stream(sent: bytes) -> None:
    async with pair() as (asker, ours, other):
        stream = await asker.host.open_stream(other.id, probe.PROTOCOL)
        async with stream:
            await stream.send_all(sent)
            await stream.send_eof()
            with trio.fail_after(20):
                try:
                    while await stream.receive_some():
                        pass
                except trio.BrokenResourceError:
                    pass
        assert await ours.echo(other.id, 1)


@pytest.mark.parametrize(
    ("seen", "told"),
    [
        (["198.51.100.7", 4484], ("198.51.100.7", 4484)),
        (["2A01:4F8::0:7", 4484], ("2a01:4f8::7", 4484)),
        (["1::1%$(touch${IFS}pwned)", 4484], None),
        (["fe80::1%eth0", 4484], None),
        (["$(id)", 4484], None),
        (["box.example", 4484], None),
        (["198.51.100.7", 0], None),
        (["0.0.0.0", 4484], None),
    ],
)
async def test_where_a_peer_sees_us_is_an_address_whatever_it_says(seen: object, told: object) -> None:
    """`federation doctor` prints it in a command."""
    from federation.net import wire
    from federation.net.streams import TrioStream

    async with pair(answers=False) as (_, ours, other):

        async def answer(_peer: str, stream: TrioStream) -> None:
            async with stream:
                await wire.send(stream, {"utc": 1.0, "version": "1", "seen": seen})
                await stream.send_eof()

        other.host.handle_stream(probe.PROTOCOL, answer)
        assert (await ours.tell(other.id)).seen == told


@pytest.mark.parametrize(
    "answer", [{"utc": "noon"}, [1, 2], {}, *({"utc": float(wrong), "version": "1"} for wrong in ("nan", "inf", "-inf"))]
)
async def test_an_answer_that_makes_no_sense(answer: object) -> None:
    from federation.net import wire
    from federation.net.streams import TrioStream

    async with pair(answers=False) as (_, ours, other):

        async def lie(_link: Link, stream: TrioStream) -> None:
            async with stream:
                await wire.send(stream, answer)
                await stream.send_eof()

        other.host.handle_stream(probe.PROTOCOL, lie)
        with pytest.raises(PeerUnavailable, match="makes no sense"):
            await ours.tell(other.id)
