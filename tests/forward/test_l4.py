"""One client's connection, stage by stage. Peers are the test's own (entries.py), clients and backends are real sockets.
How attempts follow each other is in test_attempts.py, without sockets.

Each `network` block ends with everybody leaving, and checks that no counter, tunnel, timer or descriptor is left.
"""

from __future__ import annotations

import json
import random
import socket
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from federation.config import Settings
from federation.forward.attempts import REFUSED_PENALTY_S, SILENT_PENALTY_S, State
from federation.forward.backends import Backends
from federation.forward.counters import Failure, Flow
from federation.forward.dispatcher import BROKE_OFF_PENALTY_S
from federation.forward.exit import serve_tunnel
from federation.forward.reject import REJECT_LINGER_S
from federation.net.link.channel import INITIAL_WINDOW
from federation.net.link.mux import Load
from federation.reactor import sockets
from tests.support.entries import OWN, Net, network, record, settled
from tests.support.links import Events, link_pair
from tests.support.sockets import Listener, is_reset, reset

if TYPE_CHECKING:
    from trio.testing import MockClock

REQUEST = b"GET /v1/models HTTP/1.1\r\nHost: here\r\n\r\n"
MODES = ["opened", "first-byte", "never"]
every_mode = pytest.mark.parametrize("replay", MODES)


async def receive(client: trio.SocketStream, n: int) -> bytes:
    """Exactly `n` bytes."""
    data = b""
    while len(data) < n:
        chunk = await client.receive_some(n - len(data))
        assert chunk, f"EOF after {data!r}"
        data += chunk
    return data


def exit_of(net: Net, events: Events, load: Load | None = None) -> tuple[Backends, Listener]:
    """Backends behind the far end of a link, with `load` as their number of connections."""
    listener = Listener()
    settings = Settings(backends=(listener.address,))
    backends = Backends(net.reactor, settings, on_change=lambda: None, on_load=lambda _entry_id: None, load=load)
    backends.all[0].healthy, backends.all[0].target = True, (socket.AF_INET, (listener.host, listener.port))
    events.tunnel_opened = partial(serve_tunnel, backends)  # type: ignore[method-assign]
    return backends, listener


async def rest_of(client: trio.SocketStream) -> bytes:
    return b"".join([chunk async for chunk in client])


def parse_503(answer: bytes) -> dict[str, Any]:
    head, _, body = answer.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    headers = dict(line.split(": ") for line in lines)
    assert status == "HTTP/1.1 503 Service Unavailable"
    assert headers["Content-Type"] == "application/json"
    assert int(headers["Content-Length"]) == len(body)
    assert int(headers["Retry-After"]) > 0
    assert headers["Connection"] == "close"
    error: dict[str, Any] = json.loads(body)["error"]
    assert error["code"] == 503
    return error


# The plain case


@every_mode
async def test_request_and_answer(mock_clock: MockClock, replay: str) -> None:
    async with network(mock_clock, replay=replay) as net:
        net.add("a")
        client = await net.connect(sends=REQUEST)
        tunnel = net.tunnel
        assert (tunnel.service, tunnel.data) == ("default", REQUEST)  # right behind OPEN
        assert net.in_flight() == {"a": 1}
        tunnel.answers()
        tunnel.sends(b"200 OK")
        assert await receive(client, 6) == b"200 OK"
        assert tunnel.taken_bytes == 6
        await client.send_all(b"next")
        await settled(lambda: tunnel.data == REQUEST + b"next")
        tunnel.sends(b"again")
        assert await receive(client, 5) == b"again"
        await client.send_eof()
        await settled(lambda: tunnel.eof)
        assert net.in_flight() == {"a": 1}
        tunnel.ends()
        assert await rest_of(client) == b""
        await settled(lambda: not net.frontend.active)
        assert net.in_flight() == {}
        assert net.finished("ok") == 1
        assert (net.frontend.counters.totals.failed, net.frontend.counters.totals.retried) == (0, 0)
        assert net.roster.penalties == []


@every_mode
async def test_a_server_that_speaks_first(mock_clock: MockClock, replay: str) -> None:
    async with network(mock_clock, replay=replay) as net:
        net.add("a")
        client = await net.connect()
        net.tunnel.answers()
        net.tunnel.sends(b"220 ready\r\n")
        assert await receive(client, 11) == b"220 ready\r\n"
        await client.send_all(b"EHLO")
        await settled(lambda: net.tunnel.data == b"EHLO")


@every_mode
async def test_a_client_that_ends_first_gets_its_answer(mock_clock: MockClock, replay: str) -> None:
    async with network(mock_clock, replay=replay) as net:
        net.add("a")
        client = await net.connect(sends=REQUEST)
        await client.send_eof()
        await settled(lambda: net.tunnel.eof)
        assert net.tunnel.data == REQUEST
        net.tunnel.answers()
        net.tunnel.sends(b"answer")
        net.tunnel.ends()
        assert await rest_of(client) == b"answer"
        await settled(lambda: not net.frontend.active)
        assert net.finished("ok") == 1


@every_mode
async def test_a_server_that_ends_first_still_hears_the_client(mock_clock: MockClock, replay: str) -> None:
    async with network(mock_clock, replay=replay) as net:
        net.add("a")
        client = await net.connect(sends=b"1")
        net.tunnel.answers()
        net.tunnel.sends(b"bye")
        net.tunnel.ends()
        assert await rest_of(client) == b"bye"
        await client.send_all(b"23")
        await settled(lambda: net.tunnel.data == b"123")
        assert net.in_flight() == {"a": 1}
        await client.send_eof()
        await settled(lambda: not net.frontend.active)
        assert net.tunnel.closed
        assert net.tunnel.reset is None


@every_mode
async def test_nothing_times_out_while_a_backend_thinks(mock_clock: MockClock, replay: str) -> None:
    async with network(mock_clock, replay=replay) as net:
        net.add("a", "b")
        client = await net.connect(sends=REQUEST)
        net.tunnel.answers()
        await net.passes(86_400)
        net.tunnel.sends(b"42")
        assert await receive(client, 2) == b"42"
        assert len(net.tunnels) == 1


# The next peer


async def fail_attempt(net: Net, how: str) -> str:
    """Make the latest attempt fail before OPENED; the reason."""
    tunnel = net.tunnel
    if how == "refused":
        tunnel.refuses("its backend is down")
        return "its backend is down"
    if how == "link lost":
        tunnel.breaks("cable pulled")
        return "cable pulled"
    await net.passes(3.0)
    return "no answer within 3 s"


FAILURES = ["refused", "link lost", "timeout"]


@pytest.mark.parametrize("replay", ["opened", "first-byte"])
@pytest.mark.parametrize("how", FAILURES)
async def test_the_next_peer_gets_all_that_the_client_sent(mock_clock: MockClock, replay: str, how: str) -> None:
    async with network(mock_clock, replay=replay) as net:
        net.add("a", "b")
        client = await net.connect(sends=b"one ")
        await client.send_all(b"two ")
        await settled(lambda: net.tunnel.data == b"one two ")
        await client.send_eof()
        await settled(lambda: net.tunnel.eof)
        first = net.tunnel
        reason = await fail_attempt(net, how)
        assert first.closed
        assert first.reset == (reason if how == "timeout" else None)  # an exit that wakes up late never dials
        assert [t.peer_id for t in net.tunnels] == ["a", "b"]
        assert (net.tunnel.data, net.tunnel.eof) == (b"one two ", True)
        assert net.in_flight() == {"b": 1}
        silent = how == "timeout"
        assert net.roster.penalties == [("a", SILENT_PENALTY_S if silent else REFUSED_PENALTY_S)]
        assert net.roster.links["a"].pings == silent
        assert net.frontend.counters.totals.retried == 1
        net.tunnel.answers()
        net.tunnel.sends(b"served")
        net.tunnel.ends()
        assert await rest_of(client) == b"served"
        assert [d.pick.chosen.peer_id for d in net.frontend.counters.decisions] == ["a", "b"]
        assert [d.attempt for d in net.frontend.counters.decisions] == [1, 2]
        assert {d.flow for d in net.frontend.counters.decisions} == {Flow(1)}
        assert list(net.frontend.counters.failures) == [Failure(Flow(1), 1, "a", reason)]


@every_mode
async def test_a_busier_peer_sends_the_client_on_with_all_its_bytes(mock_clock: MockClock, replay: str) -> None:
    async with network(mock_clock, replay=replay) as net:
        net.add("a", "b")
        client = await net.connect(sends=b"one ")
        await client.send_all(b"two ")  # on the way to the peer
        await settled(lambda: net.tunnel.data == b"one two ")
        first = net.tunnel
        first.is_busier(3)
        assert [t.peer_id for t in net.tunnels] == ["a", "b"]
        assert net.tunnel.data == b"one two "
        await client.send_all(b"three")
        await client.send_eof()
        await settled(lambda: net.tunnel.eof)
        assert (first.data, net.tunnel.data) == (b"one two ", b"one two three")
        assert (net.in_flight(), net.roster.penalties) == ({"b": 1}, [])
        assert (net.frontend.counters.totals.retried, len(net.frontend.counters.failures)) == (0, 0)
        assert net.metric("federation_picks_again_total") == 1
        net.tunnel.answers()
        net.tunnel.sends(b"served")
        net.tunnel.ends()
        assert await rest_of(client) == b"served"
        await settled(lambda: not net.frontend.active)
        assert net.finished("ok") == 1
        assert [ending.attempts for ending in net.frontend.counters.endings] == [1]


async def test_a_large_upload_that_is_sent_back_twice_is_whole(mock_clock: MockClock) -> None:
    data = random.Random(21).randbytes(3 * INITIAL_WINDOW)
    async with network(mock_clock, replay_buffer_bytes=4 * INITIAL_WINDOW) as net:
        net.add("a", "b", "c")
        client = await net.connect(sends=data[:INITIAL_WINDOW])
        net.tunnel.is_busier(1)
        await client.send_all(data[INITIAL_WINDOW:])
        await settled()
        net.tunnel.is_busier(1)
        assert [t.peer_id for t in net.tunnels] == ["a", "b", "c"]
        net.tunnel.answers()
        while len(net.tunnel.data) < len(data):
            net.tunnel.grants(10_000)
            await settled()
        assert net.tunnel.data == data


@pytest.mark.parametrize("how", FAILURES)
async def test_never_means_never(mock_clock: MockClock, how: str) -> None:
    async with network(mock_clock, replay="never") as net:
        net.add("a", "b")
        client = await net.connect(sends=REQUEST)
        reason = await fail_attempt(net, how)
        error = parse_503(await rest_of(client))
        assert reason in error["message"]
        assert len(net.tunnels) == 1
        assert net.in_flight() == {}
        assert (net.frontend.counters.totals.failed, net.frontend.counters.totals.retried) == (1, 0)


async def test_each_peer_is_tried_once_then_the_client_waits_for_news(mock_clock: MockClock) -> None:
    async with network(mock_clock) as net:
        net.add("a", "b", "c")
        client = await net.connect(sends=REQUEST)
        for _ in range(3):
            net.tunnel.refuses()
        assert [t.peer_id for t in net.tunnels] == ["a", "b", "c"]
        assert net.in_flight() == {}
        assert len(net.frontend.dispatcher.waiting) == 1
        await client.send_all(b"more")  # meanwhile it is read on
        await settled(lambda: net.received() == len(REQUEST) + 4)
        net.forgive()  # the penalties are over
        await settled(lambda: len(net.tunnels) == 4)
        assert net.tunnel.data == REQUEST + b"more"
        assert sum(net.in_flight().values()) == 1
        assert not net.frontend.dispatcher.waiting


async def test_an_answer_that_comes_too_late_changes_nothing(mock_clock: MockClock) -> None:
    async with network(mock_clock) as net:
        net.add("a", "b")
        client = await net.connect(sends=REQUEST)
        late = net.tunnel
        opener = late.opener
        await net.passes(3.0)
        assert opener is not None
        late.answers()
        late.sends(b"too late")
        late.refuses()
        late.breaks()
        assert net.in_flight() == {"b": 1}
        net.tunnel.answers()
        net.tunnel.sends(b"b")
        assert await receive(client, 1) == b"b"


# How far a connection got


async def test_opened_is_final_by_default(mock_clock: MockClock) -> None:
    """The backend has seen the request: it must not be done twice."""
    async with network(mock_clock, replay="opened") as net:
        net.add("a", "b")
        client = await net.connect(sends=REQUEST)
        net.tunnel.answers()
        net.tunnel.breaks("the peer died")
        assert await is_reset(client)
        assert len(net.tunnels) == 1
        await settled(lambda: not net.frontend.active)
        assert net.finished("error") == 1


async def test_who_breaks_off_is_left_alone_for_a_moment(mock_clock: MockClock) -> None:
    """A backend that resets at once is always the least loaded: without that it would draw everybody."""
    async with network(mock_clock) as net:
        net.add("a", "b")
        clients = [await net.connect(sends=REQUEST) for _ in range(4)]
        for tunnel in net.tunnels:
            tunnel.answers()
            tunnel.sends(b"HTTP/1.1 200 OK")
        assert [tunnel.peer_id for tunnel in net.tunnels] == ["a", "b", "a", "b"]
        net.tunnels[0].breaks("crashed")
        assert net.roster.penalties == [("a", BROKE_OFF_PENALTY_S)]
        net.tunnels[2].breaks("crashed")  # it is alone already,
        net.tunnels[1].breaks("crashed")  # and nobody else is left: better this one than none
        assert net.roster.penalties == [("a", BROKE_OFF_PENALTY_S)]
        assert [await is_reset(client) for client in clients[:3]] == [True] * 3


@pytest.mark.parametrize("who", ["the client", "this node", "the only peer"])
async def test_whose_fault_it_is_not(mock_clock: MockClock, who: str) -> None:
    async with network(mock_clock) as net:
        net.add(*(["a"] if who == "the only peer" else ["a", "b"]))
        client = await net.connect(sends=REQUEST)
        net.tunnel.answers()
        net.tunnel.sends(b"HTTP/1.1 200 OK")
        if who == "the client":
            reset(client)
        elif who == "this node":
            net.frontend.abort_all("this node stops")
        else:
            net.tunnel.breaks("crashed")
        await settled(lambda: not net.frontend.active)
        assert net.finished("error") == 1
        assert net.roster.penalties == []


async def test_opened_and_ended_without_a_byte_is_an_answer_by_default(mock_clock: MockClock) -> None:
    async with network(mock_clock, replay="opened") as net:
        net.add("a", "b")
        client = await net.connect(sends=REQUEST)
        net.tunnel.answers()
        net.tunnel.ends()
        assert await rest_of(client) == b""
        assert len(net.tunnels) == 1


@pytest.mark.parametrize("how", ["reset", "ended", "suspect"])
async def test_until_the_first_byte_a_request_may_move(mock_clock: MockClock, how: str) -> None:
    async with network(mock_clock, replay="first-byte") as net:
        net.add("a", "b")
        client = await net.connect(sends=REQUEST)
        net.tunnel.answers()
        await client.send_all(b"body")
        await settled(lambda: net.tunnel.data == REQUEST + b"body")
        if how == "reset":
            net.tunnel.breaks("the backend died")
        elif how == "ended":
            net.tunnel.ends()
        else:
            net.frontend.peer_suspect("a")
        assert net.tunnels[0].closed
        assert [t.peer_id for t in net.tunnels] == ["a", "b"]
        assert net.tunnel.data == REQUEST + b"body"
        assert net.in_flight() == {"b": 1}
        net.tunnel.answers()
        net.tunnel.sends(b"done")
        assert await receive(client, 4) == b"done"
        net.frontend.peer_suspect("a")
        net.frontend.peer_suspect("b")  # it has answered: too late to move
        assert len(net.tunnels) == 2
        net.tunnel.sends(b"more")
        assert await receive(client, 4) == b"more"
        net.tunnel.breaks()
        assert await is_reset(client)
        assert len(net.tunnels) == 2


async def test_a_peer_that_is_suspect_loses_all_that_wait_for_it_and_nobody_else(mock_clock: MockClock) -> None:
    async with network(mock_clock, replay="first-byte") as net:
        net.add("a", "b")
        for _ in range(6):
            await net.connect(sends=REQUEST)
            net.tunnel.answers()
        assert net.in_flight() == {"a": 3, "b": 3}
        net.frontend.peer_suspect("a")
        assert net.in_flight() == {"b": 6}
        assert set(net.roster.penalties) == {("a", SILENT_PENALTY_S)}
        assert len(net.tunnels) == 9
        assert net.frontend.counters.totals.retried == 3


@pytest.mark.parametrize("replay", ["opened", "first-byte"])
async def test_an_upload_that_was_opened_and_never_arrived_moves_whole(mock_clock: MockClock, replay: str) -> None:
    """A path lost its first large packet: it failed when the link was closed at last, and no backend had a byte of it."""
    async with network(mock_clock, replay=replay) as net:
        net.add("a", "b")
        client = await net.connect(sends=REQUEST)
        net.tunnel.answers()
        body = bytes(range(256)) * 1024
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.send_all, body)
            first = net.tunnel
            await settled(lambda: first.credit == 0)  # all that it may send before the peer says that it got any of it
            first.is_unheard = True
            net.roster.links["a"].is_closed = True
            first.breaks("the peer lives, and what is sent to it does not arrive")
            assert [t.peer_id for t in net.tunnels] == ["a", "b"]
            assert net.in_flight() == {"b": 1}
            net.tunnel.answers()
            net.tunnel.grants(len(body))
            await settled(lambda: net.tunnel.data == REQUEST + body)
        net.tunnel.sends(b"done")
        assert await receive(client, 4) == b"done"


async def test_bytes_that_come_after_the_backend_has_accepted_are_kept_too(mock_clock: MockClock) -> None:
    async with network(mock_clock, replay="opened") as net:
        net.add("a", "b")
        client = await net.connect()
        net.tunnel.answers()
        await client.send_all(REQUEST)
        await settled(lambda: net.tunnel.data == REQUEST)
        net.tunnel.is_unheard = True
        net.roster.links["a"].is_closed = True
        net.tunnel.breaks()
        assert [t.peer_id for t in net.tunnels] == ["a", "b"]
        net.tunnel.answers()
        await settled(lambda: net.tunnel.data == REQUEST)


@pytest.mark.parametrize("sign", ["answer", "grant", "loss"])
async def test_what_was_opened_stays_once_a_byte_may_have_arrived(mock_clock: MockClock, sign: str) -> None:
    async with network(mock_clock, replay="opened") as net:
        net.add("a", "b")
        client = await net.connect(sends=REQUEST)
        net.tunnel.answers()
        if sign == "answer":
            net.tunnel.sends(b"1")
            assert await receive(client, 1) == b"1"
        elif sign == "grant":
            async with trio.open_nursery() as nursery:
                nursery.start_soon(client.send_all, bytes(100_000))
                await settled(lambda: net.tunnel.credit == 0)
                net.tunnel.grants(200_000)
                await settled(lambda: len(net.tunnel.data) == len(REQUEST) + 100_000)
        net.tunnel.is_unheard = sign != "loss"  # it cannot be, and would not matter
        net.tunnel.breaks()
        assert await is_reset(client)
        assert len(net.tunnels) == 1
        assert net.in_flight() == {}


@pytest.mark.parametrize("replay", ["opened", "first-byte"])
async def test_whose_suspect_peer_has_not_even_opened_goes_to_another_one(mock_clock: MockClock, replay: str) -> None:
    async with network(mock_clock, replay=replay) as net:
        net.add("a", "b")
        client = await net.connect(sends=REQUEST)
        net.frontend.peer_suspect("a")
        assert net.tunnels[0].reset == "the peer does not answer"
        assert net.roster.penalties == [("a", SILENT_PENALTY_S)]
        assert net.in_flight() == {"b": 1}
        net.tunnel.answers()
        net.tunnel.sends(b"done")
        assert await receive(client, 4) == b"done"


@pytest.mark.parametrize(("replay", "peers"), [("opened", "a"), ("first-byte", "a"), ("never", "ab")])
async def test_without_another_one_it_waits_for_the_suspect_peer(mock_clock: MockClock, replay: str, peers: str) -> None:
    """It may only have paused, and answers within the open timeout."""
    async with network(mock_clock, replay=replay) as net:
        net.add(*peers)
        client = await net.connect(sends=REQUEST)
        net.frontend.peer_suspect("a")
        assert len(net.tunnels) == 1
        assert net.roster.penalties == []
        net.tunnel.answers()
        net.tunnel.sends(b"done")
        assert await receive(client, 4) == b"done"


async def test_where_nobody_else_is_an_early_end_is_the_answer(mock_clock: MockClock) -> None:
    async with network(mock_clock, replay="first-byte") as net:
        net.add("a")
        client = await net.connect(sends=REQUEST)
        net.tunnel.answers()
        net.tunnel.ends()
        assert await rest_of(client) == b""
        assert not net.tunnel.closed  # the client may go on
        assert net.in_flight() == {"a": 1}
        await client.send_all(b"more")
        await settled(lambda: net.tunnel.data == REQUEST + b"more")
        await client.aclose()
        await settled(lambda: not net.frontend.active)
        assert net.finished("ok") == 1


async def test_an_end_behind_the_clients_end_is_the_answer(mock_clock: MockClock) -> None:
    """A protocol without answers: the client has finished and so has the server. That is no failure."""
    async with network(mock_clock, replay="first-byte") as net:
        net.add("a", "b")
        client = await net.connect(sends=b"log line")
        net.tunnel.answers()
        await client.send_eof()
        await settled(lambda: net.tunnel.eof)
        net.tunnel.ends()
        assert await rest_of(client) == b""
        assert len(net.tunnels) == 1
        assert net.roster.penalties == []
        await settled(lambda: not net.frontend.active)
        assert net.finished("ok") == 1


# What is kept


@pytest.mark.parametrize("replay", ["opened", "first-byte"])
async def test_a_client_is_read_no_further_than_can_be_replayed(mock_clock: MockClock, replay: str) -> None:
    data = random.Random(1).randbytes(3_000_000)
    async with network(mock_clock, replay=replay, replay_buffer_bytes=5000) as net:
        net.add("a", "b")
        client = await net.connect()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.send_all, data)
            await settled(lambda: len(net.tunnel.data) == 5000)
            await settled()
            assert net.tunnel.data == data[:5000]
            events = net.reactor.events
            await settled()
            assert net.reactor.events == events
            net.tunnel.refuses()
            assert net.tunnel.data == data[:5000]
            net.tunnel.answers()
            while len(net.tunnel.data) < len(data):
                net.tunnel.grants(INITIAL_WINDOW)
                await settled()
        assert net.tunnel.data == data
        assert [t.peer_id for t in net.tunnels] == ["a", "b"]
        (entry,) = net.frontend.active
        assert not entry._replay
        net.tunnel.breaks()  # it has outgrown what is kept
        assert await is_reset(client)
        assert len(net.tunnels) == 2


async def test_a_large_upload_is_replayed_as_long_as_it_fits(mock_clock: MockClock) -> None:
    """More than a tunnel's first window is kept: it goes out as the peer grants, and not a byte more."""
    data = random.Random(2).randbytes(5 * INITIAL_WINDOW)
    async with network(mock_clock, replay="first-byte", replay_buffer_bytes=10 * INITIAL_WINDOW) as net:
        net.add("a", "b", "c")
        client = await net.connect()
        net.tunnel.answers()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.send_all, data)
            while len(net.tunnel.data) < len(data):
                net.tunnel.grants(INITIAL_WINDOW)
                await settled()
        net.tunnel.breaks("the backend died")
        assert net.tunnel.peer_id == "b"
        assert net.tunnel.data == data[:INITIAL_WINDOW]
        await client.send_all(b"more")
        await settled()
        net.tunnel.grants(1000)
        assert net.tunnel.data == data[: INITIAL_WINDOW + 1000]
        net.tunnel.refuses()  # in the middle of it: the next one gets it from the beginning
        assert net.tunnel.peer_id == "c"
        assert net.tunnel.data == data[:INITIAL_WINDOW]
        net.tunnel.answers()
        await client.send_eof()
        while len(net.tunnel.data) < len(data) + 4:
            assert not net.tunnel.eof
            net.tunnel.grants(50_000)
            await settled()
        assert net.tunnel.data == data + b"more"
        await settled(lambda: net.tunnel.eof)
        net.tunnel.sends(b"thanks")
        net.tunnel.ends()
        assert await rest_of(client) == b"thanks"


async def test_what_one_peer_answered_does_not_count_at_the_next(mock_clock: MockClock) -> None:
    """a has said OPENED, b has not: the buffer that fills up now must not settle anything."""
    data = random.Random(8).randbytes(50_000)
    async with network(mock_clock, replay="first-byte", replay_buffer_bytes=5000) as net:
        net.add("a", "b", "c")
        client = await net.connect(sends=data[:1000])
        net.tunnel.answers()
        net.tunnel.breaks()
        await client.send_all(data[1000:])
        await settled(lambda: len(net.tunnel.data) == 5000)
        await settled()
        net.tunnel.refuses()
        assert net.tunnel.peer_id == "c"
        assert net.tunnel.data == data[:5000]
        net.tunnel.answers()
        await settled(lambda: net.tunnel.data == data)


async def test_a_buffer_that_is_just_full_is_replayed(mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "READS_A_TURN", 1)  # so that nobody looks whether there is more
    data = random.Random(9).randbytes(2 * sockets.CHUNK)
    async with network(mock_clock, replay="first-byte", replay_buffer_bytes=len(data)) as net:
        net.add("a", "b")
        client = await net.connect(sends=data[: sockets.CHUNK])
        net.tunnel.answers()
        net.tunnel.grants(INITIAL_WINDOW)
        await client.send_all(data[sockets.CHUNK :])
        await settled(lambda: net.tunnel.data == data)
        net.tunnel.breaks()
        net.tunnel.answers()
        assert (net.tunnel.peer_id, net.tunnel.data) == ("b", data[:INITIAL_WINDOW])
        await client.send_all(b"more")
        await settled()
        net.tunnel.grants(INITIAL_WINDOW + 4)
        await settled(lambda: net.tunnel.data == data + b"more")
        net.tunnel.sends(b"ok")
        assert await receive(client, 2) == b"ok"


async def test_a_client_whose_replay_was_cut_short_is_read_on(mock_clock: MockClock) -> None:
    data = random.Random(10).randbytes(2 * INITIAL_WINDOW)
    async with network(mock_clock, replay_buffer_bytes=3 * INITIAL_WINDOW) as net:
        client = await net.connect(sends=data)
        net.add("a")
        await settled(lambda: net.tunnels)
        net.tunnel.refuses()
        await client.send_all(b"more")
        await settled(lambda: net.received() == len(data) + 4)


@every_mode
async def test_an_answer_in_the_middle_of_a_replay(mock_clock: MockClock, replay: str) -> None:
    """The server answers before it has all; the rest must follow, in order, and both directions go on."""
    data = random.Random(3).randbytes(4 * INITIAL_WINDOW)
    async with network(mock_clock, replay=replay, replay_buffer_bytes=4 * INITIAL_WINDOW) as net:
        client = await net.connect(sends=data)  # waits for a peer, all of it is kept
        net.add("a")
        await settled(lambda: net.tunnels)
        assert net.tunnel.data == data[:INITIAL_WINDOW]
        net.tunnel.answers()
        net.tunnel.sends(b"100 continue")
        assert await receive(client, 12) == b"100 continue"
        assert net.tunnel.taken_bytes == 12
        await client.send_all(b"tail")
        while len(net.tunnel.data) < len(data) + 4:
            net.tunnel.grants(10_000)
            await settled()
        assert net.tunnel.data == data + b"tail"
        net.tunnel.sends(b"bye")
        net.tunnel.ends()
        assert await rest_of(client) == b"bye"
        assert net.tunnel.taken_bytes == 15
        await client.send_eof()
        await settled(lambda: not net.frontend.active)
        assert net.finished("ok") == 1
        assert net.in_flight() == {}


@every_mode
async def test_a_reset_in_the_middle_of_a_replay_after_the_answer_began(mock_clock: MockClock, replay: str) -> None:
    async with network(mock_clock, replay=replay, replay_buffer_bytes=4 * INITIAL_WINDOW) as net:
        client = await net.connect(sends=bytes(2 * INITIAL_WINDOW))
        net.add("a", "b")
        await settled(lambda: net.tunnels)
        net.tunnel.answers()
        net.tunnel.sends(b"413")
        net.tunnel.breaks("too large")
        assert await receive(client, 3) == b"413"
        assert await is_reset(client)
        assert len(net.tunnels) == 1
        assert net.in_flight() == {}


@every_mode
async def test_a_server_that_ends_first_gets_the_rest_of_a_replay(mock_clock: MockClock, replay: str) -> None:
    """A sink that never says a word ends its own direction at once, and reads on."""
    data = random.Random(7).randbytes(3 * INITIAL_WINDOW)
    async with network(mock_clock, replay=replay, replay_buffer_bytes=4 * INITIAL_WINDOW) as net:
        client = await net.connect(sends=data)
        await client.send_eof()
        net.add("a")
        await settled(lambda: net.tunnels)
        net.tunnel.answers()
        net.tunnel.ends()
        while len(net.tunnel.data) < len(data):
            assert not net.tunnel.closed
            net.tunnel.grants(10_000)
            await settled()
        assert net.tunnel.data == data
        assert net.tunnel.eof
        assert net.tunnel.reset is None
        assert await rest_of(client) == b""
        await settled(lambda: not net.frontend.active)
        assert net.finished("ok") == 1


# Waiting for a peer


async def test_a_client_that_waited_is_served_as_soon_as_somebody_comes(mock_clock: MockClock) -> None:
    async with network(mock_clock) as net:
        client = await net.connect(sends=REQUEST)
        await client.send_eof()
        await net.passes(9.9)
        assert len(net.frontend.dispatcher.waiting) == 1
        net.add("a")
        await settled(lambda: net.tunnels)
        assert (net.tunnel.data, net.tunnel.eof) == (REQUEST, True)
        await net.passes(1.0)  # the end of its patience must not strike now
        assert not net.tunnel.closed
        net.tunnel.answers()
        net.tunnel.sends(b"served")
        net.tunnel.ends()
        assert await rest_of(client) == b"served"
        assert net.frontend.counters.totals.failed == 0


@pytest.mark.parametrize(
    "request_", [REQUEST, b"POST / HTTP/1.0\r\nContent-Length: 3\r\n\r\nabc", b"OPTIONS * HTTP/1.1\r\n"]
)
async def test_an_http_client_is_told(mock_clock: MockClock, request_: bytes) -> None:
    async with network(mock_clock, hold_s=10) as net:
        client = await net.connect(sends=request_)
        await net.passes(10)
        error = parse_503(await rest_of(client))
        assert error["message"] == "federation: no peer is available"
        assert net.frontend.counters.totals.failed == 1


@pytest.mark.parametrize(
    "request_",
    [
        b"",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"*1\r\n$4\r\nPING\r\n",
        b"SSH-2.0-OpenSSH\r\n",
        b"GET /",
        b"say GET / HTTP/1.1\r\n",
    ],
)
async def test_any_other_client_is_only_closed(mock_clock: MockClock, request_: bytes) -> None:
    async with network(mock_clock, hold_s=10) as net:
        client = await net.connect(sends=request_)
        await net.passes(10)
        assert await rest_of(client) == b""  # EOF; a reset would be an error


async def test_who_has_ended_is_not_waited_for(mock_clock: MockClock) -> None:
    async with network(mock_clock, hold_s=REJECT_LINGER_S / 4) as net:
        client = await net.connect()
        await client.send_eof()
        await settled(lambda: all(entry._eof for entry in net.frontend.active))
        await net.passes(REJECT_LINGER_S / 4)
        assert not net.frontend.active
        assert await rest_of(client) == b""


async def test_no_patience_is_no_reason_to_say_nothing(mock_clock: MockClock) -> None:
    """--hold 0: the client has not even sent its request when it is turned away."""
    async with network(mock_clock, hold_s=0) as net:
        client = await net.connect()
        await client.send_all(REQUEST)
        parse_503(await rest_of(client))
        assert net.frontend.counters.totals.failed == 1


async def test_no_patience_and_a_silent_client(mock_clock: MockClock) -> None:
    async with network(mock_clock, hold_s=0) as net:
        client = await net.connect()
        await net.passes(REJECT_LINGER_S)
        assert await rest_of(client) == b""
        await net.passes(REJECT_LINGER_S)
        await settled(lambda: not net.frontend.active)


async def test_no_patience_and_a_client_that_ends_at_once(mock_clock: MockClock) -> None:
    async with network(mock_clock, hold_s=0) as net:
        client = await net.connect()
        await client.send_eof()
        assert await rest_of(client) == b""
        await settled(lambda: not net.frontend.active)


# Being turned away


async def test_a_client_that_is_turned_away_while_it_sends_reads_why(mock_clock: MockClock) -> None:
    """Closing at once would reset what it has not read yet: the answer."""
    async with network(mock_clock, hold_s=10) as net:
        client = await net.connect(sends=b"POST / HTTP/1.1\r\nContent-Length: 9000000\r\n\r\n")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.send_all, bytes(9_000_000))
            await settled(lambda: net.received() >= 65536)
            await net.passes(10)
        parse_503(await rest_of(client))
        await client.aclose()
        await settled(lambda: not net.frontend.active)


async def test_a_client_that_does_not_go_is_thrown_out(mock_clock: MockClock) -> None:
    async with network(mock_clock, hold_s=10) as net:
        client = await net.connect(sends=REQUEST)
        await net.passes(10)
        parse_503(await rest_of(client))
        await net.passes(REJECT_LINGER_S - 0.1)
        assert len(net.frontend.active) == 1
        await net.passes(0.1)
        assert not net.frontend.active
        assert net.frontend.counters.totals.failed == 1


async def test_who_was_turned_away_is_not_served_after_all(mock_clock: MockClock) -> None:
    async with network(mock_clock, hold_s=10) as net:
        client = await net.connect(sends=REQUEST)
        await net.passes(10)
        net.add("a")
        await settled()
        assert net.tunnels == []
        parse_503(await rest_of(client))


async def test_to_be_turned_away_is_no_success(mock_clock: MockClock) -> None:
    """As the metric's own words have it, however politely the client leaves."""
    async with network(mock_clock, hold_s=10) as net:
        client = await net.connect(sends=REQUEST)
        await net.passes(10)
        parse_503(await rest_of(client))
        await client.aclose()
        await settled(lambda: not net.frontend.active)
        assert net.finished("turned_away") == 1
        assert net.finished("ok") == 0


async def test_a_held_client_is_turned_away_once_when_the_node_stops(mock_clock: MockClock) -> None:
    async with network(mock_clock, hold_s=1) as net:
        client = await net.connect(sends=REQUEST)
        net.frontend.stop_listening()
        assert "shutting down" in parse_503(await rest_of(client))["message"]
        await net.passes(1)  # when its patience would have ended
        assert net.frontend.counters.totals.failed == 1
        await client.aclose()


async def test_a_peers_words_make_no_broken_answer(mock_clock: MockClock) -> None:
    async with network(mock_clock, replay="never") as net:
        net.add("a")
        client = await net.connect(sends=REQUEST)
        net.tunnel.refuses('it said: "häß\\lich"\u2028')
        assert parse_503(await rest_of(client))["message"] == 'federation: it said: "häß\\lich"\u2028'


# A client that leaves


STAGES = ["held", "opening", "own dial", "opened", "joined", "joined to the own backend", "turned away", "moved"]


async def bring_to(net: Net, stage: str) -> trio.SocketStream:
    if "own" in stage:
        net.own_backend_is_up()
    elif stage != "held":
        net.add("a", "b")
    client = await net.connect()
    if stage == "joined to the own backend":
        server = await net.server()
        await server.send_all(b"x")
        assert await receive(client, 1) == b"x"
    if stage in ("opened", "joined"):
        net.tunnel.answers()
    if stage == "joined":
        net.tunnel.sends(b"x")
        assert await receive(client, 1) == b"x"
    if stage == "moved":
        net.tunnel.refuses()
        net.tunnel.refuses()
        net.forgive()
        await settled(lambda: len(net.tunnels) == 3)
    if stage == "turned away":
        net.tunnel.refuses()
        net.tunnel.refuses()
        if net.frontend.dispatcher.waiting:
            await net.passes(10)
        assert net.frontend.counters.totals.failed == 1
    return client


@every_mode
@pytest.mark.parametrize("how", ["reset", "end"])
@pytest.mark.parametrize("sent", [b"", REQUEST])
@pytest.mark.parametrize("stage", STAGES)
async def test_a_client_may_leave_at_any_time(mock_clock: MockClock, replay: str, how: str, sent: bytes, stage: str) -> None:
    """What is left behind is checked when the block ends."""
    if stage == "moved" and replay == "never":
        return
    async with network(mock_clock, replay=replay, own_backend=True) as net:
        client = await bring_to(net, stage)
        if sent:
            await client.send_all(sent)
        if how == "reset":
            reset(client)
            await settled(lambda: not net.frontend.active)
            open_ = [t for t in net.tunnels if not t.closed]
            assert open_ == []
            assert net.in_flight() == {}
        else:
            await client.send_eof()
            await settled()
            if stage in ("opening", "opened", "joined", "moved"):
                await settled(lambda: net.tunnel.eof)
                assert net.tunnel.data == sent
                assert sum(net.in_flight().values()) == 1


@pytest.mark.parametrize("replay", ["opened", "first-byte"])
async def test_whatever_a_tunnel_says_after_the_client_left_is_nothing(mock_clock: MockClock, replay: str) -> None:
    async with network(mock_clock, replay=replay) as net:
        net.add("a", "b")
        client = await net.connect(sends=REQUEST)
        (entry,) = net.frontend.active
        reset(client)
        await settled(lambda: not net.frontend.active)
        net.tunnel.answers()
        net.frontend.peer_suspect("a")
        net.frontend.dispatcher.look_again()
        await net.passes(100)
        assert net.tunnel.reset == "the client has gone"
        assert len(net.tunnels) == 1
        assert entry.attempts.peer_id == ""
        assert net.roster.penalties == []


# The own backend


@every_mode
async def test_the_own_backend_is_reached_without_a_detour(mock_clock: MockClock, replay: str) -> None:
    async with network(mock_clock, replay=replay, own_backend=True) as net:
        net.own_backend_is_up()
        client = await net.connect(sends=REQUEST)
        assert net.in_flight() == {OWN: 1}
        assert net.backends.in_flight == 1
        server = await net.server()
        assert await receive(server, len(REQUEST)) == REQUEST
        await server.send_all(b"answer")
        assert await receive(client, 6) == b"answer"
        await client.send_all(b"more")
        assert await receive(server, 4) == b"more"
        await client.send_eof()
        assert await rest_of(server) == b""
        await server.send_all(b"end")
        await server.aclose()
        assert await rest_of(client) == b"end"
        await settled(lambda: not net.frontend.active)
        assert net.finished("ok") == 1
        assert net.tunnels == []


@every_mode
@pytest.mark.parametrize("sent", [b"", b"last words"])
async def test_an_end_that_came_before_the_own_backend_was_dialled(mock_clock: MockClock, replay: str, sent: bytes) -> None:
    async with network(mock_clock, replay=replay, own_backend=True) as net:
        client = await net.connect(sends=sent)
        await client.send_eof()
        await settled(lambda: all(entry._eof for entry in net.frontend.active))
        net.own_backend_is_up()
        net.frontend.dispatcher.look_again()
        server = await net.server()
        assert await rest_of(server) == sent
        await server.send_all(b"amen")
        await server.aclose()
        assert await rest_of(client) == b"amen"
        await settled(lambda: not net.frontend.active)
        assert net.finished("ok") == 1


@every_mode
async def test_a_large_transfer_through_the_own_backend(mock_clock: MockClock, replay: str) -> None:
    up, down = random.Random(4).randbytes(2_000_000), random.Random(5).randbytes(2_000_000)
    async with network(mock_clock, replay=replay, own_backend=True) as net:
        client = await net.connect(sends=up[:60_000])  # held, then replayed
        net.own_backend_is_up()
        net.frontend.dispatcher.look_again()
        server = await net.server()

        async def send(sink: trio.SocketStream, data: bytes) -> None:
            await sink.send_all(data)
            await sink.send_eof()

        got = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send, client, up[60_000:])
            got.append(await rest_of(server))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send, server, down)
            got.append(await rest_of(client))
        assert got == [up, down]
        await server.aclose()


async def test_an_own_backend_that_refuses_is_like_any_other(mock_clock: MockClock) -> None:
    async with network(mock_clock, own_backend=True) as net:
        net.own_backend_is_up()
        assert net.backend is not None
        net.backend.close()
        await net.connect(sends=REQUEST)
        await settled(lambda: net.frontend.dispatcher.waiting)
        assert net.roster.penalties == [(OWN, REFUSED_PENALTY_S)]
        assert net.in_flight() == {}
        net.add("a")
        await settled(lambda: net.tunnels)
        assert net.tunnel.data == REQUEST
        assert net.backends.services() == {"default": False}


@pytest.mark.parametrize("how", ["reset", "ended"])
async def test_until_its_first_byte_a_request_may_move_from_the_own_backend_too(mock_clock: MockClock, how: str) -> None:
    async with network(mock_clock, own_backend=True, replay="first-byte") as net:
        net.own_backend_is_up()
        client = await net.connect(sends=REQUEST)
        server = await net.server()
        assert await receive(server, len(REQUEST)) == REQUEST
        net.add("a")
        if how == "reset":
            reset(server)
        else:
            await server.aclose()
        await settled(lambda: net.tunnels)
        assert net.tunnel.data == REQUEST
        assert net.in_flight() == {"a": 1}
        assert net.backends.in_flight == 0
        net.tunnel.answers()
        net.tunnel.sends(b"saved")
        assert await receive(client, 5) == b"saved"


@pytest.mark.parametrize("replay", ["opened", "never"])
async def test_what_the_own_backend_has_seen_is_not_sent_twice(mock_clock: MockClock, replay: str) -> None:
    async with network(mock_clock, own_backend=True, replay=replay) as net:
        net.own_backend_is_up()
        client = await net.connect(sends=REQUEST)
        server = await net.server()
        assert await receive(server, len(REQUEST)) == REQUEST
        net.add("a")
        reset(server)
        assert await is_reset(client)
        assert net.tunnels == []


async def test_after_its_first_byte_a_request_stays_with_the_own_backend(mock_clock: MockClock) -> None:
    async with network(mock_clock, own_backend=True, replay="first-byte") as net:
        net.own_backend_is_up()
        client = await net.connect(sends=REQUEST)
        server = await net.server()
        assert await receive(server, len(REQUEST)) == REQUEST
        await server.send_all(b"200")
        assert await receive(client, 3) == b"200"
        net.add("a")
        reset(server)
        assert await is_reset(client)
        assert net.tunnels == []


async def test_a_large_upload_outgrows_what_is_kept_for_the_own_backend(mock_clock: MockClock) -> None:
    data = random.Random(6).randbytes(3_000_000)
    async with network(mock_clock, own_backend=True, replay="first-byte", replay_buffer_bytes=5000) as net:
        net.own_backend_is_up()
        client = await net.connect()
        server = await net.server()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.send_all, data)
            assert await receive(server, len(data)) == data
        net.add("a")
        reset(server)
        assert await is_reset(client)
        assert net.tunnels == []


async def test_an_own_backend_that_answers_before_it_reads(mock_clock: MockClock) -> None:
    """Request and answer are larger than all buffers, and each waits for the other side to read its part."""
    up, down = random.Random(11).randbytes(12_000_000), random.Random(12).randbytes(12_000_000)
    async with network(mock_clock, own_backend=True, replay_buffer_bytes=len(up)) as net:
        client = await net.connect(sends=up)
        net.own_backend_is_up()
        net.frontend.dispatcher.look_again()
        server = await net.server()

        async def send() -> None:
            await server.send_all(down)
            await server.send_eof()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            (entry,) = net.frontend.active
            await settled(lambda: entry.socket._out_size)
            assert entry.attempts.state is State.COMMITTED
            assert await receive(client, len(down)) == down
            await client.send_eof()
            assert await rest_of(server) == up
        assert await rest_of(client) == b""


async def test_a_client_that_leaves_during_the_dial_ends_it(mock_clock: MockClock) -> None:
    with Listener(backlog=0) as clogged:
        clogged.clog()
        async with network(mock_clock, own_backend=True) as net:
            net.own_backend_is_up()
            net.backends.all[0].target = (socket.AF_INET, (clogged.host, clogged.port))
            client = await net.connect(sends=REQUEST)
            assert net.backends.in_flight == 1
            reset(client)
            await settled(lambda: not net.frontend.active)
            assert net.backends.in_flight == 0
            await net.passes(10)
            assert net.backends.services() == {"default": True}  # it did not refuse


# With a real exit


@every_mode
async def test_a_real_exit_that_is_busier_than_believed_is_left_to_others(replay: str) -> None:
    data = random.Random(22).randbytes(200_000)
    busy, idle = Load(1), Load()  # which this entry believes to be the same
    async with (
        network(replay=replay) as net,
        link_pair(loads=(Load(), busy)) as (to_busy, _, busy_told, busy_events),
        link_pair(loads=(Load(), idle)) as (to_idle, _, _, idle_events),
    ):
        busy_backends, busy_listener = exit_of(net, busy_events, busy)
        idle_backends, idle_listener = exit_of(net, idle_events, idle)
        busy_told.load_told = lambda _link, others: net.selector.told("busy", others)  # type: ignore[method-assign]
        net.roster.nodes = {"busy": record("busy", available_vram=2), "idle": record("idle", available_vram=1)}
        net.roster.links = {"busy": to_busy, "idle": to_idle}  # type: ignore[dict-item]
        client = await net.connect(sends=data[:10])
        await client.send_all(data[10:])
        await client.send_eof()
        with busy_listener, idle_listener:
            server = await idle_listener.accept()
            net.clients.append(server)
            assert await rest_of(server) == data
            await server.send_all(b"served")
            await server.aclose()
            assert await rest_of(client) == b"served"
            assert busy_listener.waiting() == 0
        await settled(lambda: not net.frontend.active)
        assert [(row.had, row.believed) for row in net.frontend.counters.busier] == [(1, 0)]
        assert (busy.in_flight, idle.in_flight) == (busy_backends.in_flight, idle_backends.in_flight) == (1, 0)
        assert net.selector.in_flight("busy") == 1
        assert net.roster.penalties == []


@pytest.mark.parametrize("replay", ["opened", "first-byte"])
async def test_a_held_upload_of_many_windows_through_real_links(replay: str) -> None:
    """What entry and exit believe of each other, checked by their mux: a byte too many would cost them the link."""
    data = random.Random(13).randbytes(700_000)
    async with network(replay=replay, replay_buffer_bytes=1_000_000) as net, link_pair() as (entry_link, _, *events):
        exit_backends, listener = exit_of(net, events[1])
        client = await net.connect(sends=data)
        net.roster.nodes["far"] = record("far")
        net.roster.links["far"] = entry_link  # type: ignore[assignment]
        net.frontend.dispatcher.look_again()
        with listener:
            server = await listener.accept()
            net.clients.append(server)
            await client.send_all(b"tail")
            await client.send_eof()
            assert await rest_of(server) == data + b"tail"
            await server.send_all(data)
            await server.aclose()
            assert await rest_of(client) == data
        await settled(lambda: not net.frontend.active)
        assert events[0].closed == []
        assert exit_backends.in_flight == 0
        assert net.finished("ok") == 1


async def test_a_browsers_last_bytes_and_eof_arrive_through_real_links_though_the_server_ended_first() -> None:
    """The entry stays between a browser and its upstream to the end, and lets go of both in order."""
    body = random.Random(14).randbytes(60_000)
    head = b"POST / HTTP/1.1\r\nHost: localhost\r\nUser-Agent: Mozilla/5.0\r\nContent-Length: %d\r\n\r\n" % len(body)
    async with network() as net, link_pair() as (entry_link, _, *events):
        exit_backends, listener = exit_of(net, events[1])
        net.add("far")
        net.roster.links["far"] = entry_link  # type: ignore[assignment]
        client = await net.connect(sends=head)
        with listener:
            server = await listener.accept()
            net.clients.append(server)
            await server.send_all(b"not now")
            await server.send_eof()
            assert await rest_of(client) == b"not now"
            await client.send_all(body)
            await client.send_eof()
            assert await rest_of(server) == head + body
        await settled(lambda: not net.frontend.active and not exit_backends.in_flight)
        assert events[0].closed == []
        assert net.finished("ok") == 1
