"""The entry and what web_pages.py says of a client's first bytes, at every stage of a connection."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest
import trio

from federation.config import Settings
from federation.forward.attempts import State
from federation.forward.web_pages import MAX_HEAD, METHOD_WAIT_S
from tests.support.entries import Net, network, settled

if TYPE_CHECKING:
    from trio.testing import MockClock

EVIL = b"POST / HTTP/1.1\r\nHost: localhost\r\nOrigin: https://evil.example\r\nContent-Length: 2\r\n\r\n{}"
PAGE = b"POST / HTTP/1.1\r\nHost: localhost\r\nOrigin: http://localhost:3000\r\nContent-Length: %d\r\n\r\n"
every_mode = pytest.mark.parametrize("replay", ["opened", "first-byte", "never"])
STAGES = ["held", "opening", "own dial", "own backend", "opened", "answered"]


async def rest_of(client: trio.SocketStream) -> bytes:
    return b"".join([chunk async for chunk in client])


async def exactly(client: trio.SocketStream, data: bytes) -> None:
    heard = b""
    while len(heard) < len(data):
        heard += await client.receive_some(len(data) - len(heard))
        assert data.startswith(heard)


async def silent_client(net: Net, stage: str) -> trio.SocketStream:
    """It has sent nothing, and its connection has got as far as that."""
    if stage in ("opening", "opened", "answered"):
        net.add("a")
    if stage == "own backend":
        net.own_backend_is_up()
    client = await net.connect()
    if stage in ("opened", "answered"):
        net.tunnel.answers()
    if stage == "answered":
        net.tunnel.sends(b"220 ready\r\n")
        await exactly(client, b"220 ready\r\n")
    if stage == "own backend":
        await net.server()
    if stage == "own dial":
        net.own_backend_is_up()
        net.frontend.dispatcher.look_again()
    return client


@every_mode
@pytest.mark.parametrize("pieces", [1, 7])
@pytest.mark.parametrize("stage", STAGES)
async def test_a_foreign_page_is_refused_at_any_stage(mock_clock: MockClock, replay: str, stage: str, pieces: int) -> None:
    async with network(mock_clock, own_backend=True, replay=replay) as net:
        client = await silent_client(net, stage)
        for n in range(pieces):
            await client.send_all(EVIL[n * len(EVIL) // pieces : (n + 1) * len(EVIL) // pieces])
            await settled()
        assert (await rest_of(client)).startswith(b"HTTP/1.1 403 ")
        assert [tunnel.data for tunnel in net.tunnels] == [b""] * len(net.tunnels)
        assert all(tunnel.reset for tunnel in net.tunnels)
        assert net.in_flight() == {}
        assert not net.frontend.dispatcher.waiting
        assert net.frontend.counters.totals.failed == 1
        await client.aclose()
        await settled(lambda: not net.frontend.active)
        assert net.finished("turned_away") == 1
        assert "https://evil.example" in str(net.frontend.counters.endings[0].error)


@every_mode
async def test_a_server_that_speaks_and_ends_first(mock_clock: MockClock, replay: str) -> None:
    async with network(mock_clock, replay=replay) as net:
        client = await silent_client_opened(net)
        net.tunnel.sends(b"x" * 100_000)
        net.tunnel.ends()
        assert await rest_of(client) == b"x" * 100_000
        assert [client.attempts.state for client in net.frontend.active] == [State.STREAMING]
        await client.send_all(b"thanks")
        await client.send_eof()
        await settled(lambda: not net.frontend.active)
        assert (net.tunnel.data, net.tunnel.eof) == (b"thanks", True)
        assert net.finished("ok") == 1


async def silent_client_opened(net: Net) -> trio.SocketStream:
    net.add("a")
    client = await net.connect()
    net.tunnel.answers()
    return client


@every_mode
async def test_a_part_of_a_method_waits_for_a_moment(mock_clock: MockClock, replay: str) -> None:
    async with network(mock_clock, replay=replay) as net:
        client = await silent_client_opened(net)
        await client.send_all(b"GET")
        await settled(lambda: net.received() == 3)
        await net.passes(METHOD_WAIT_S / 2)
        assert net.tunnel.data == b""
        await net.passes(METHOD_WAIT_S / 2)
        assert net.tunnel.data == b"GET"
        await client.send_all(b" / HTTP/1.1\r\nHost: evil.example\r\n\r\n")
        await settled(lambda: net.tunnel.data.endswith(b"\r\n\r\n"))


@every_mode
async def test_a_head_that_has_begun_is_waited_for(mock_clock: MockClock, replay: str) -> None:
    """However slowly it comes, and though its first bytes were worth a moment only."""
    async with network(mock_clock, replay=replay) as net:
        client = await silent_client_opened(net)
        for n in range(0, len(EVIL), 3):
            await client.send_all(EVIL[n : n + 3])
            await settled(lambda n=n: net.frontend.rejected_clients or net.received() == min(n + 3, len(EVIL)))
            await net.passes(METHOD_WAIT_S * (2 if n else 0.5))
            if net.frontend.rejected_clients:
                break
            assert net.tunnel.data == b""
        assert (await rest_of(client)).startswith(b"HTTP/1.1 403 ")


@pytest.mark.parametrize("first", [b"\x16\x03\x01", b"*1\r\n", b"hello", b"GET key\r\n", b"EHLO box\r\n"])
async def test_other_protocols_do_not_wait(mock_clock: MockClock, first: bytes) -> None:
    async with network(mock_clock) as net:
        client = await silent_client_opened(net)
        await client.send_all(first)
        await settled(lambda: net.tunnel.data == first)
        assert not net.frontend.rejected_clients


@every_mode
async def test_a_head_of_which_the_client_sends_a_part_and_ends(mock_clock: MockClock, replay: str) -> None:
    async with network(mock_clock, replay=replay) as net:
        client = await silent_client_opened(net)
        await client.send_all(EVIL[:70])
        await settled()
        await client.send_eof()
        assert (await rest_of(client)).startswith(b"HTTP/1.1 403 ")
        assert net.tunnel.data == b""


async def test_a_head_may_be_longer_than_what_is_kept_for_a_retry(mock_clock: MockClock) -> None:
    head = b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 9000
    async with network(mock_clock, replay_buffer_bytes=1024) as net:
        net.add("a")
        client = await net.connect(sends=head)
        assert net.tunnel.data == b""
        await client.send_all(b"\r\n\r\n")
        net.tunnel.answers()
        await settled(lambda: net.tunnel.data == head + b"\r\n\r\n")


async def test_a_head_without_end(mock_clock: MockClock) -> None:
    async with network(mock_clock) as net:
        net.add("a")
        client = await net.connect(sends=b"GET / HTTP/1.1\r\nX: " + b"x" * 100)
        await client.send_all(b"x" * MAX_HEAD)
        assert (await rest_of(client)).startswith(b"HTTP/1.1 431 ")
        assert net.tunnel.data == b""


async def test_a_held_head_that_never_ends_is_told_at_the_end_of_the_hold(mock_clock: MockClock) -> None:
    async with network(mock_clock, hold_s=3) as net:
        client = await net.connect(sends=EVIL[:-4])
        await net.passes(3)
        assert (await rest_of(client)).startswith(b"HTTP/1.1 403 ")


# A browser's connection


def request(body: bytes) -> bytes:
    return PAGE % len(body) + body


@every_mode
async def test_the_next_request_of_a_browsers_connection_is_judged(mock_clock: MockClock, replay: str) -> None:
    async with network(mock_clock, replay=replay) as net:
        net.add("a")
        good = request(b"one") + request(b"")
        client = await net.connect(sends=request(b"one"))
        net.tunnel.answers()
        for _ in range(2):
            net.tunnel.sends(b"HTTP/1.1 200 OK\r\n\r\n")
            await exactly(client, b"HTTP/1.1 200 OK\r\n\r\n")
            if net.tunnel.data != good:
                await client.send_all(request(b""))
                await settled(lambda: net.tunnel.data == good)
        await client.send_all(EVIL)
        assert (await rest_of(client)).startswith(b"HTTP/1.1 403 ")
        assert net.tunnel.data == good
        assert net.tunnel.reset


@pytest.mark.parametrize("own_backend", [False, True])
@every_mode
async def test_large_requests_of_a_browser(mock_clock: MockClock, replay: str, own_backend: bool) -> None:
    """Uploads and answers larger than all buffers, three on one connection, with a slow reader at either end."""
    dice = random.Random(5)
    async with network(mock_clock, replay=replay, own_backend=own_backend, replay_buffer_bytes=1024) as net:
        if own_backend:
            net.own_backend_is_up()
        else:
            net.add("a")
        client = await net.connect()
        server = await net.server() if own_backend else None
        if server is None:
            net.tunnel.answers()
        sent = b""
        for n in (0, 700_000, 100_000):
            up, down = request(dice.randbytes(n)), b"HTTP/1.1 200 OK\r\n\r\n" + dice.randbytes(300_000)
            sent += up
            async with trio.open_nursery() as nursery:
                nursery.start_soon(client.send_all, up)
                if server is not None:
                    await exactly(server, up)
                else:
                    while net.tunnel.data != sent:
                        await settled()
                        net.tunnel.grants(10_000)
            async with trio.open_nursery() as nursery:
                if server is not None:
                    nursery.start_soon(server.send_all, down)
                else:
                    net.tunnel.sends(down)
                await exactly(client, down)
        await client.send_eof()
        if server is None:
            await settled(lambda: net.tunnel.eof)
            net.tunnel.ends()
        else:
            assert await rest_of(server) == b""
            await server.aclose()
        assert await rest_of(client) == b""
        await settled(lambda: not net.frontend.active)
        assert net.finished("ok") == 1


async def test_a_browsers_request_is_replayed_like_any_other(mock_clock: MockClock) -> None:
    async with network(mock_clock) as net:
        net.add("a", "b")
        whole = request(b"x" * 5000)
        client = await net.connect(sends=whole[:2000])
        net.tunnel.refuses()
        await client.send_all(whole[2000:])
        await settled(lambda: net.tunnel.data == whole)
        assert [tunnel.peer_id for tunnel in net.tunnels] == ["a", "b"]
        net.tunnel.answers()
        await client.send_all(EVIL)
        assert (await rest_of(client)).startswith(b"HTTP/1.1 403 ")


async def test_requests_sent_ahead_are_no_browsers(mock_clock: MockClock) -> None:
    async with network(mock_clock) as net:
        net.add("a")
        await net.connect(sends=request(b"one") * 3)
        net.tunnel.answers()
        await settled(lambda: net.tunnel.data == request(b"one") * 3)
        net.tunnel.sends(b"answer")
        (entry,) = net.frontend.active
        assert entry.socket.other is net.tunnel


@pytest.mark.parametrize("settings", [{"browser_check": False}, {"allow_origins": ("*",)}])
async def test_the_check_switched_off(mock_clock: MockClock, settings: dict[str, object]) -> None:
    async with network(mock_clock, hold_s=1, **settings) as net:
        net.add("a")
        await net.connect(sends=EVIL)
        assert net.tunnel.data == EVIL
        net.roster.nodes.clear()
        client = await net.connect(sends=EVIL)
        await net.passes(1)
        answer = await rest_of(client)
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"\r\nAccess-Control-Allow-Origin: https://evil.example\r\n" in answer


async def test_changed_settings_count_for_the_next_client(mock_clock: MockClock) -> None:
    async with network(mock_clock, hold_s=1) as net:
        net.add("a")
        settings = Settings(allow_origins=("https://evil.example",))
        net.frontend.configure(settings)
        await net.connect(sends=EVIL)
        assert net.tunnel.data == EVIL
