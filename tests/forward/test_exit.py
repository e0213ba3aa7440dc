"""Tunnels from a real link to a backend, step by step."""

from __future__ import annotations

import errno
import gc
import socket
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio
from structlog.testing import capture_logs

from federation.forward.exit import ExitFlow, serve_tunnel
from federation.forward.pushing import Pushing
from federation.net.link.channel import INITIAL_WINDOW
from federation.net.link.frames import ANY_LOAD, FULL
from federation.net.link.mux import Load, Mux
from federation.reactor import connect as connect_module
from federation.reactor.connect import Connect
from federation.reactor.sockets import SocketDuplex
from tests.support.duplex import FakeChannel, Rig, TcpSide, check_duplex
from tests.support.entries import settled
from tests.support.exits import Exit, Tunnels, believe, make_exit, serve, tunnels
from tests.support.links import End, until
from tests.support.sockets import CountingReactor, Listener, is_reset, open_descriptors, quiet, read_all, reset, running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from trio.testing import MockClock


async def test_a_tunnel_reaches_the_backend() -> None:
    async with tunnels() as t:
        channel, end = t.open()
        async with await t.listener.accept() as server:
            await until(lambda: end.heard == ["OPENED"])
            assert t.exit.backends.in_flight == 1
            assert not t.exit.backends.idle.is_set()
            channel.send(b"question")
            assert await server.receive_some() == b"question"
            await server.send_all(b"answer")
            await until(lambda: end.data == b"answer")
            channel.send_eof()
            assert await server.receive_some() == b""
            assert t.exit.backends.in_flight == 1  # half-closed is still in flight
            await server.send_all(b" and more")
        await until(lambda: end.heard[-1] == "EOF")
        assert end.data == b"answer and more"


async def test_one_entry_gets_so_many_at_once_and_others_and_own_clients_are_none_the_worse() -> None:
    async with tunnels(max_connections_per_peer=2) as t:
        first, _ = t.open()
        second, _ = t.open()
        _, third = t.open()
        await until(lambda: third.heard)
        assert third.heard == ["REFUSED this node takes 2 connections from one peer"]
        by_entry = t.exit.backends.load.by_entry
        (entry,) = by_entry
        assert by_entry == {entry: 2}
        ends: list[SocketDuplex | None] = []
        for who in ("", "another"):
            serve(t.exit.backends, "default", lambda end, _why: ends.append(end), entry_id=who)
        await until(lambda: len(ends) == 2)
        assert by_entry == {entry: 2, "another": 1, "": 1}
        first.abort("done")
        await until(lambda: by_entry[entry] == 1)
        fourth, heard = t.open()
        await until(lambda: heard.heard == ["OPENED"])
        for end in (second, fourth, *ends):
            assert end is not None
            end.abort("done")
        await until(lambda: not by_entry)  # nothing is kept of who has no connection


async def test_what_came_early_goes_to_the_backend_in_order_and_the_eof_behind_it() -> None:
    early = bytes(range(256)) * (INITIAL_WINDOW // 256)
    async with tunnels() as t:
        channel, end = t.open()
        for at in range(0, len(early), 5000):
            channel.send(early[at : at + 5000])
        channel.send_eof()
        async with await t.listener.accept() as server:
            assert await read_all(server) == early
            await server.send_all(b"got it")
        await until(lambda: end.heard[-1] == "EOF")
        assert end.data == b"got it"
        assert end.heard[0] == "OPENED"


async def test_what_came_early_is_not_kept_once_it_is_delivered() -> None:
    """A window of it for each of a thousand long connections would be 64 MB."""
    async with tunnels() as t:
        channel, _ = t.open()
        channel.send(bytes(INITIAL_WINDOW))
        async with await t.listener.accept() as server:
            await server.receive_some(1)
            gc.collect()
            flows = [thing for thing in gc.get_objects() if isinstance(thing, ExitFlow)]
            assert [flow._early for flow in flows if flow._early] == []
            channel.abort("over")
            assert await is_reset(server)


async def test_an_entry_that_gave_up_before_the_dial_costs_the_backend_nothing() -> None:
    """OPEN, bytes and RST arrive together, as they do when this node was stopped for a while: nothing is delivered."""
    async with tunnels() as t:
        channel, end = t.open()
        channel.send(b"POST /pay HTTP/1.1\r\n\r\n")
        channel.abort("no answer within 3 s")
        _, next_end = t.open()  # behind it on the same connection: when this is answered, the first was dealt with
        await until(lambda: next_end.heard == ["OPENED"])
        assert t.exit.loads == [1]
        assert t.listener.waiting() == 1
        assert end.heard == []


async def test_an_entry_that_gives_up_during_the_dial_cancels_it() -> None:
    async with tunnels(backlog=0) as t:
        t.listener.clog()
        at_rest = len(t.exit.reactor)
        channel, end = t.open()
        await until(lambda: t.exit.backends.in_flight == 1)
        assert len(t.exit.reactor) == at_rest + 1
        channel.abort("the client has gone")
        await until(lambda: t.exit.backends.in_flight == 0)
        assert len(t.exit.reactor) == at_rest
        assert t.exit.backends.all[0].healthy  # it did not refuse
        assert not any(t.exit.reactor._timers.values())
        assert end.heard == []


async def test_a_lost_link_cancels_the_dial() -> None:
    async with tunnels(backlog=0) as t:
        t.listener.clog()
        t.open()
        await until(lambda: t.exit.backends.in_flight == 1)
        t.link.fail("cable pulled")
        await until(lambda: t.exit.backends.in_flight == 0)


async def test_a_backend_that_does_not_answer_the_dial_is_refused_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connect_module, "CONNECT_TIMEOUT_S", 0.05)
    async with tunnels(backlog=0) as t:
        t.listener.clog()
        _, end = t.open()
        await until(lambda: end.heard)
        assert end.heard == [f"REFUSED backend {t.listener.address}: no answer within 0.05 s"]
        assert t.exit.backends.services() == {"default": False}


async def test_a_backend_that_accepts_and_says_nothing_is_waited_for() -> None:
    async with tunnels() as t:
        channel, end = t.open()
        channel.send(b"question")
        async with await t.listener.accept() as server:
            assert await server.receive_some() == b"question"
            assert end.heard == ["OPENED"]
            assert not any(t.exit.reactor._timers.values())
            channel.abort("the client has gone")
            assert await is_reset(server)


async def test_a_refused_dial_is_said_to_the_entry() -> None:
    async with tunnels(listening=False) as t:
        channel, end = t.open()
        channel.send(b"early")
        await until(lambda: end.heard)
        assert end.heard == [f"REFUSED backend {t.listener.address}: Connection refused"]
        assert channel.closed
        assert t.exit.loads == [1, 0]
        _, second = t.open()  # known by now
        await until(lambda: second.heard)
        assert second.heard == ["REFUSED the backend is down: Connection refused"]
        assert t.exit.loads == [1, 0]


@pytest.mark.parametrize(
    ("code", "when"), [(errno.EMFILE, "socket"), (errno.ENETUNREACH, "connect")], ids=["no descriptor", "no route"]
)
async def test_a_dial_that_fails_at_once(monkeypatch: pytest.MonkeyPatch, code: int, when: str) -> None:
    class Broken(socket.socket):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            if when == "socket":
                raise OSError(code, "Too many open files")
            super().__init__(*args, **kwargs)

        def connect_ex(self, address: Any) -> int:
            return code

    async with tunnels() as t:
        monkeypatch.setattr(connect_module.socket, "SocketType", Broken)
        before = open_descriptors()
        _, end = t.open()
        await until(lambda: end.heard)
        monkeypatch.undo()
        assert end.heard[0].startswith("REFUSED backend")
        assert t.exit.loads == [1, 0]
        assert open_descriptors() == before
        assert t.exit.backends.all[0].healthy is (code == errno.EMFILE)  # which is no fault of the backend's


async def test_a_backend_that_breaks_in_what_came_early_resets_the_tunnel_and_nothing_else() -> None:
    async with tunnels() as t:
        with capture_logs() as logs:
            dialled: list[SocketDuplex | None] = []
            serve(t.exit.backends, "default", lambda end, why: dialled.append(end))
            server = await t.listener.accept()
            await until(lambda: dialled)
            end = dialled[0]
            assert end is not None
            sink = end.other = End()
            reset(server)
            end.send(b"early")
            end.send(b"more")
            end.start()
            assert end.closed
            assert [heard[:3] for heard in sink.heard] == ["RST"]
            assert t.exit.backends.in_flight == 0
        assert logs == []


@pytest.mark.parametrize(
    ("service", "settings", "reason"),
    [
        ("other", {}, "this node does not offer that service"),
        ("default", {"capacity": 1}, "this node is at its capacity"),
    ],
)
async def test_what_is_not_offered_is_refused_without_a_dial(service: str, settings: dict[str, Any], reason: str) -> None:
    async with tunnels(**settings) as t:
        _, held = t.open()
        await until(lambda: held.heard == ["OPENED"])
        _, end = t.open(service)
        await until(lambda: end.heard)
        assert end.heard == [f"REFUSED {reason}"]
        assert t.listener.waiting() == 1  # closes the one that is held


# The load is compared


@contextmanager
def load_by_others(t: Tunnels, connections: int = 1) -> Iterator[None]:
    load = t.exit.backends.load
    load.change("another", connections)
    yield
    load.change("another", -connections)


async def test_a_full_node_says_so_to_an_entry_that_understands() -> None:
    async with tunnels(tells_load=True, capacity=1) as t:
        _, held = t.open()
        await until(lambda: held.heard == ["OPENED"])
        assert t.exit.backends.refused_as_full == set()
        for believed in (0, 1, 7, ANY_LOAD):
            _, end = t.open(believed=believed)
            await until(lambda end=end: end.heard)
            assert end.heard == [f"BUSIER {FULL}"]
            assert t.exit.backends.refused_as_full == {t.exit_link.peer_id}
        assert t.exit.loads == [1]
        assert t.told == []  # of what others have here there was no news
        assert t.listener.waiting() == 1


async def test_an_entry_that_was_refused_for_want_of_room_hears_when_there_is_some() -> None:
    async with tunnels(tells_load=True, capacity=1) as t:
        backends = t.exit.backends
        pushing = Pushing(t.exit.reactor, {t.exit_link.peer_id: t.exit_link}.get, backends)
        backends._on_load = lambda _entry_id: pushing.changed()
        held, end = t.open()
        await until(lambda: end.heard == ["OPENED"])
        _, refused = t.open()
        await until(lambda: refused.heard == [f"BUSIER {FULL}"])
        assert t.told == []
        held.abort("done")
        await until(lambda: t.told == [0])  # which is no other load than before
        assert backends.refused_as_full == set()


async def test_who_asks_while_a_place_is_handed_out_is_one_of_those_who_hear_of_it() -> None:
    async with tunnels(tells_load=True, capacity=1) as t:
        t.exit.backends.hands_out = True
        _, end = t.open()
        await until(lambda: end.heard == [f"BUSIER {FULL}"])
        assert t.exit.backends.refused_as_full == {t.exit_link.peer_id}
        t.exit.backends.hands_out = False
        _, again = t.open()
        await until(lambda: again.heard == ["OPENED"])


async def test_compare_and_raise_are_one_step() -> None:
    """The OPENs of two entries lie there, with one belief: they heard nothing of each other."""
    with Listener() as listener:
        exit_ = make_exit(listener.address)
        believe(exit_, listener)
        links = [StoppedLink(f"entry{n}", exit_.backends.load) for n in range(2)]
        channels = [FakeChannel(), FakeChannel()]
        async with running(exit_.reactor):
            for link, channel in zip(links, channels, strict=True):
                serve_tunnel(exit_.backends, link, channel, "default", 0)  # type: ignore[arg-type]
            for link in links:
                link.reads()
            assert channels[1].heard == ["BUSIER 1"]
            assert exit_.loads == [1]
            await until(lambda: channels[0].heard == ["OPENED"])
            channels[0].other.abort("over")
        assert exit_.backends.in_flight == 0


async def test_an_entry_is_not_sent_back_for_what_is_its_own() -> None:
    async with tunnels(tells_load=True) as t:
        ends = [t.open(believed=0)[1] for _ in range(5)]
        await until(lambda: all(end.heard == ["OPENED"] for end in ends))
        with load_by_others(t, 2):
            _, late = t.open(believed=1)
            await until(lambda: late.heard)
            assert late.heard == ["BUSIER 2"]
            assert t.told == [2]  # before that answer
            _, again = t.open(believed=2)
            await until(lambda: again.heard == ["OPENED"])


@pytest.mark.parametrize("believed", [1, 2, ANY_LOAD])
async def test_who_believes_enough_or_does_not_compare_is_taken(believed: int) -> None:
    async with tunnels(tells_load=True) as t:
        with load_by_others(t):
            _, end = t.open(believed=believed)
            await until(lambda: end.heard == ["OPENED"])


async def test_an_entry_of_a_former_version_is_never_sent_back() -> None:
    async with tunnels() as t:
        with load_by_others(t):
            for believed in (0, 0, 0):
                _, end = t.open(believed=believed)
                await until(lambda end=end: end.heard == ["OPENED"])
        assert t.told == []


@pytest.mark.parametrize(("hold_s", "answer"), [(1.0, "BUSIER 1"), (0.1, "OPENED")])
async def test_a_far_entry_is_sent_back_only_where_that_saves_it_time(hold_s: float, answer: str) -> None:
    async with tunnels(tells_load=True) as t:
        t.exit_link.least_rtt_s = 0.15
        t.exit.backends.hold_s = hold_s
        with load_by_others(t):
            _, end = t.open(believed=0)
            await until(lambda: end.heard)
        assert end.heard == [answer]


async def test_what_a_client_had_sent_to_a_node_that_sends_it_back_reaches_no_backend() -> None:
    async with tunnels(tells_load=True, capacity=1) as t:
        _, held = t.open()
        async with await t.listener.accept() as server:
            await until(lambda: held.heard == ["OPENED"])
            channel, end = t.open(believed=0)
            channel.send(bytes(INITIAL_WINDOW))
            await until(lambda: end.heard == [f"BUSIER {FULL}"])
            assert channel.closed
            assert not t.exit_link.mux.channels.keys() - {held.other.id}
            held.other.send(b"mine")
            assert await server.receive_some() == b"mine"
        assert t.listener.waiting() == 0


async def test_capacity_is_free_again_when_a_connection_ends() -> None:
    async with tunnels(capacity=1) as t:
        _, first = t.open()
        async with await t.listener.accept():
            await until(lambda: first.heard == ["OPENED"])
        first.other.send_eof()
        await until(lambda: t.exit.backends.in_flight == 0)
        _, second = t.open()
        await until(lambda: second.heard == ["OPENED"])
        assert t.listener.waiting() == 1


async def test_a_draining_node_refuses_and_lets_the_others_finish() -> None:
    async with tunnels() as t:
        channel, end = t.open()
        async with await t.listener.accept() as server:
            await until(lambda: end.heard == ["OPENED"])
            t.exit.backends.draining = True
            _, late = t.open()
            await until(lambda: late.heard)
            assert late.heard == ["REFUSED this node is draining"]
            assert not t.exit.backends.idle.is_set()
            channel.send(b"go on")
            assert await server.receive_some() == b"go on"
            channel.send_eof()
            await server.send_all(b"done")
        with trio.fail_after(20):
            await t.exit.backends.idle.wait()
        await until(lambda: end.data == b"done")


async def test_a_cancelled_dial_never_calls_back() -> None:
    with Listener() as listener:
        exit_ = make_exit(listener.address)
        believe(exit_, listener)
        called: list[Any] = []
        async with running(exit_.reactor):
            serving = serve(exit_.backends, "default", lambda *args: called.append(args))
            serving.cancel()
            serving.cancel()
            assert exit_.backends.in_flight == 0
            assert exit_.loads == [1, 0]
            await quiet()
        assert called == []
        assert len(exit_.reactor) == 0


async def test_a_dial_is_answered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connect_module, "CONNECT_TIMEOUT_S", 0.01)
    with Listener() as listener, Listener(backlog=0) as clogged:
        clogged.clog()
        reactor = CountingReactor()
        answers: list[str] = []
        socks: list[socket.SocketType] = []

        def done(sock: socket.SocketType | None, reason: str) -> None:
            answers.append(reason)
            if sock is not None:
                socks.append(sock)

        async with running(reactor):
            Connect(reactor, (socket.AF_INET, (listener.host, listener.port)), done)
            Connect(reactor, (socket.AF_INET, (clogged.host, clogged.port)), done)
            await until(lambda: len(answers) == 2)
            await quiet(seconds=0.05)  # longer than the time-out
        assert sorted(answers) == ["", "no answer within 0.01 s"]
        for sock in socks:
            sock.close()


async def test_no_descriptor_is_left_whatever_happens() -> None:
    async with tunnels() as t:
        await quiet()
        before = open_descriptors()
        for n in range(40):
            channel, end = t.open()
            channel.send(b"hello")
            if n % 4 == 0:
                channel.abort("gave up")
                continue
            server = await t.listener.accept()
            await until(lambda end=end: end.heard)
            if n % 4 == 1:
                channel.send_eof()
                await server.aclose()
            elif n % 4 == 2:
                reset(server)
            else:
                channel.abort("the client has gone")
                await server.aclose()
        await until(lambda: t.exit.backends.in_flight == 0)
        assert open_descriptors() == before
        assert max(t.exit.loads) >= 1


# An exit that was stopped


class StoppedLink:
    """What it has in its socket comes when the test says so."""

    least_rtt_s = 0.0

    def __init__(self, peer_id: str = "12D3KooWentry", load: Load | None = None) -> None:
        self.peer_id = peer_id
        self.unread: list[Callable[[], None]] = []
        self.mux = Mux(initiator=False, handler=None, wake=lambda: None, load=load, entry_id=peer_id)  # type: ignore[arg-type]

    def when_read_empty(self, callback: Callable[[], None]) -> None:
        self.unread.append(callback)

    read_until_empty = when_read_empty

    def reads(self) -> None:
        unread, self.unread = self.unread, []
        for callback in unread:
            callback()


@asynccontextmanager
async def one_flow(*, gives_up_at: str = "") -> AsyncIterator[tuple[Exit, Listener, StoppedLink, FakeChannel]]:
    """A tunnel with a request in it that a remote entry opened, OPEN just read."""
    with Listener() as listener:
        exit_ = make_exit(listener.address)
        believe(exit_, listener)
        link, channel = StoppedLink(), FakeChannel(gives_up_at=gives_up_at)
        async with running(exit_.reactor):
            serve_tunnel(exit_.backends, link, channel, "default")  # type: ignore[arg-type]
            view = memoryview(bytearray(b"POST /pay HTTP/1.1\r\n\r\n"))
            channel.other.send(view)
            view.release()  # it was valid during the call only
            yield exit_, listener, link, channel
            channel.other.abort("over")
            assert exit_.backends.in_flight == 0
            assert len(exit_.reactor) == 0


async def test_an_entry_that_gives_up_when_it_is_answered_delivers_nothing() -> None:
    async with one_flow(gives_up_at="OPENED") as (exit_, listener, link, channel):
        link.reads()
        async with await listener.accept() as server:
            await until(lambda: link.reads() or channel.heard)  # after LOOK_AGAIN_S, on a busy machine, it looks again
            assert await is_reset(server)
        await until(lambda: exit_.backends.in_flight == 0)
        assert channel.heard == ["OPENED"]


@pytest.mark.parametrize("gave_up", [True, False])
async def test_an_exit_that_was_stopped_reads_before_it_goes_on(mock_clock: MockClock, gave_up: bool) -> None:
    """Stopped after its dial, continued when the entry has long gone elsewhere: the RST is in the socket, unread."""
    async with one_flow() as (_, listener, link, channel):
        link.reads()
        mock_clock.jump(10.0)
        server = await listener.accept()
        await settled(lambda: link.unread)
        assert channel.heard == []  # no OPENED on a mere hope
        if gave_up:
            channel.other.abort("no answer within 3 s")
            link.reads()
            assert await is_reset(server)
            assert channel.heard == []
        else:
            link.reads()
            assert await server.receive_some() == b"POST /pay HTTP/1.1\r\n\r\n"
            assert channel.heard == ["OPENED"]
        await server.aclose()


# As a Duplex


@asynccontextmanager
async def a_flow(*, is_dialled: bool) -> AsyncIterator[Rig]:
    """The caller is a channel; behind the flow is a backend. The flow waits for the link to be read, or for the connect."""
    with Listener() as listener:
        exit_ = make_exit(listener.address)
        believe(exit_, listener)
        link, channel, there = StoppedLink(), FakeChannel(), TcpSide()

        def move() -> None:
            if there.is_stopped:
                return
            link.reads()
            if there.sock is None:
                with suppress(BlockingIOError, ConnectionAbortedError):  # reset in the queue
                    there.connected(listener.sock.accept()[0])
            there.move()

        async with running(exit_.reactor):
            serve_tunnel(exit_.backends, link, channel, "default")  # type: ignore[arg-type]
            if is_dialled:
                link.reads()
            yield there.rig(
                channel, move=move, later=link.reads,
                has_room=False, holds_back=not is_dialled,  # else the kernel takes what is sent
            )  # fmt: skip
            channel.other.abort("the test is over")
            there.close()
            assert exit_.backends.in_flight == 0
            assert len(exit_.reactor) == 0


@pytest.mark.parametrize("is_dialled", [False, True])
async def test_it_keeps_the_contract_of_a_duplex(is_dialled: bool) -> None:
    await check_duplex(ExitFlow, partial(a_flow, is_dialled=is_dialled))
