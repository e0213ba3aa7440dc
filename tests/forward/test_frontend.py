"""The clients' ports and what all connections share. Single connections are in test_l4.py."""

from __future__ import annotations

import errno
import gc
import json
import socket
import ssl
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
import trio
from structlog.testing import capture_logs

from federation.errors import ListenFailed
from federation.forward import frontend as module
from federation.forward.attempts import Attempts
from federation.forward.counters import DECISIONS, Ending, Flow
from federation.forward.frontend import SILENT_S
from federation.forward.l4 import L4Client
from federation.forward.reject import REJECT_LINGER_S, Rejection
from federation.forward.route import Route
from federation.reactor import fdlimit
from federation.reactor.accepting import PAUSE_S
from federation.reactor.duplex import NullDuplex
from federation.reactor.sockets import SocketDuplex
from federation.units import Endpoint
from tests.support.entries import Net, network, record, settled
from tests.support.links import socket_pair
from tests.support.sockets import Listener, is_reset, reset

if TYPE_CHECKING:
    from trio.testing import MockClock

REQUEST = b"GET / HTTP/1.1\r\n\r\n"


async def rest_of(client: trio.SocketStream) -> bytes:
    return b"".join([chunk async for chunk in client])


def message(answer: bytes) -> str:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503 ")
    text: str = json.loads(body)["error"]["message"]
    return text


# Ports


async def test_each_port_serves_its_service(mock_clock: MockClock) -> None:
    async with network(mock_clock) as net:
        net.roster.nodes["a"] = record("a", services={"llm": True, "tts": True})
        net.add("b", tell=False)
        net.roster.links["a"] = net.roster.links["b"]
        (at,) = net.frontend.listen(Endpoint.parse("tts=127.0.0.1:0"))
        host, port = at.host, at.port
        assert host == "127.0.0.1"
        assert port not in (0, net.port)
        await net.connect(port=port)
        assert net.tunnel.service == "tts"
        assert net.in_flight() == {"a": 1}
        await net.connect()
        assert net.tunnel.service == "default"
        assert net.in_flight() == {"a": 1, "b": 1}
        for service in ("tts", "default"):
            assert net.metric("federation_connections_started_total", service=service) == 1


async def test_how_a_port_is_spoken_to(mock_clock: MockClock) -> None:
    async with network(mock_clock) as net:
        net.frontend._certificate.context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        for text, scheme in (
            ("127.0.0.1:0", "http"),
            ("http://127.0.0.1:0", "http"),
            ("tcp://127.0.0.1:0", "tcp"),
            ("https://127.0.0.1:0", "https"),
            ("0.0.0.0:0", "https"),
        ):
            (at,) = net.frontend.listen(Endpoint.parse(text, protocols=("http", "https", "tcp")))
            assert net.frontend.port_at(at) == (scheme, False)
        net.frontend._certificate.context = None
        assert net.frontend.port_at(at) == ("http", False)


async def test_ipv6_clients_are_served(mock_clock: MockClock) -> None:
    async with network(mock_clock) as net:
        net.add("a")
        try:
            (at,) = net.frontend.listen(Endpoint.parse("[::1]:0"))
            host, port = at.host, at.port
        except ListenFailed:
            pytest.skip("no IPv6 here")
        assert host == "::1"
        client = socket.socket(socket.AF_INET6)
        client.connect((host, port))
        await settled(lambda: net.tunnels)
        (entry,) = net.frontend.active
        assert entry.client_name == f"[::1]:{client.getsockname()[1]}"
        reset(client)


async def test_a_port_in_use_is_said_in_plain_words(mock_clock: MockClock) -> None:
    async with network(mock_clock) as net:
        with Listener() as taken, pytest.raises(ListenFailed, match=rf"{taken.port}.*in use"):
            net.frontend.listen(Endpoint.parse(taken.address))
        assert len(net.frontend._listeners) == 1


async def test_an_address_of_nobody_is_said_in_plain_words(mock_clock: MockClock) -> None:
    async with network(mock_clock) as net:
        with pytest.raises(ListenFailed, match=r"192\.0\.2\.1"):
            net.frontend.listen(Endpoint.parse("192.0.2.1:0"))


async def test_a_port_may_be_taken_again_at_once(mock_clock: MockClock) -> None:
    """A restart must not wait for the kernel to forget the connections of before."""
    async with network(mock_clock) as net:
        client = await net.connect(sends=REQUEST)
        net.frontend.stop_listening()
        await rest_of(client)
        await client.aclose()
        assert net.frontend.listen(Endpoint.parse(f"127.0.0.1:{net.port}"))[0].port == net.port


async def test_small_answers_are_not_delayed(mock_clock: MockClock) -> None:
    async with network(mock_clock) as net:
        await net.connect()
        (entry,) = net.frontend.active
        assert entry.socket.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def test_many_clients_at_once_are_all_accepted(mock_clock: MockClock) -> None:
    async with network(mock_clock) as net:
        net.add("a", "b", "c")
        socks = [socket.create_connection(("127.0.0.1", net.port)) for _ in range(150)]  # more than two turns
        await settled(lambda: len(net.tunnels) == 150)
        assert net.in_flight() == {"a": 50, "b": 50, "c": 50}
        for sock in socks:
            reset(sock)


async def test_stopping_closes_the_ports_and_lets_the_others_finish(mock_clock: MockClock) -> None:
    async with network(mock_clock) as net:
        net.add("a")
        client = await net.connect(sends=REQUEST)
        net.tunnel.answers()
        net.roster.nodes.clear()
        held = await net.connect(sends=REQUEST)
        net.frontend.stop_listening()
        with socket.socket() as late:
            assert late.connect_ex(("127.0.0.1", net.port)) == errno.ECONNREFUSED
        assert "shutting down" in message(await rest_of(held))
        net.add("b")  # too late for those who were told to go
        await settled()
        assert len(net.tunnels) == 1
        await held.aclose()
        net.tunnel.sends(b"answer")
        net.tunnel.ends()
        assert not net.frontend.idle.is_set()
        assert await client.receive_some() == b"answer"
        await client.aclose()
        await settled(net.frontend.idle.is_set)
        net.frontend.stop_listening()  # once more is no harm


async def test_at_the_end_of_the_drain_everything_is_cut(mock_clock: MockClock) -> None:
    async with network(mock_clock, own_backend=True) as net:
        opening = await net.connect()
        net.add("a")
        await settled(lambda: net.tunnels)
        joined = await net.connect()
        net.tunnel.answers()
        net.roster.nodes.clear()
        held = await net.connect()
        net.own_backend_is_up()
        dialling = await net.connect()
        net.frontend.abort_all("this node stops")
        for client in (opening, joined, held, dialling):
            assert await is_reset(client)
        assert not net.frontend.active
        net.frontend.abort_all("again")
        assert net.finished("error") == 4


# Limits


async def pause_for(net: Net, monkeypatch: pytest.MonkeyPatch, code: int) -> list[int]:
    """From now on `accept` fails with `code`; the list grows with every attempt."""
    attempts: list[int] = []

    class Exhausted:
        def __init__(self, sock: socket.socket) -> None:
            self._sock = sock
            self.family = sock.family

        def fileno(self) -> int:
            return self._sock.fileno()

        def close(self) -> None:
            self._sock.close()

        def _accept(self) -> Any:
            attempts.append(code)
            if len(attempts) > 3:
                return self._sock._accept()  # type: ignore[attr-defined]
            raise OSError(code, "no")

    (listener,) = net.frontend._listeners
    exhausted: Any = Exhausted(listener)
    net.frontend._listeners[:] = [exhausted]
    net.reactor.drop(listener.fileno())
    net.reactor.add(listener.fileno(), module.READ, lambda _mask: net.frontend._accept(exhausted, Route("default")))
    return attempts


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
async def test_without_descriptors_accepting_pauses_and_goes_on(
    mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    async with network(mock_clock) as net:
        net.add("a")
        attempts = await pause_for(net, monkeypatch, code)
        with capture_logs() as logs, socket.create_connection(("127.0.0.1", net.port)) as client:
            await settled(lambda: attempts)
            await settled()
            assert len(attempts) == 1  # the client waits in the kernel's queue and nobody spins
            assert [log["event"] for log in logs] == ["no descriptor left for a client; accepting pauses"]
            await net.passes(PAUSE_S)
            assert len(attempts) == 2
            await net.passes(PAUSE_S)
            await net.passes(PAUSE_S)
            await settled(lambda: net.tunnels)
            reset(client)
        assert net.frontend.counters.totals.started == 1


async def test_an_error_of_accept_costs_no_more_than_its_client(
    mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with network(mock_clock) as net:
        net.add("a")
        attempts = await pause_for(net, monkeypatch, errno.EPERM)
        with capture_logs() as logs, socket.create_connection(("127.0.0.1", net.port)) as client:
            await settled(lambda: net.tunnels)
            assert len(attempts) >= 4  # three clients were lost, without a pause
            assert logs == []
            reset(client)
        assert net.frontend.counters.totals.started == 1


async def test_an_error_that_nobody_expects_is_said_and_tried_again(
    mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with network(mock_clock) as net:
        net.add("a")
        attempts = await pause_for(net, monkeypatch, errno.EIO)
        with capture_logs() as logs, socket.create_connection(("127.0.0.1", net.port)) as client:
            await settled(lambda: attempts)
            for _ in range(3):
                await net.passes(PAUSE_S)
            await settled(lambda: net.tunnels)
            assert [log["event"] for log in logs] == ["accepting a client failed; it is tried again"]
            reset(client)
        assert net.frontend.counters.totals.started == 1


async def test_a_real_lack_of_descriptors_is_survived(mock_clock: MockClock) -> None:
    resource = pytest.importorskip("resource")
    async with network(mock_clock) as net:
        net.add("a")
        sock = socket.socket()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (sock.fileno() + 1, hard))
            spare: list[socket.socket] = []
            with suppress(OSError):
                while True:
                    spare.append(socket.socket())
            sock.connect(("127.0.0.1", net.port))
            await settled()
            assert net.frontend.counters.totals.started == 0
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for one in spare:
            one.close()
        await net.passes(PAUSE_S)
        await settled(lambda: net.tunnels)
        reset(sock)


async def test_the_last_descriptors_are_not_for_clients(mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    left = [False]
    monkeypatch.setattr(fdlimit, "is_reserve", lambda _fd: True)
    monkeypatch.setattr(fdlimit, "are_left", lambda _fd: left[0])
    async with network(mock_clock) as net:
        net.add("a")
        with capture_logs() as logs:
            waiting = [socket.create_connection(("127.0.0.1", net.port)) for _ in range(2)]
            await settled(lambda: net.tunnels)
            for _ in range(3):
                await net.passes(PAUSE_S)
            assert net.frontend.counters.totals.started == 1
            assert [log["event"] for log in logs] == ["no descriptor left for a client; accepting pauses"]
            left[0] = True
            await net.passes(PAUSE_S)
            await settled(lambda: net.frontend.counters.totals.started == 2)
        for sock in waiting:
            reset(sock)
        await net.passes(PAUSE_S)


async def test_who_says_nothing_gives_way_when_descriptors_run_out(
    mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_short = False
    monkeypatch.setattr(fdlimit, "is_reserve", lambda _fd: is_short)
    monkeypatch.setattr(fdlimit, "are_left", lambda _fd: not is_short)
    monkeypatch.setattr(module, "ENDED_AT_ONCE", 2)
    async with network(mock_clock) as net:
        net.add("a")
        oldest, older, old = [await net.connect() for _ in range(3)]
        asks = await net.connect(sends=REQUEST)
        told = await net.connect()
        for tunnel in net.tunnels:
            tunnel.answers()
        net.tunnel.sends(b"220 welcome")
        await net.passes(SILENT_S + 1)
        is_short = True
        new = await net.connect()
        await net.passes(PAUSE_S)
        for client in (oldest, older):
            assert await is_reset(client)
        assert [tunnel.closed for tunnel in net.tunnels] == [True, True, False, False, False, False]
        await net.passes(PAUSE_S)
        assert await is_reset(old)
        for _ in range(3):
            await net.passes(PAUSE_S)
        assert {entry.flow.connection for entry in net.frontend.active} == {4, 5, 6}  # asks, told, new
        assert "said nothing" in str(net.frontend.counters.endings[0].error)
        is_short = False
        await net.passes(PAUSE_S)
        assert {asks, told, new} <= set(net.clients)


async def test_idle_connections_of_backends_give_way_before_any_client(
    mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_short = False
    async with network(mock_clock) as net:
        net.add("a")
        silent = await net.connect()
        await net.passes(SILENT_S + 1)
        ours, theirs = socket_pair()
        end = SocketDuplex(net.reactor, ours, lambda _end: None)
        end.other = NullDuplex()
        end.start(read=False)
        assert net.backends.kept.add("backend", "", end)
        monkeypatch.setattr(fdlimit, "is_reserve", lambda _fd: is_short)
        monkeypatch.setattr(fdlimit, "are_left", lambda _fd: not is_short or not len(net.backends.kept))
        is_short = True
        await net.connect()
        await net.passes(PAUSE_S)
        assert end.closed
        assert net.clients[0] is silent
        assert {client.flow.connection for client in net.frontend.active} == {1, 2}
        is_short = False
        theirs.close()
        await net.passes(PAUSE_S)


async def test_a_pause_does_not_outlive_the_port(mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    async with network(mock_clock) as net:
        attempts = await pause_for(net, monkeypatch, errno.EMFILE)
        with socket.create_connection(("127.0.0.1", net.port)), capture_logs() as logs:
            await settled(lambda: attempts)
            net.frontend.stop_listening()
            await net.passes(PAUSE_S)
        assert [log["log_level"] for log in logs] == ["warning"]


async def test_a_client_that_is_gone_when_it_is_accepted_costs_nobody_else(
    mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """macOS says EINVAL to an option for a socket that was reset; a port that went deaf for it would be a pity."""

    def setsockopt(sock: socket.socket, *args: Any) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    async with network(mock_clock) as net:
        net.add("a")
        with monkeypatch.context() as reset_sockets:
            reset_sockets.setattr(socket.socket, "setsockopt", setsockopt)
            await net.connect()
        await net.connect(sends=REQUEST)
        assert net.tunnel.data == REQUEST


async def test_more_clients_than_allowed_are_told_so(mock_clock: MockClock) -> None:
    async with network(mock_clock, max_connections=2) as net:
        net.add("a")
        first, _ = await net.connect(), await net.connect()
        third = await net.connect()
        await third.send_all(REQUEST)
        assert "limit of 2 connections" in message(await rest_of(third))
        assert len(net.tunnels) == 2
        assert net.in_flight() == {"a": 2}
        reset(first)
        await settled(lambda: net.in_flight() == {"a": 1})
        await net.connect()
        assert len(net.tunnels) == 3


async def test_those_turned_away_take_nobodys_place(mock_clock: MockClock) -> None:
    """They stay a moment to read why. With retries coming in all the time nobody would ever get in again."""
    async with network(mock_clock, max_connections=1) as net:
        net.add("a")
        first = await net.connect()
        for _ in range(5):
            await net.connect(sends=REQUEST)
        reset(first)
        await settled(lambda: not net.in_flight())
        assert len(net.frontend.active) == 5
        await net.connect()
        assert net.in_flight() == {"a": 1}
        await net.passes(REJECT_LINGER_S)
        assert len(net.frontend.active) == 1
        assert net.frontend.counters.totals.failed == 5
        assert not net.frontend.rejected_clients


# Those who wait


async def test_many_changes_are_one_new_look(mock_clock: MockClock) -> None:
    async with network(mock_clock) as net:
        for _ in range(3):
            await net.connect()
        looks: list[str] = []
        real = net.roster.eligible
        net.roster.eligible = lambda route: (looks.append(route.service), real(route))[1]  # type: ignore[method-assign]
        for _ in range(10):
            net.frontend.dispatcher.look_again()
        await settled(lambda: looks)
        await settled()
        assert len(looks) == 1  # where the first finds nobody, the others do not either
        assert len(net.frontend.dispatcher.waiting) == 3
        net.add("a")
        await settled(lambda: len(net.tunnels) == 3)
        assert not net.frontend.dispatcher.waiting


async def test_a_change_while_looking_is_not_missed(mock_clock: MockClock) -> None:
    """Somebody's attempt itself brings news: all must look again."""
    async with network(mock_clock) as net:
        for _ in range(3):
            await net.connect()
        real = net.roster.eligible
        looks = 0

        def eligible(route: Route) -> Any:
            nonlocal looks
            looks += 1
            nodes = real(route)
            if looks == 1:
                net.add("a")  # tells, in the middle of it
            return nodes

        net.roster.eligible = eligible  # type: ignore[method-assign]
        net.frontend.dispatcher.look_again()
        await settled(lambda: len(net.tunnels) == 3)


async def test_news_are_nothing_to_do_where_nobody_waits(mock_clock: MockClock) -> None:
    async with network(mock_clock) as net:
        net.frontend.dispatcher.look_again()
        assert not net.frontend.dispatcher._retry_is_queued


# What is told


async def test_decisions_are_kept_and_bounded(mock_clock: MockClock) -> None:
    async with network(mock_clock) as net:
        net.add("a", "b")
        await net.connect()
        net.tunnel.refuses()
        first, second = net.frontend.counters.decisions
        assert (first.route.service, first.attempt, first.pick.chosen.peer_id) == ("default", 1, "a")
        assert (second.route.service, second.attempt, second.pick.chosen.peer_id) == ("default", 2, "b")
        assert [len(decision.pick.candidates) for decision in (first, second)] == [2, 1]
        (entry,) = net.frontend.active
        assert first.client == second.client == entry.client_name
        for _ in range(DECISIONS):
            net.roster.barred.clear()
            net.tunnel.refuses()
            net.frontend.dispatcher.look_again()
            await settled()
        assert len(net.frontend.counters.decisions) == DECISIONS


async def test_how_connections_ended_is_kept_and_told(mock_clock: MockClock) -> None:
    async with network(mock_clock) as net:
        told: list[Ending] = []
        net.frontend.counters.on_ending = told.append
        net.add("a")
        client = await net.connect()
        await client.send_all(b"asks")
        net.tunnel.answers()
        await settled(lambda: net.tunnel.data == b"asks")
        mock_clock.jump(2.5)
        net.tunnel.sends(b"answer")
        net.tunnel.ends()
        assert await client.receive_some() == b"answer"
        await client.aclose()
        await settled(lambda: not net.frontend.active)
        reset_one = await net.connect()
        net.tunnel.answers()
        net.tunnel.sends(b"x")
        net.tunnel.breaks("backend reset")
        await settled(lambda: not net.frontend.active)
        await reset_one.aclose()
        first, second = net.frontend.counters.endings
        assert told == [first, second]
        assert (first.flow, first.route.service, first.peer_id, first.attempts) == (Flow(1), "default", "a", 1)
        assert first.seconds == pytest.approx(2.5, abs=0.1)
        assert (first.received, first.delivered, first.error) == (4, 6, None)
        assert (second.flow, second.error) == (Flow(2), "backend reset")


async def test_each_service_has_its_own_turns(mock_clock: MockClock) -> None:
    """least-requests: clients of two services in alternation must not make newcomers of each other's peers."""
    async with network(mock_clock, policy="least-requests") as net:
        net.roster.nodes |= {
            peer: record(peer, services={service: True}, available_vram=vram)
            for peer, service, vram in [("a", "default", 2), ("b", "default", 1), ("c", "tts", 2), ("d", "tts", 1)]
        }
        net.add("a", "b", tell=False)
        net.add("c", "d", tell=False)
        net.roster.nodes["c"] = record("c", services={"tts": True}, available_vram=2)
        net.roster.nodes["d"] = record("d", services={"tts": True}, available_vram=1)
        tts = net.frontend.listen(Endpoint.parse("tts=127.0.0.1:0"))[0].port
        socks = []
        for n in range(8):
            socks.append(socket.create_connection(("127.0.0.1", (net.port, tts)[n % 2])))
            await settled(lambda n=n: len(net.tunnels) == n + 1)
        assert [t.peer_id for t in net.tunnels] == ["a", "c", "b", "d", "a", "c", "b", "d"]
        for sock in socks:
            reset(sock)


async def test_the_time_to_open_is_measured_from_the_connect_on(mock_clock: MockClock) -> None:
    async with network(mock_clock) as net:
        await net.connect()
        await net.passes(2.0)
        net.add("a")
        await settled(lambda: net.tunnels)
        await net.passes(0.5)
        net.tunnel.answers()
        assert net.metric("federation_open_seconds_sum") == pytest.approx(2.5)
        assert net.metric("federation_open_seconds_count") == 1


@pytest.mark.parametrize(
    ("how", "reason"), [("refuses", "refused"), ("breaks", "lost"), ("says nothing", "timeout"), ("is gone", "unreachable")]
)
async def test_retries_are_counted_by_their_reason(mock_clock: MockClock, how: str, reason: str) -> None:
    async with network(mock_clock) as net:
        net.add("a", "b")
        if how == "is gone":
            net.roster.links["a"].is_closed = True
        await net.connect()
        if how == "refuses":
            net.tunnel.refuses()
        elif how == "breaks":
            net.tunnel.breaks()
        elif how == "says nothing":
            await net.passes(3.0)
        assert net.tunnel.peer_id == "b"
        assert net.metric("federation_retries_total", reason=reason) == 1
        assert net.metric("federation_retries_total") == 1
        assert net.frontend.counters.totals.retried == 1


async def test_picks_are_counted_once_by_the_tier_that_decided(mock_clock: MockClock) -> None:
    async with network(mock_clock) as net:
        frontend = net.frontend
        frontend.counters.count_picks()
        net.add("a")
        await net.connect(sends=b"x")
        await settled()
        net.add("b")
        await net.connect(sends=b"x")
        await settled()
        for _ in range(3):
            frontend.counters.count_picks()
        assert net.metric("federation_picks_sampled_total", tier="only") == 1
        assert net.metric("federation_picks_sampled_total", tier="in_flight") == 1
        assert net.metric("federation_picks_sampled_total") == 2
        await net.connect(sends=b"x")
        await settled()
        frontend.counters.count_picks()
        assert net.metric("federation_picks_sampled_total") == 3


async def test_a_client_that_cannot_be_served_costs_nobody_else(
    mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bug of ours: the reactor drops a descriptor whose callback raises, and here that is the listener's."""
    async with network(mock_clock) as net:
        net.add("a")
        with monkeypatch.context() as broken, capture_logs() as logs:
            broken.setattr(net.selector, "pick", lambda *_, **__: 1 / 0)
            client = await net.connect()
            assert await is_reset(client)
        assert [(log["log_level"], log["event"]) for log in logs] == [("error", "a client could not be served")]
        assert not net.frontend.active
        await net.connect(sends=REQUEST)
        assert net.tunnel.data == REQUEST


async def test_a_client_that_is_gone_leaves_no_cycle(mock_clock: MockClock) -> None:
    """Thousands of connections a second must leave nothing to the garbage collector, however they end."""
    async with network(mock_clock, own_backend=True, hold_s=1) as net:
        gc.collect()
        gc.disable()
        try:
            for how in ("waits", "opening", "streaming", "moved", "rejected", "own backend"):
                await one_client(net, how)
            net.reactor.call_later(1.0, lambda: None)
            await net.passes(1.0)  # the reactor holds the latest timer that fired
            left = [type(thing).__name__ for thing in gc.get_objects() if isinstance(thing, (L4Client, Attempts, Rejection))]
        finally:
            gc.enable()
        assert left == []


async def one_client(net: Net, how: str) -> None:
    if how in ("opening", "streaming", "moved"):
        net.add("a", "b")
    if how == "own backend":
        net.own_backend_is_up()
    client = await net.connect(sends=REQUEST)
    if how == "moved":
        net.tunnel.refuses()
    if how in ("streaming", "moved"):
        net.tunnel.answers()
        net.tunnel.sends(b"hello")
    if how == "rejected":
        await net.passes(1)
        await rest_of(client)
    if how == "own backend":
        await net.server()
    reset(client)
    await settled(lambda: not net.frontend.active)
    net.tunnels.clear()
    net.roster.nodes.clear()


# Which clients are clients of HTTP


async def test_a_service_is_http_as_soon_as_a_node_says_so_and_for_new_connections(mock_clock: MockClock) -> None:
    async with network(mock_clock) as net:
        net.add("a")
        await net.connect(sends=REQUEST)
        assert net.tunnel.data == REQUEST
        net.add("a", http=("default",))
        net.is_http = True
        await net.connect(sends=REQUEST.replace(b"\r\n", b"\r\nHost: localhost\r\n", 1))
        assert b"X-Forwarded-For" in net.tunnel.data
        assert sorted(type(client).__name__ for client in net.frontend.active) == ["HttpClient", "L4Client"]
        del net.roster.nodes["a"]
        net.is_http = False
        await net.connect()
        assert sum(isinstance(client, L4Client) for client in net.frontend.active) == 2


@pytest.mark.parametrize("said", ["tcp://", "http://", ""])
async def test_what_a_person_says_of_a_port_holds(mock_clock: MockClock, said: str) -> None:
    async with network(mock_clock) as net:
        net.add("a", http=("default",) if said != "http://" else ())
        (place,) = net.frontend.listen(Endpoint.parse(f"{said}127.0.0.1:0", protocols=("http", "tcp")))
        net.is_http = said != "tcp://"
        await net.connect(port=place.port)
        (client,) = net.frontend.active
        assert isinstance(client, L4Client) is (said == "tcp://")


async def test_a_backend_that_is_never_http_decides_for_its_service(mock_clock: MockClock) -> None:
    backends = (Endpoint.parse("tcp://127.0.0.1:9", protocols=("tcp",)),)
    async with network(mock_clock, offers=backends) as net:
        net.add("a", http=("default",))
        await net.connect()
        assert [type(client).__name__ for client in net.frontend.active] == ["L4Client"]


async def test_a_client_between_two_requests_is_not_busy(mock_clock: MockClock) -> None:
    async with network(mock_clock, http=True) as net:
        net.add("a")
        await net.connect()
        assert net.frontend.busy == 0
        await net.connect(sends=REQUEST.replace(b"\r\n", b"\r\nHost: localhost\r\n", 1))
        assert (net.frontend.busy, len(net.frontend.active)) == (1, 2)
