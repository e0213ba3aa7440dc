"""trio's conformance check over the mux, on a socket and without one."""

from __future__ import annotations

import sys
from contextlib import AsyncExitStack

import pytest
import trio
import trio.testing
from libp2p.stream_muxer.exceptions import MuxedStreamEOF, MuxedStreamReset

from federation.net.streams import MAX_CHUNK, TrioStream
from tests.support.links import link_pair, until


async def test_streams_conform_to_trio() -> None:
    async with AsyncExitStack() as stack:

        async def make_pair() -> tuple[TrioStream, TrioStream]:
            a, b, *_ = await stack.enter_async_context(link_pair())
            ours = await a.open_stream()
            return TrioStream(ours), TrioStream(await b.accept_stream())

        await trio.testing.check_half_closeable_stream(make_pair, None)


async def test_a_reset_is_no_eof() -> None:
    async with link_pair() as (a, b, *_):
        ours = await a.open_stream()
        theirs = await b.accept_stream()
        await ours.write(b"half a mess")
        await ours.reset()
        with pytest.raises(MuxedStreamReset):
            while True:
                await theirs.read()


async def test_a_length_that_a_peer_wrote_is_not_waited_for() -> None:
    """As multistream does, which knows no bound: it would collect what comes, beyond the channel's window."""
    async with link_pair() as (a, b, *_):
        ours, theirs = await a.open_stream(), await b.accept_stream()
        await ours.write(b"some of it")
        with pytest.raises(MuxedStreamReset):
            await theirs.read(MAX_CHUNK + 1)
        assert await theirs.read(MAX_CHUNK) == b"some of it"
        await ours.write(b"more")
        assert await TrioStream(theirs).receive_some(2**30) == b"more"  # which says how much is wanted at most


async def test_half_close_leaves_the_other_direction_open() -> None:
    async with link_pair() as (a, b, *_):
        ours = await a.open_stream()
        theirs = await b.accept_stream()
        await ours.write(b"request")
        await ours.close()
        assert await theirs.read(3) == b"req"
        assert await theirs.read() == b"uest"
        with pytest.raises(MuxedStreamEOF):
            await theirs.read()
        await theirs.write(b"reply")
        await theirs.close()
        assert await ours.read() == b"reply"


async def test_what_comes_in_crumbs_takes_no_more_room_than_it_has_bytes() -> None:
    async with link_pair() as (a, b, *_):
        ours = await a.open_stream()
        theirs = await b.accept_stream()
        for _ in range(20_000):
            ours.channel.send(b"ab")  # a frame each would be read one by one
            theirs.send(b"cd")
        assert len(theirs._in) == 40_000
        assert sys.getsizeof(theirs._in) < 3 * 40_000


async def test_what_a_link_brought_is_not_read_after_its_end() -> None:
    """A peer that was put out had sent it before; whoever acts on it would act for a stranger."""
    async with link_pair() as (a, b, *_):
        ours = await a.open_stream()
        theirs = await b.accept_stream()
        stream = TrioStream(theirs)
        await ours.write(b"first, second")
        assert await stream.receive_some(5) == b"first"
        b.fail("put out")
        assert bytes(theirs._in) == b", second"
        with pytest.raises(trio.BrokenResourceError, match="closed"):
            await stream.receive_some()


async def test_what_was_waited_for_when_it_ended_is_not_read_either() -> None:
    async with link_pair() as (a, b, *_), trio.open_nursery() as nursery:
        ours = await a.open_stream()
        stream = TrioStream(await b.accept_stream())
        outcome: list[object] = []

        async def read() -> None:
            try:
                outcome.append(await stream.receive_some())
            except trio.BrokenResourceError as error:
                outcome.append(str(error))

        nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked()
        stream._stream.send(b"late")  # in one batch with the end
        b.fail("put out")
        await until(lambda: outcome)
        assert outcome == ["the connection is closed"]
        assert ours.link is a
        assert ours.muxed_conn is a.muxed_conn


async def test_a_cancelled_write_cuts_no_record() -> None:
    """Trap C: with libp2p's stock muxer this connection and all its streams would be dead."""
    async with link_pair() as (a, b, *_):
        stuck = await a.open_stream()
        unread = await b.accept_stream()
        with trio.move_on_after(0.05) as scope:
            await stuck.write(bytes(10_000_000))
        assert scope.cancelled_caught
        fresh = await a.open_stream()
        await fresh.write(b"still here")
        assert await (await b.accept_stream()).read() == b"still here"
        assert unread.channel.granted == 0  # the window was used up, and no more than that was sent


async def test_bytes_arrive_whole_through_many_windows() -> None:
    data = bytes(range(256)) * 20_000
    async with link_pair() as (a, b, *_), trio.open_nursery() as nursery:
        ours, received = await a.open_stream(), bytearray()
        theirs = await b.accept_stream()

        async def send() -> None:
            await ours.write(data)
            await ours.close()

        nursery.start_soon(send)
        with pytest.raises(MuxedStreamEOF):
            while True:
                received += await theirs.read()
        assert bytes(received) == data
