"""A link against a remote that the test plays by hand, frame by frame, and against another link."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import itertools
import os
import select
import socket
import struct
import sys
import termios
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing
from libp2p.stream_muxer.exceptions import MuxedConnUnavailable, MuxedStreamEOF, MuxedStreamReset
from structlog.testing import capture_logs

from federation.errors import PeerUnavailable
from federation.net.link import carrier
from federation.net.link.carrier import READS_A_TURN, SEND_BYTES
from federation.net.link.channel import CHANNEL_BUFFER, CONNECTION_BUFFER, INITIAL_WINDOW, MAX_WINDOW, Channel
from federation.net.link.delivery import HOPELESS_RETRIES, Delivery
from federation.net.link.frames import CREDIT, DATA, FIN, FULL, LOAD, LOOK, OPEN, OPENED, PING, PONG, RST, STREAM, WATCH
from federation.net.link.link import LOOK_EVERY_S, WATCH_S, Link, talk
from federation.net.link.liveness import DEAD_AFTER_S, PING_AFTER_S, PING_EVERY_S, RTT_INTERVALS, SUSPECT_AFTER_S
from federation.net.link.mux import MAX_CONTROL, Load
from federation.net.link.seal import MAX_PLAINTEXT, Sealer, Unsealer
from federation.reactor.loop import READ, Reactor
from tests.support.frames import credit, frame, frames, load
from tests.support.links import KEYS, PEERS, End, Events, link_pair, secure, tcp_pair, tcp_raw, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from libp2p.network.connection.raw_connection import RawConnection

    from federation.net.link.carrier import Path
    from federation.net.link.handshake import SecureConn
    from federation.net.streams import MuxStream

TICK_S = 0.25
NO_REACTOR: Any = SimpleNamespace(guard=lambda callback: callback())
NO_RAW: Any = SimpleNamespace(get_remote_address=dict, get_transport_addresses=list, get_connection_type=dict)


@dataclass
class Remote:
    """The other side, by hand."""

    stream: trio.abc.Stream
    sealer: Sealer = field(default_factory=lambda: Sealer(KEYS[1]))
    unsealer: Unsealer = field(default_factory=lambda: Unsealer(KEYS[0]))
    heard: list[Any] = field(default_factory=list)
    records: int = 0

    def seal(self, *said: bytes) -> bytes:
        return self.sealer.seal(b"".join(said))

    async def say(self, *said: bytes) -> None:
        """One record."""
        await self.stream.send_all(self.seal(*said))

    async def hear(self, kind: str = "") -> list[Any]:
        """Read until a frame of `kind` came, or any at all; all frames since the last call."""
        while not [item for item in self.heard if kind in ("", item[0])]:
            data = await self.stream.receive_some(1 << 20)
            assert data, "the link hung up"
            self._take(data)
        heard, self.heard = self.heard, []
        return heard

    async def hears_the_end(self) -> None:
        """Read until the link has hung up, in whichever way."""
        try:
            while data := await self.stream.receive_some(1 << 20):
                self._take(data)
        except trio.BrokenResourceError:
            pass

    def _take(self, data: bytes) -> None:
        for record in self.unsealer.feed(data):
            self.records += 1
            self.heard += frames(record)


@dataclass
class Host(Events):
    """Records, and does with a tunnel that the remote opens what the test says."""

    on_tunnel: Callable[[Link, Channel, str], None] | None = None

    def tunnel_opened(self, link: Link, channel: Channel, service: str, believed: int) -> None:
        channel.other = End(other=channel)
        self.opened.append((channel, service))
        self.believed.append(believed)
        if self.on_tunnel is not None:
            self.on_tunnel(link, channel, service)


async def raw_pair() -> tuple[RawConnection, trio.SocketStream]:
    """A raw connection for a link, and the stream at its other end."""
    ours, theirs = await tcp_pair()
    return tcp_raw(ours, initiator=True), theirs


@asynccontextmanager
async def one_link(
    *, host: Host | None = None, said: tuple[bytes, ...] = (), reactor: Reactor | None = None, load: Load | None = None
) -> AsyncIterator[tuple[Link, Remote, Host]]:
    """A running link, its remote and its host. `said`: records that came behind the negotiation, read already."""
    raw, stream = await raw_pair()
    host = Host() if host is None else host
    secured = secure(raw, initiator=True)
    remote = Remote(stream)
    for record in said:
        secured.pending += secured.unsealer.feed(remote.seal(record))
    async with trio.open_nursery() as nursery:
        if reactor is None:
            reactor = Reactor()
            await nursery.start(reactor.run)
        link = Link(secured, PEERS[1], reactor=reactor, events=host, load=load)
        nursery.start_soon(link.start)
        await link.started.wait()
        try:
            yield link, remote, host
        finally:
            link.fail("closed")
            await trio.aclose_forcefully(stream)
            nursery.cancel_scope.cancel()


def opened(link: Link, service: str = "default") -> tuple[Channel, End]:
    end = End()
    end.other = link.open_tunnel(service, end, end)
    return end.other, end


# Frames to records, records to the wire


async def test_a_tunnel_to_the_remote_and_one_from_it() -> None:
    async with one_link() as (link, remote, host):
        channel, end = opened(link)
        channel.send(b"request")
        assert await remote.hear("DATA") == [("OPEN", 1, b"default"), ("DATA", 1, b"request")]
        await remote.say(frame(OPENED, 1), frame(DATA, 1, b"reply"), frame(FIN, 1), frame(OPEN, 2, b"chat"))
        await until(lambda: host.opened)
        assert end.heard == ["OPENED", b"reply", "EOF"]
        assert host.opened[0][1] == "chat"
        host.opened[0][0].accept()
        assert await remote.hear() == [("OPENED", 2, b"")]


async def test_streams_come_out_of_accept_in_order() -> None:
    async with one_link() as (link, remote, _):
        await remote.say(frame(STREAM, 2), frame(STREAM, 4), frame(DATA, 2, b"two"), frame(DATA, 4, b"four"))
        assert await (await link.accept_stream()).read() == b"two"
        assert await (await link.accept_stream()).read() == b"four"


async def test_what_is_queued_at_the_same_time_travels_together() -> None:
    async with one_link() as (link, remote, _):
        for n in range(100):
            opened(link)[0].send(b"%d" % n)
        assert len(link._reactor._flushes) == 1
        heard = await remote.hear("DATA")
        assert len(heard) == 200
        assert remote.records == 1


async def test_what_the_link_says_before_it_runs_is_said_when_it_does() -> None:
    raw, stream = await raw_pair()
    async with trio.open_nursery() as nursery:
        reactor = Reactor()
        await nursery.start(reactor.run)
        link = Link(secure(raw, initiator=True), PEERS[1], reactor=reactor, events=Host())
        opened(link)
        nursery.start_soon(link.start)
        assert await Remote(stream).hear() == [("OPEN", 1, b"default")]
        link.fail("closed")
        await stream.aclose()
        nursery.cancel_scope.cancel()


async def test_records_cut_and_joined_by_the_line_are_read_alike() -> None:
    async with one_link() as (_, remote, host):
        said = b"".join(remote.seal(frame(OPEN, 2 * n, b"%d" % n)) for n in range(1, 50))
        for at in range(0, len(said), 7):
            await remote.stream.send_all(said[at : at + 7])
        await until(lambda: len(host.opened) == 49)
        assert [service for _, service in host.opened] == [str(n) for n in range(1, 50)]


async def test_what_came_behind_the_negotiation_is_not_lost() -> None:
    async with one_link(said=(frame(OPEN, 2, b"early"), frame(DATA, 2, b"bytes"))) as (_, remote, host):
        await until(lambda: host.opened)
        assert host.opened[0][1] == "early"
        await remote.say(frame(DATA, 2, b" more"))
        await until(lambda: host.opened[0][0].other.data == b"bytes more")


async def test_a_half_record_behind_the_negotiation_is_finished_by_the_socket() -> None:
    raw, stream = await raw_pair()
    secured, remote, host = secure(raw, initiator=True), Remote(stream), Host()
    record = remote.seal(frame(OPEN, 2, b"cut"))
    assert secured.unsealer.feed(record[:9]) == []
    async with trio.open_nursery() as nursery:
        reactor = Reactor()
        await nursery.start(reactor.run)
        link = Link(secured, PEERS[1], reactor=reactor, events=host)
        nursery.start_soon(link.start)
        await stream.send_all(record[9:])
        await until(lambda: host.opened)
        assert host.opened[0][1] == "cut"
        link.fail("closed")
        await stream.aclose()
        nursery.cancel_scope.cancel()


async def test_without_a_descriptor_only_the_link_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    raw, stream = await raw_pair()
    host, reactor = Host(), Reactor()
    link = Link(secure(raw, initiator=True), PEERS[1], reactor=reactor, events=host)

    def no_descriptor(_fd: int) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(os, "dup", no_descriptor)
    await link.start()
    assert host.closed == ["Too many open files"]
    assert link.started.is_set()
    await stream.aclose()
    reactor._poller.close()


async def test_the_link_has_the_socket_to_itself_and_small_records_leave_at_once() -> None:
    async with one_link() as (link, _, _):
        assert link.carrier.sock is not None
        assert link.carrier.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert not link.carrier.sock.getblocking()


# An RST right behind an OPEN


def dials_later(gone: list[bool]) -> Callable[[Link, Channel, str], None]:
    """What the exit does: it looks, once all is read, whether the entry is still there."""

    def on_tunnel(link: Link, channel: Channel, _service: str) -> None:
        link.when_read_empty(lambda: gone.append(channel.closed))

    return on_tunnel


async def test_an_rst_behind_an_open_is_seen_before_anything_is_dialled() -> None:
    gone: list[bool] = []
    async with one_link(host=Host(on_tunnel=dials_later(gone))) as (_, remote, _):
        both = remote.seal(frame(OPEN, 2)) + remote.seal(frame(RST, 2, b"too late"))  # two records, one packet
        await remote.stream.send_all(both)
        await until(lambda: gone)
        await remote.say(frame(OPEN, 4))
        await until(lambda: len(gone) == 2)
        assert gone == [True, False]


async def arrived(raw: Any, size: int) -> None:
    """Wait until so much lies in the kernel for the link to read."""
    sock = raw.stream.stream.socket

    def waits() -> int:
        return int.from_bytes(fcntl.ioctl(sock.fileno(), termios.FIONREAD, bytes(4)), sys.byteorder)

    await until(lambda: waits() >= size)


@pytest.mark.parametrize("rounds", [3, READS_A_TURN + 3], ids=["one turn", "several turns"])
async def test_it_is_seen_however_much_lies_between(monkeypatch: pytest.MonkeyPatch, rounds: int) -> None:
    """The exit slept: what the entry sent meanwhile waits in the kernel and takes many reads."""
    monkeypatch.setattr(carrier, "RECV_BYTES", 4096)
    monkeypatch.setattr(carrier, "MIN_RECV_BYTES", 4096)
    gone: list[bool] = []
    raw, stream = await raw_pair()
    remote = Remote(stream)
    await remote.say(frame(OPEN, 2), frame(OPEN, 4), frame(OPEN, 6))
    for n in range(rounds):
        await remote.say(frame(DATA, 4 + 2 * (n % 2), bytes(4096)))
    await remote.say(frame(RST, 2, b"too late"))
    await arrived(raw, rounds * 4096)
    async with trio.open_nursery() as nursery:
        reactor = Reactor()
        link = Link(secure(raw, initiator=True), PEERS[1], reactor=reactor, events=Host(on_tunnel=dials_later(gone)))
        await nursery.start(reactor.run)
        nursery.start_soon(link.start)
        await until(lambda: len(gone) == 3)
        assert gone == [True, False, False]
        link.fail("closed")
        await stream.aclose()
        nursery.cancel_scope.cancel()


async def test_tiny_frames_are_read_in_small_pieces_and_what_they_hold_up_is_not_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(carrier, "READ_TURN_S", 0.0)  # every read takes too long
    gone: list[bool] = []
    async with one_link(host=Host(on_tunnel=dials_later(gone))) as (link, remote, _):
        for _ in range(6):
            await remote.say(*[frame(PING, 0, bytes(8))] * 4000)
        await until(lambda: link.carrier._recv_bytes == carrier.MIN_RECV_BYTES)
        await remote.say(frame(OPEN, 2))
        await until(lambda: gone)  # though its turn was over, and nothing comes behind it
        monkeypatch.setattr(carrier, "READ_TURN_S", 60.0)
        for _ in range(6):
            await remote.say(frame(PING, 0, bytes(8)))
            await remote.hear()
        await until(lambda: link.carrier._recv_bytes == carrier.RECV_BYTES)


async def test_an_open_behind_the_negotiation_is_dialled_without_waiting_for_more() -> None:
    """The entry's first tunnel: nothing else comes until it is answered."""
    gone: list[bool] = []
    async with one_link(host=Host(on_tunnel=dials_later(gone)), said=(frame(OPEN, 2),)):
        await until(lambda: gone, seconds=1)
        assert gone == [False]


async def test_an_rst_on_the_socket_is_seen_before_an_open_behind_the_negotiation_is_dialled() -> None:
    gone: list[bool] = []
    raw, stream = await raw_pair()
    secured, remote = secure(raw, initiator=True), Remote(stream)
    secured.pending += secured.unsealer.feed(remote.seal(frame(OPEN, 2)))
    await remote.say(frame(RST, 2))
    await arrived(raw, 1)
    async with trio.open_nursery() as nursery:
        reactor = Reactor()
        await nursery.start(reactor.run)
        link = Link(secured, PEERS[1], reactor=reactor, events=Host(on_tunnel=dials_later(gone)))
        nursery.start_soon(link.start)
        await until(lambda: gone)
        assert gone == [True]
        link.fail("closed")
        await stream.aclose()
        nursery.cancel_scope.cancel()


async def test_a_later_step_needs_nothing_to_come() -> None:
    """The backend has accepted: is the entry still there? It waits for us and says nothing."""
    async with one_link() as (link, remote, _):
        await remote.say(frame(OPEN, 2))
        await until(lambda: link.mux.channels)
        looked: list[bool] = []
        link.read_until_empty(lambda: looked.append(link.mux.channels[2].closed))
        link.read_until_empty(lambda: looked.append(True))
        assert looked == []
        await until(lambda: len(looked) == 2, seconds=1)
        assert looked == [False, True]


async def test_after_a_silence_nothing_is_dialled_before_the_pong() -> None:
    """The network was cut. TCP brings the OPEN again first, then the RST that its entry has sent since."""
    gone: list[bool] = []
    async with one_link(host=Host(on_tunnel=dials_later(gone))) as (link, remote, host):
        link.ping()
        ((_, _, first),) = await remote.hear()
        await remote.say(frame(OPEN, 2), frame(OPEN, 4))
        await until(lambda: len(host.opened) == 2)
        link.ping()  # silent again
        ((_, _, second),) = await remote.hear()
        await remote.say(frame(PONG, 0, first), frame(RST, 2, b"too late"))
        await until(lambda: host.opened[0][0].closed)
        link.read_until_empty(lambda: gone.append(True))  # nor is a later step of an earlier tunnel taken
        link._reactor._flush()
        assert gone == []
        await remote.say(frame(PONG, 0, second))
        await until(lambda: gone)
        assert gone == [True, False, True]
        await remote.say(frame(OPEN, 6))
        await until(lambda: len(gone) == 4)


async def test_a_later_step_sees_the_rst_that_lies_on_the_socket() -> None:
    async with one_link() as (link, remote, host):
        await remote.say(frame(OPEN, 2))
        await until(lambda: host.opened)
        channel = host.opened[0][0]
        assert link.carrier.sock is not None
        remote_sock = remote.stream.socket  # type: ignore[attr-defined]
        remote_sock._sock.send(remote.seal(frame(RST, 2)))  # trio and the reactor do not run in between
        assert select.select([link.carrier.sock], [], [], 5)[0]
        looked: list[bool] = []
        link.read_until_empty(lambda: looked.append(channel.closed))
        link._reactor._flush()
        assert looked == [True]


async def test_read_finds_what_lies_on_the_socket() -> None:
    async with one_link() as (link, remote, host):
        remote_sock = remote.stream.socket  # type: ignore[attr-defined]
        remote_sock._sock.send(remote.seal(frame(OPEN, 2)))  # trio and the reactor do not run in between
        assert select.select([link.carrier.sock], [], [], 5)[0]
        assert host.opened == []
        link.read()
        assert len(host.opened) == 1


async def test_read_finds_nothing_and_is_harmless() -> None:
    async with one_link() as (link, _, host):
        link.read()
        link.fail("gone")
        link.read()
        assert host.opened == []


async def test_a_link_that_ends_takes_no_later_step() -> None:
    async with one_link() as (link, _, _):
        looked: list[bool] = []
        link.read_until_empty(lambda: looked.append(True))
        link.fail("gone")
        link._reactor._flush()
        assert looked == []


async def test_a_link_that_ends_dials_nothing_any_more() -> None:
    gone: list[bool] = []
    async with one_link(host=Host(on_tunnel=dials_later(gone))) as (_, remote, host):
        await remote.stream.send_all(remote.seal(frame(OPEN, 2)) + remote.seal(frame(99)))
        await until(lambda: host.closed)
        assert gone == []


# Liveness: the clock stands still but for what the test says


class ByHand:
    """A carrier that keeps what the link says for the test, at once and unsealed."""

    path: Path = "direct"
    via = None
    settle_s = 0.0
    local_host = ""
    is_flushed = True

    def __init__(self, link: Link, secured: SecureConn, reactor: Reactor) -> None:
        self.link = link
        self.said: list[Any] = []
        self.known: Delivery | None = None
        self.may_be_split = self.was_reset = False

    async def start(self) -> None: ...
    def read(self) -> None: ...
    def read_until_empty(self) -> None: ...

    def delivery(self) -> Delivery | None:
        return self.known

    def let_routers_split(self) -> None:
        self.may_be_split = True

    def close(self, *, reset: bool = False) -> None:
        self.was_reset = reset

    def wake(self) -> None:
        while (record := self.link.mux.next_record()) is not None:
            self.link.liveness.sent_since_heard = True
            self.said += frames(record)

    wake_late = wake


class Quiet:
    """A link without a connection, whose clock stands still, ticked like its host does."""

    def __init__(self, clock: trio.testing.MockClock, load: Load | None = None) -> None:
        self._clock = clock
        clock.jump(1000)
        self.host = Host()
        secured = secure(NO_RAW, initiator=True)
        self.link = Link(secured, PEERS[1], reactor=NO_REACTOR, events=self.host, carrier=ByHand, load=load)

    def says(self, *said: bytes) -> None:
        self.link.liveness.heard(trio.current_time())
        if self.link.suspect:
            self.link.set_suspect(False)
        assert self.link.feed([b"".join(said)])

    def spend(self, seconds: float) -> None:
        for _ in range(round(seconds / TICK_S)):
            self._clock.jump(TICK_S)
            self.link.tick(trio.current_time())

    def jump(self, seconds: float) -> None:
        self._clock.jump(seconds)

    def heard(self) -> list[Any]:
        """What the link has said since the last call."""
        carrier = self.link.carrier
        assert isinstance(carrier, ByHand)
        said, carrier.said = carrier.said, []
        return said

    def kinds(self) -> list[str]:
        return [kind for kind, _, _ in self.heard()]


@pytest.fixture
async def quiet(mock_clock: trio.testing.MockClock) -> AsyncIterator[Quiet]:
    quiet = Quiet(mock_clock)
    yield quiet
    quiet.link.fail("the test is over")


def two_round_trips(quiet: Quiet) -> None:
    """As a link measures them when it is new."""
    quiet.link.ping()
    ((_, _, first),) = quiet.heard()
    quiet.says(frame(PONG, 0, first))
    quiet.spend(TICK_S)
    ((_, _, second),) = quiet.heard()
    quiet.says(frame(PONG, 0, second))


async def test_an_idle_link_says_no_more_than_a_ping_now_and_then(mock_clock: object, quiet: Quiet) -> None:
    two_round_trips(quiet)
    for _ in range(3):
        quiet.spend(PING_EVERY_S)
        assert quiet.heard() == []
        quiet.spend(TICK_S)
        ((kind, channel_id, payload),) = quiet.heard()
        assert (kind, channel_id) == ("PING", 0)
        quiet.says(frame(PONG, 0, payload))
    assert quiet.host.suspect == []
    assert quiet.host.closed == []


async def test_the_end_that_is_pinged_has_heard_enough(mock_clock: object, quiet: Quiet) -> None:
    """Its PONG asks for no answer: it once pinged for want of one, and so did the other end for that PING's, for ever."""
    two_round_trips(quiet)
    quiet.spend(PING_EVERY_S + TICK_S)
    ((_, _, payload),) = quiet.heard()
    quiet.says(frame(PONG, 0, payload))
    for _ in range(RTT_INTERVALS + 1):
        quiet.spend(PING_EVERY_S - TICK_S)
        quiet.says(frame(PING, 0, b"thepeers"))
        assert quiet.kinds() == ["PONG"]
    quiet.spend(2 * TICK_S)
    assert quiet.kinds() == ["PING"]  # for a round trip of its own


async def test_a_peer_that_owes_an_answer_is_asked_then_suspect_then_dead(mock_clock: object, quiet: Quiet) -> None:
    _, end = opened(quiet.link)
    quiet.spend(PING_AFTER_S)
    assert quiet.kinds() == ["OPEN"]
    quiet.spend(TICK_S)
    assert quiet.kinds() == ["PING"]
    quiet.spend(SUSPECT_AFTER_S)
    assert not quiet.link.suspect
    quiet.spend(TICK_S)
    assert quiet.link.suspect
    assert quiet.host.suspect == [True]
    quiet.spend(DEAD_AFTER_S - SUSPECT_AFTER_S - TICK_S)
    assert 10 < len(quiet.kinds()) < 14  # PINGs: it is to know that it is not heard
    assert not quiet.link.is_closed
    quiet.spend(TICK_S)
    assert quiet.link.is_closed
    assert quiet.host.closed == [f"no answer for {DEAD_AFTER_S:g} s"]
    assert quiet.host.suspect == [True]
    assert end.heard == [f"RST no answer for {DEAD_AFTER_S:g} s"]
    quiet.spend(60)
    assert len(quiet.host.closed) == 1


def _carrier(quiet: Quiet) -> ByHand:
    assert isinstance(quiet.link.carrier, ByHand)
    return quiet.link.carrier


async def test_a_link_whose_bytes_do_not_arrive_is_suspect_whatever_is_heard(mock_clock: object, quiet: Quiet) -> None:
    channel, _ = opened(quiet.link)
    carrier = _carrier(quiet)
    for retries, may_be_split, is_suspect, told in ((0, False, False, 0), (2, True, False, 0), (3, True, True, 1)):
        carrier.known = Delivery(1000, retries, 0.1, has_ended=False)
        quiet.spend(1)
        assert (carrier.may_be_split, quiet.link.suspect, bool(quiet.host.stuck)) == (may_be_split, is_suspect, told > 0)
        quiet.says(frame(CREDIT, channel.id, credit(1)))
        assert quiet.link.suspect is is_suspect  # the peer lives, but that is not the point
    told = quiet.host.stuck
    quiet.spend(1)
    assert quiet.host.stuck > told  # another try for another link
    carrier.known = Delivery(0, 0, 0.1, has_ended=False)
    quiet.spend(1)
    assert quiet.host.suspect == [True, False]


async def test_a_stuck_link_gets_well_again_without_a_tunnel(mock_clock: object, quiet: Quiet) -> None:
    channel, _ = opened(quiet.link)
    carrier = _carrier(quiet)
    carrier.known = Delivery(1000, 3, 0.1, has_ended=False)
    quiet.spend(1)
    assert quiet.link.suspect
    channel.abort("its client goes elsewhere")
    assert not quiet.link.mux.tunnels
    carrier.known = Delivery(0, 0, 0.1, has_ended=False)
    quiet.spend(1)
    assert quiet.host.suspect == [True, False]


async def test_a_link_whose_bytes_never_arrive_is_closed_and_says_which(mock_clock: object, quiet: Quiet) -> None:
    heard, heard_end = opened(quiet.link)
    unheard, unheard_end = opened(quiet.link)
    never, _ = opened(quiet.link)
    quiet.says(frame(OPENED, heard.id), frame(OPENED, unheard.id))
    heard.send(b"arrives")
    arrived = quiet.link.mux.out_bytes
    unheard.send(b"does not")
    heard.send(b"this neither")
    carrier = _carrier(quiet)
    arrived += 10  # half a record is none
    carrier.known = Delivery(quiet.link.mux.out_bytes - arrived, HOPELESS_RETRIES, 0.1, has_ended=False)
    quiet.spend(2)
    assert quiet.host.closed == ["the peer lives, and what is sent to it does not arrive"]
    assert carrier.was_reset  # or it might arrive later
    assert [channel.is_unheard for channel in (heard, unheard, never)] == [False, True, True]
    assert "RST" in heard_end.heard[-1]
    assert "RST" in unheard_end.heard[-1]


async def test_what_comes_after_the_peers_fin_surely_did_not_arrive() -> None:
    async with one_link() as (link, remote, host):
        heard, _ = opened(link)
        unheard, _ = opened(link)
        await remote.hear("OPEN")
        await remote.stream.send_all(remote.seal(frame(OPENED, heard.id), frame(OPENED, unheard.id)))
        await until(lambda: heard.opener is None and unheard.opener is None)
        heard.send(b"arrives")
        await remote.hear("DATA")
        remote.stream.socket.close()  # without a checkpoint: the link has no turn yet
        assert select.select([link.carrier.sock], [], [], 10)[0]
        unheard.send(b"does not")  # before the link has read the EOF
        link._reactor._flush()
        await until(lambda: host.closed)
        assert [channel.is_unheard for channel in (heard, unheard)] == [False, True]


async def test_of_a_silent_peer_nobody_knows_what_arrived(mock_clock: object, quiet: Quiet) -> None:
    channel, _ = opened(quiet.link)
    waiting, _ = opened(quiet.link)
    quiet.says(frame(OPENED, channel.id))
    channel.send(b"perhaps")
    _carrier(quiet).known = Delivery(1000, HOPELESS_RETRIES, 60.0, has_ended=False)
    quiet.spend(DEAD_AFTER_S + 2)
    assert quiet.host.closed == [f"no answer for {DEAD_AFTER_S:g} s"]
    assert quiet.host.stuck == 0
    assert not _carrier(quiet).was_reset
    assert not channel.is_unheard
    assert waiting.is_unheard  # nothing of it was ever sent


async def test_who_was_granted_more_was_heard(mock_clock: object, quiet: Quiet) -> None:
    channel, _ = opened(quiet.link)
    quiet.says(frame(OPENED, channel.id), frame(CREDIT, channel.id, credit(1)))
    assert not channel.is_unheard
    quiet.link.fail("gone")
    assert not channel.is_unheard


async def test_a_link_beside_which_the_peer_made_another_one_is_doubted(mock_clock: object, quiet: Quiet) -> None:
    quiet.spend(TICK_S)
    quiet.link.doubt()
    assert quiet.host.suspect == [True]
    quiet.says(frame(PING, 0, b"12345678"))
    assert quiet.host.suspect == [True, False]
    quiet.link.doubt()
    assert quiet.host.suspect == [True, False]  # it has just spoken


async def test_who_has_answered_while_we_slept_is_not_suspect() -> None:
    """The task that ticks may come before the one that reads: OPENED and PONG lie in the socket."""
    async with one_link() as (link, remote, host):
        _, end = opened(link)
        now = trio.current_time()
        link.tick(now)
        link.ping()
        await until(lambda: link.is_flushed)
        ((_, opened_as, _), (_, _, payload)) = await remote.hear("PING")
        os.write(remote.stream.socket.fileno(), remote.seal(frame(OPENED, opened_as), frame(PONG, 0, payload)))  # type: ignore[attr-defined]
        link.tick(now + SUSPECT_AFTER_S + TICK_S)  # nothing else ran in between
        assert end.heard == ["OPENED"]
        assert not link.suspect
        assert host.suspect == []


async def test_a_peer_that_answers_in_time_is_never_suspect(mock_clock: object, quiet: Quiet) -> None:
    channel, _ = opened(quiet.link)
    for _ in range(20):
        quiet.spend(SUSPECT_AFTER_S)
        quiet.says(frame(CREDIT, channel.id, credit(1)))
        channel.send(b"x")
    assert quiet.host.suspect == []


async def test_anything_heard_proves_that_a_suspect_lives(mock_clock: object, quiet: Quiet) -> None:
    channel, _ = opened(quiet.link)
    for _ in range(2):
        channel.send(b"x")
        quiet.spend(4)
        assert quiet.link.suspect
        quiet.says(frame(CREDIT, channel.id, credit(1)))
        assert not quiet.link.suspect
    assert quiet.host.suspect == [True, False, True, False]
    quiet.heard()
    quiet.spend(PING_EVERY_S - TICK_S)
    assert quiet.heard() == []  # nothing is owed
    assert quiet.host.closed == []


async def test_what_our_own_sleep_looks_like_is_not_held_against_the_peer(mock_clock: object, quiet: Quiet) -> None:
    """The machine was suspended: everybody was silent for a minute."""
    opened(quiet.link)
    quiet.spend(1)
    assert quiet.kinds() == ["OPEN", "PING"]
    quiet.jump(60)
    quiet.spend(TICK_S)
    assert quiet.host.suspect == []
    assert quiet.host.closed == []
    quiet.spend(SUSPECT_AFTER_S)
    assert quiet.host.suspect == []
    quiet.spend(TICK_S)
    assert quiet.host.suspect == [True]
    quiet.spend(DEAD_AFTER_S - SUSPECT_AFTER_S - TICK_S)
    assert not quiet.link.is_closed
    quiet.spend(TICK_S)
    assert quiet.link.is_closed


async def test_the_round_trip_is_taken_from_the_pong_of_the_last_ping(mock_clock: object, quiet: Quiet) -> None:
    link = quiet.link
    quiet.says(frame(PONG, 0, bytes(8)))  # that nobody asked for
    quiet.says(frame(PONG, 0, b"\xff" * 8))  # not a number
    assert link.rtt_s is None
    link.ping()
    quiet.spend(TICK_S)
    ((_, _, first),) = quiet.heard()
    link.ping()
    quiet.jump(0.5)
    quiet.says(frame(PONG, 0, first))
    assert link.rtt_s is None
    ((_, _, last),) = quiet.heard()
    quiet.says(frame(PONG, 0, last))
    assert link.rtt_s == pytest.approx(0.5)


async def test_one_round_trip_alone_makes_no_path_long(mock_clock: object, quiet: Quiet) -> None:
    """The first one is often measured while a node starts: a near peer was passed over for 16 s."""
    link = quiet.link
    link.ping()
    ((_, _, first),) = quiet.heard()
    quiet.jump(0.5)
    quiet.says(frame(PONG, 0, first))
    assert link.rtt_s == pytest.approx(0.5)
    assert link.least_rtt_s is None
    quiet.spend(TICK_S)
    ((kind, _, second),) = quiet.heard()
    assert kind == "PING"
    quiet.jump(0.01)
    quiet.says(frame(PONG, 0, second))
    assert link.least_rtt_s == pytest.approx(0.01)
    quiet.spend(TICK_S)
    assert quiet.heard() == []


async def test_a_ping_is_answered(mock_clock: object, quiet: Quiet) -> None:
    quiet.says(frame(PING, 0, b"whatever"))
    assert quiet.heard() == [("PONG", 0, b"whatever")]


async def test_a_retired_link_lasts_as_long_as_its_tunnels(mock_clock: object, quiet: Quiet) -> None:
    ours, _ = opened(quiet.link)
    quiet.says(frame(OPENED, 1), frame(OPEN, 2), frame(STREAM, 4))
    quiet.link.retire()
    quiet.spend(1)
    assert quiet.host.closed == []
    ours.abort("done")
    quiet.spend(1)
    assert quiet.host.closed == []
    quiet.host.opened[0][0].refuse("done")
    quiet.spend(TICK_S)
    assert quiet.host.closed == ["a second connection to the same peer"]  # streams do not keep it


async def test_a_retired_link_whose_peer_is_gone_ends_with_it(mock_clock: object, quiet: Quiet) -> None:
    opened(quiet.link)
    quiet.link.retire()
    quiet.spend(DEAD_AFTER_S + 2)
    assert quiet.host.closed == [f"no answer for {DEAD_AFTER_S:g} s"]


async def test_a_link_without_channel_numbers_ends_with_its_tunnels(mock_clock: object, quiet: Quiet) -> None:
    quiet.link.mux._next_id = 2**32 - 1
    channel, _ = opened(quiet.link)
    quiet.says(frame(OPENED, channel.id))
    with pytest.raises(PeerUnavailable):
        opened(quiet.link)
    quiet.spend(1)
    assert quiet.host.closed == []
    channel.abort("done")
    quiet.spend(TICK_S)
    assert len(quiet.host.closed) == 1


# Load


@pytest.fixture
async def watcher(mock_clock: trio.testing.MockClock) -> AsyncIterator[Quiet]:
    watcher = Quiet(mock_clock, Load())
    yield watcher
    watcher.link.fail("the test is over")


async def test_watch_asks_once_and_is_renewed_at_half_its_time(mock_clock: object, watcher: Quiet) -> None:
    link, now = watcher.link, trio.current_time
    ask = [("WATCH", 0, bytes([WATCH_S]))]
    assert not link.is_watching(now())
    assert not link.watch(now())  # what it told before this is old
    assert watcher.heard() == ask
    for _ in range(3):
        assert link.is_watching(now())
        assert link.watch(now())
        watcher.jump(WATCH_S / 2)
        assert link.watch(now())
        assert watcher.heard() == []
        watcher.jump(0.1)
        assert link.watch(now())
        assert watcher.heard() == ask


async def test_a_watch_that_is_not_renewed_ends(mock_clock: object, watcher: Quiet) -> None:
    link, now = watcher.link, trio.current_time
    link.watch(now())
    watcher.jump(WATCH_S - 0.1)
    assert link.is_watching(now())
    watcher.jump(0.2)
    assert not link.is_watching(now())
    watcher.heard()
    assert not link.watch(now())
    assert watcher.heard() == [("WATCH", 0, bytes([WATCH_S]))]


async def test_unwatch_says_so_once(mock_clock: object, watcher: Quiet) -> None:
    link, now = watcher.link, trio.current_time
    link.unwatch()
    assert watcher.heard() == []
    link.watch(now())
    link.unwatch()
    link.unwatch()
    assert not link.is_watching(now())
    assert [payload for _, _, payload in watcher.heard()] == [bytes([WATCH_S]), bytes(1)]
    assert not link.watch(now())
    assert watcher.heard() == [("WATCH", 0, bytes([WATCH_S]))]


async def test_a_peer_is_asked_to_look_now_and_then(mock_clock: object, watcher: Quiet) -> None:
    link, now = watcher.link, trio.current_time
    for _ in range(3):
        for _ in range(5):
            link.look("default", now())
        assert watcher.heard() == [("LOOK", 0, b"default")]
        watcher.jump(LOOK_EVERY_S)
    watcher.says(frame(LOOK, 0, b"speech"))
    assert watcher.host.looks == ["speech"]


async def test_a_peer_of_the_former_version_is_not_asked(mock_clock: object, quiet: Quiet) -> None:
    now = trio.current_time
    assert not quiet.link.watch(now())
    assert not quiet.link.is_watching(now())
    assert not quiet.link.watch(now())
    quiet.link.unwatch()
    assert quiet.heard() == []


async def test_a_load_arrives_though_nothing_else_goes() -> None:
    loads = Load(), Load(3)
    async with link_pair(loads=loads) as (a, b, a_host, b_host):
        a.watch(trio.current_time())
        await until(lambda: b_host.watched)
        assert b_host.watched == [WATCH_S]
        assert b.mux.tell_load()
        await until(lambda: a_host.told == [3])
        loads[1].in_flight = 4
        assert b.mux.tell_load()
        await until(lambda: a_host.told == [3, 4])
        loads[1].change(b.peer_id, 2)  # what the peer itself has there is no news to it
        assert not b.mux.tell_load()
        loads[1].change("", 1)
        assert b.mux.tell_load()
        await until(lambda: a_host.told == [3, 4, 5])
        assert b_host.told == []
        assert a.is_flushed
        assert b.is_flushed


async def test_a_request_is_sent_back_by_a_busier_peer_and_taken_by_one_that_is_not() -> None:
    loads = Load(), Load(3)
    async with link_pair(loads=loads) as (a, _, a_host, b_host):
        ends = End(), End()
        for believed, end in enumerate(ends, 2):
            a.open_request("chat", end, end, believed)
        await until(lambda: len(b_host.opened) == 2)
        assert b_host.believed == [2, 3]
        assert [service for _, service in b_host.opened] == ["chat", "chat"]
        (first, _), (second, _) = b_host.opened
        second.other = End()
        first.refuse_as_busier(3)
        loads[1].in_flight = 4
        second.accept()
        await until(lambda: all(end.heard for end in ends))
        assert [end.heard for end in ends] == [["BUSIER 3"], ["OPENED"]]
        assert a_host.told == [4]


async def test_a_request_is_refused_by_a_full_peer_which_tells_when_it_has_room() -> None:
    async with link_pair(loads=(Load(), Load())) as (a, b, a_host, b_host):
        end = End()
        channel = a.open_request("chat", end, end, 0)
        await until(lambda: b_host.opened)
        b_host.opened[0][0].refuse_as_busier(FULL)
        await until(lambda: end.heard)
        assert end.heard == [f"BUSIER {FULL}"]
        assert channel.closed
        assert a_host.told == []
        assert b.mux.tell_load(again=True)
        await until(lambda: a_host.told == [0])


async def test_no_request_is_opened_on_a_link_that_has_ended() -> None:
    async with one_link(load=Load()) as (link, _, host):
        link.fail("gone")
        with pytest.raises(PeerUnavailable):
            link.open_request("default", End(), End(), 0)
        link.watch(trio.current_time())
        assert not link.mux.tell_load(again=True)
        assert host.closed == ["gone"]


@pytest.mark.parametrize("flood", [frame(LOAD, 0, load(1)), frame(WATCH, 0, bytes([WATCH_S]))], ids=["LOAD", "WATCH"])
async def test_who_floods_with_them_loses_its_link(flood: bytes) -> None:
    async with one_link(load=Load()) as (link, remote, host):
        record = flood * (MAX_PLAINTEXT // len(flood))
        with trio.fail_after(60):
            with suppress(trio.BrokenResourceError):
                while not link.is_closed:
                    await remote.say(record)
            await until(lambda: host.closed)
        assert len(host.misused) == 1
        assert "floods" in host.misused[0]


@pytest.mark.parametrize("said", [frame(LOAD, 0, load(1)), frame(WATCH, 0, bytes([WATCH_S])), frame(64)])
async def test_who_says_them_where_they_were_not_negotiated_loses_its_link(said: bytes) -> None:
    async with one_link() as (_, remote, host):
        await remote.say(said)
        await until(lambda: host.closed)
        assert host.misused == [f"an unknown frame type {said[0]}"]
        assert host.told == host.watched == []


# The end


async def test_the_end_is_told_once_to_everybody() -> None:
    async with one_link() as (link, remote, host):
        _, end = opened(link)
        await remote.say(frame(OPEN, 2), frame(STREAM, 4), frame(STREAM, 6))
        await until(lambda: host.opened)
        accepted = await link.accept_stream()
        for reason in ("the first", "the second"):
            link.fail(reason)
            link.fail("closed")
        assert host.closed == ["the first"]
        assert end.heard == ["RST the first"]
        assert host.opened[0][0].other.heard == ["RST the first"]
        with pytest.raises(MuxedStreamReset, match="the first"):
            await accepted.read()
        link.tick(trio.current_time() + 100)
        link.ping()
        assert host.closed == ["the first"]
        assert link.is_closed
        with pytest.raises(PeerUnavailable):
            link.open_tunnel("s", end, end)
        with pytest.raises(MuxedConnUnavailable):
            await link.open_stream()
        with trio.fail_after(20):
            await remote.hears_the_end()


async def test_who_waits_for_streams_hears_of_the_end(nursery: trio.Nursery) -> None:
    ended: list[bool] = []
    async with one_link() as (link, _, _):

        async def accept() -> None:
            with pytest.raises(MuxedConnUnavailable):
                await link.accept_stream()
            ended.append(True)

        nursery.start_soon(accept)
        await trio.testing.wait_all_tasks_blocked()
        link.fail("gone")
        await until(lambda: ended)


async def test_the_socket_leaves_the_reactor_with_the_link() -> None:
    reactor = Reactor()
    async with link_pair(reactor=reactor) as (a, b, *_):
        assert len(reactor) == 2
        a.fail("done")
        assert len(reactor) == 1
        assert a.carrier.sock is not None
        assert a.carrier.sock.fileno() == -1
        await until(lambda: b.is_closed)
        assert len(reactor) == 0


async def test_a_remote_that_hangs_up_ends_the_link() -> None:
    async with one_link() as (link, remote, host):
        _, end = opened(link)
        await remote.hear()
        await remote.stream.send_all(remote.seal(frame(OPENED, 1), frame(DATA, 1, b"last words")) + b"half a reco")
        await remote.stream.aclose()
        await until(lambda: host.closed)
        assert "closed the connection" in host.closed[0]
        assert end.heard == ["OPENED", b"last words", f"RST {host.closed[0]}"]


async def test_a_reset_ends_the_link_and_says_so() -> None:
    async with one_link() as (_, remote, host):
        assert isinstance(remote.stream, trio.SocketStream)
        remote.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await remote.stream.aclose()
        await until(lambda: host.closed)
        assert host.closed == ["Connection reset by peer"]


async def test_a_link_that_failed_before_it_ran_frees_its_connection() -> None:
    raw, stream = await raw_pair()
    reactor, host = Reactor(), Host()
    link = Link(secure(raw, initiator=True), PEERS[1], reactor=reactor, events=host)
    link.fail("given up")
    with trio.fail_after(20):
        await link.start()
        await Remote(stream).hears_the_end()
    assert link.started.is_set()
    assert len(reactor) == 0
    assert host.closed == ["given up"]
    await stream.aclose()
    reactor._poller.close()


async def test_a_link_that_fails_while_it_starts_leaves_nothing_in_the_reactor() -> None:
    """A closed link there would be told of the same bytes again and again."""
    raw, stream = await raw_pair()
    reactor, host = Reactor(), Host()
    link = Link(secure(raw, initiator=True), PEERS[1], reactor=reactor, events=host)
    close = raw.close

    async def close_and_fail() -> None:
        await close()
        link.fail("given up")

    raw.close = close_and_fail
    with trio.fail_after(20):
        await link.start()
        await Remote(stream).hears_the_end()
    assert len(reactor) == 0
    await stream.aclose()
    reactor._poller.close()


# A fault of ours


async def test_a_fault_in_a_tick_ends_that_link_and_is_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    async with link_pair() as (a, b, events, _):

        def fail(*_: object) -> None:
            raise KeyError("on purpose")

        monkeypatch.setattr(a.mux, "tick", fail)
        with capture_logs() as logs:
            a.tick_safely(trio.current_time(), PING_EVERY_S)
            b.tick_safely(trio.current_time(), PING_EVERY_S)
        assert events.closed == ["a fault of this node"]
        assert [entry["log_level"] for entry in logs] == ["error"]
        assert not b.is_closed


async def test_a_fault_in_its_start_ends_that_link_and_no_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """What leaves `start` ends py-libp2p's swarm, and so the daemon."""
    raw, stream = await raw_pair()
    reactor, host = Reactor(), Host()
    link = Link(secure(raw, initiator=True), PEERS[1], reactor=reactor, events=host)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")  # epoll: too many watches

    monkeypatch.setattr(reactor, "add", full)
    with capture_logs() as logs, trio.fail_after(1):
        await link.start()
    assert link.started.is_set()
    assert host.closed == ["a fault of this node"]
    assert [entry["log_level"] for entry in logs] == ["error"]
    await stream.aclose()
    reactor._poller.close()


async def test_a_fault_in_a_talk_ends_the_link_and_not_the_daemon() -> None:
    async with link_pair() as (a, b, events, _):

        async def say(link: Link) -> None:
            raise KeyError("on purpose")

        with capture_logs() as logs:
            await talk(a, say)
        assert events.closed == ["a fault of this node"]
        assert [entry["log_level"] for entry in logs] == ["error"]

        async def wait(_link: Link) -> None:
            await trio.sleep_forever()

        with trio.CancelScope() as scope:
            scope.cancel()
            await talk(b, wait)
        assert scope.cancelled_caught


async def test_a_fault_of_who_hears_of_the_end_keeps_nobody_else_from_hearing_of_it() -> None:
    async with link_pair() as (a, _b, events, _):

        class Bad(End):
            def abort(self, reason: str) -> None:
                raise KeyError("on purpose")

        a.open_tunnel("x", End(), Bad())
        with capture_logs() as logs:
            a.fail("over")
        assert events.closed == ["over"]
        assert [entry["log_level"] for entry in logs] == ["error"]


# A breach of the rules


BREACHES = {
    "a forged record": lambda _remote: b"\x00\x20" + bytes(32),
    "an impossible record": lambda _remote: b"\x00\x01\x00",
    "an unknown frame": lambda remote: remote.seal(frame(77, 1)),
    "a channel never opened": lambda remote: remote.seal(frame(DATA, 2, b"x")),
    "the last record again": lambda remote: remote.seal(frame(OPEN, 8)) + Sealer(KEYS[1]).seal(frame(OPEN, 8)),
    "behind good frames": lambda remote: remote.seal(frame(OPEN, 8), frame(FIN, 8), frame(FIN, 8)),
}


@pytest.mark.parametrize("breach", BREACHES.values(), ids=list(BREACHES))
async def test_a_breach_costs_its_own_link_and_no_other(breach: Callable[[Remote], bytes]) -> None:
    reactor = Reactor()
    async with (
        link_pair(reactor=reactor) as (a, b, *_),
        one_link(reactor=reactor) as (link, remote, host),
    ):
        _, end = opened(link)
        await remote.hear()
        await remote.stream.send_all(breach(remote))
        await until(lambda: host.closed)
        assert "broke the protocol" in host.closed[0]
        assert end.heard == [f"RST {host.closed[0]}"]
        assert len(host.misused) == 1
        stream = await a.open_stream()
        await stream.write(b"unharmed")
        assert await (await b.accept_stream()).read() == b"unharmed"


async def test_a_breach_behind_the_negotiation_ends_the_link() -> None:
    async with one_link(said=(frame(77, 1),)) as (link, remote, host):
        await until(lambda: host.closed)
        assert "broke the protocol" in host.closed[0]
        with trio.fail_after(20):
            await remote.hears_the_end()
        assert link.is_closed


async def test_a_remote_that_makes_us_answer_and_does_not_read_is_closed() -> None:
    reactor = Reactor()
    async with trio.open_nursery() as nursery:
        await nursery.start(reactor.run)
        host = Host()
        raw, stream = await raw_pair()
        raw.stream.stream.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # type: ignore[attr-defined]
        link = Link(secure(raw, initiator=True), PEERS[1], reactor=reactor, events=host)
        nursery.start_soon(link.start)
        remote = Remote(stream)
        pings = frame(PING, 0, bytes(8)) * (MAX_PLAINTEXT // 15)
        with trio.fail_after(20):
            while not host.closed:
                try:
                    await remote.say(pings)
                except trio.BrokenResourceError:
                    break
                assert len(link.mux._control) <= MAX_CONTROL
        await until(lambda: host.closed)
        assert "does not read" in host.closed[0]
        await trio.aclose_forcefully(stream)
        nursery.cancel_scope.cancel()


async def test_more_to_say_than_may_wait_ends_the_link() -> None:
    """Frames were lost: what is left would make no sense to the remote."""
    async with one_link() as (link, remote, host):
        for _ in range(MAX_CONTROL + 1):
            link.ping()
        await until(lambda: host.closed)
        await remote.hears_the_end()
        assert remote.heard == []


# Large transfers


def pattern(n: int, size: int) -> bytes:
    return hashlib.shake_128(b"%d" % n).digest(64 * 1024) * (size // (64 * 1024))


async def digest_of(stream: MuxStream) -> tuple[int, str]:
    digest, size = hashlib.sha256(), 0
    while True:
        try:
            data = await stream.read()
        except MuxedStreamEOF:
            return size, digest.hexdigest()
        size += len(data)
        digest.update(data)


async def test_large_transfers_both_ways_at_once_arrive_whole() -> None:
    size = 16 * 1024 * 1024
    got: dict[tuple[str, int], tuple[int, str]] = {}
    want = {}
    async with link_pair() as (a, b, *_), trio.open_nursery() as nursery:

        async def write(stream: MuxStream, data: bytes) -> None:
            await stream.write(data)
            await stream.close()

        async def read(key: tuple[str, int], stream: MuxStream) -> None:
            got[key] = await digest_of(stream)

        for n in range(3):
            ours = await a.open_stream()
            theirs = await b.accept_stream()
            for key, source, sink in ((("up", n), ours, theirs), (("down", n), theirs, ours)):
                data = pattern(len(want), size)
                want[key] = (size, hashlib.sha256(data).hexdigest())
                nursery.start_soon(write, source, data)
                nursery.start_soon(read, key, sink)
        await until(lambda: not nursery.child_tasks, seconds=30)
    assert got == want


@dataclass
class Source(End):
    """Sends `left` bytes as fast as there is room, as a socket with data does."""

    left: int = 0

    def push(self) -> None:
        while self.left and (room := self.other.writable()):
            n = min(room, self.left)
            self.other.send(bytes(n))
            self.left -= n

    def resume_writing(self) -> None:
        self.push()


def source(link: Link, left: int) -> Source:
    end = Source(left=left)
    end.other = link.open_tunnel("default", end, end)
    return end


async def test_a_reader_that_stops_stops_its_sender_alone_and_loses_nothing() -> None:
    total = 4 * MAX_WINDOW
    async with link_pair() as (a, b, _, far):
        slow = source(a, total)
        await until(lambda: far.opened)
        held = far.opened[0][0]
        held.other = End(credit=False, other=held)
        slow.push()
        await until(lambda: len(held.other.data) == INITIAL_WINDOW)
        fast = source(a, total)
        await until(lambda: len(far.opened) == 2)
        far.opened[1][0].other = End(other=far.opened[1][0])
        fast.push()
        await until(lambda: len(far.opened[1][0].other.data) == total)
        assert len(held.other.data) == INITIAL_WINDOW
        assert slow.left == total - INITIAL_WINDOW  # nothing waits in between
        assert a.mux.out_size == 0
        assert not b.suspect
        taken = 0
        while taken < total:  # it goes on, at its own pace
            await until(lambda: len(held.other.data) > taken)  # noqa: B023
            n = len(held.other.data) - taken
            held.acknowledge(n)
            taken += n
        assert slow.left == 0


async def test_what_waits_for_a_remote_that_does_not_read_is_bounded_and_arrives_when_it_does() -> None:
    raw, stream = await raw_pair()
    raw.stream.stream.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 * 1024)
    async with trio.open_nursery() as nursery:
        reactor, remote = Reactor(), Remote(stream)
        await nursery.start(reactor.run)
        link = Link(secure(raw, initiator=True), PEERS[1], reactor=reactor, events=Host())
        nursery.start_soon(link.start)
        each, many = MAX_WINDOW, 20
        sources = [source(link, each) for _ in range(many)]
        await remote.hear("OPEN")
        for end in sources:
            await remote.say(frame(OPENED, end.other.id), frame(CREDIT, end.other.id, credit(MAX_WINDOW)))
            end.push()
        await until(lambda: link.carrier._unsent is not None and link.mux.out_size >= CONNECTION_BUFFER // 2)
        assert link.mux.out_size < CONNECTION_BUFFER + CHANNEL_BUFFER
        assert len(link.carrier._unsent or b"") < SEND_BYTES + 2 * MAX_PLAINTEXT
        assert not link.is_flushed
        received = 0
        with trio.fail_after(20):
            while received < each * many:
                received += sum(len(payload) for kind, _, payload in await remote.hear("DATA") if kind == "DATA")
                assert link.mux.out_size < CONNECTION_BUFFER + CHANNEL_BUFFER
        assert received == each * many
        await until(lambda: link.is_flushed)
        link.fail("closed")
        await stream.aclose()
        nursery.cancel_scope.cancel()


class Scripted:
    """A socket that takes no more than the script says: so many bytes, or None for BlockingIOError, and again."""

    def __init__(self, sock: socket.socket, script: list[int | None]) -> None:
        self._sock = sock
        self._script = itertools.cycle(script)

    def send(self, data: Any) -> int:
        limit = next(self._script)
        if limit is None:
            raise BlockingIOError
        return self._sock.send(data[:limit])

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


@pytest.mark.parametrize("script", [[1 << 30, None], [None, 1], [1000, None, None, 1 << 30], [7]], ids=str)
async def test_whatever_the_kernel_takes_at_a_time_all_of_it_arrives(script: list[int | None]) -> None:
    async with one_link() as (link, remote, _):
        assert link.carrier.sock is not None
        link.carrier.sock = Scripted(link.carrier.sock, script)  # type: ignore[assignment]
        for n in range(20):
            channel, end = opened(link)
            await remote.hear("OPEN")
            await remote.say(frame(OPENED, channel.id))
            await until(lambda: end.heard)  # noqa: B023
            data = bytes([n]) * (n * 100 + 1)
            channel.send(data)
            channel.send_eof()
            heard = await remote.hear("FIN")
            assert b"".join(payload for kind, _, payload in heard if kind == "DATA") == data
        await until(lambda: link.is_flushed and link.carrier._mask == READ)


async def test_flushed_is_what_the_kernel_has_taken() -> None:
    async with one_link() as (link, remote, _):
        assert link.carrier.sock is not None
        sock = link.carrier.sock
        link.carrier.sock = Scripted(sock, [None])  # type: ignore[assignment]
        await until(lambda: link.is_flushed)
        link.ping()
        assert not link.is_flushed
        await until(lambda: link.mux.is_empty and not link.carrier._flush_queued)
        assert not link.is_flushed
        link.carrier.sock = sock
        await until(lambda: link.is_flushed)
        assert await remote.hear()


async def test_a_socket_that_owes_an_answer_is_asked() -> None:
    async with one_link() as (link, remote, _):
        now = trio.current_time()
        link.tick(now + PING_AFTER_S + 1)
        opened(link)
        await remote.hear("OPEN")
        link.tick(now + PING_AFTER_S + 1.1)
        assert [kind for kind, _, _ in await remote.hear()] == ["PING"]


async def test_one_turn_of_the_reactor_sends_so_much_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other sockets' events come in between, not behind."""
    monkeypatch.setattr(carrier, "TURN_BYTES", 2 * MAX_PLAINTEXT)
    monkeypatch.setattr(carrier, "SEND_BYTES", 16 * 1024)
    async with one_link() as (link, remote, _):
        assert link.carrier.sock is not None
        link.carrier.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        for _ in range(8):
            source(link, INITIAL_WINDOW).push()
        queued = link.mux.out_size
        link.carrier._flush()
        assert link.carrier._unsent is None  # the kernel would have taken more
        assert 0 < queued - link.mux.out_size <= 3 * MAX_PLAINTEXT
        assert not link.is_flushed
        received = 0
        while received < queued:
            received += sum(len(payload) for kind, _, payload in await remote.hear("DATA") if kind == "DATA")
        await until(lambda: link.is_flushed and link.carrier._mask == READ)  # and it asks for no turn that it does not need
