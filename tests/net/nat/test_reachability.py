"""Whether others can dial a node, and what it does if not: hosts on loopback, which count as other networks here."""

from __future__ import annotations

import ipaddress
from collections import Counter
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import trio

from federation.errors import ProtocolViolation
from federation.net.dial.hearsay import HOST_AT_ONCE
from federation.net.nat import reachability as reach_module
from federation.net.nat.reachability import MAX_PORTS, Reachability, Verdicts, _HeldReservation, is_outside
from federation.net.nat.relay import RelayLimits
from federation.units import HostPort
from tests.support.duplex import FakeChannel, Rig, check_duplex
from tests.support.hosts import Peer, peers
from tests.support.links import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

LAN = [ipaddress.ip_network("192.168.1.0/24"), ipaddress.ip_network("fd00::/64")]


@pytest.mark.parametrize(
    ("host", "outside"),
    [
        ("192.168.1.7", False),
        ("192.168.2.7", True),
        ("198.51.100.1", True),
        ("fd00::7", False),
        ("fd01::7", True),
        ("127.0.0.1", False),
        ("::1", False),
        ("169.254.1.1", False),
    ],
)
def test_outside_is_another_network(host: str, outside: bool) -> None:
    assert is_outside(host, LAN) is outside


@pytest.mark.parametrize(
    ("found", "dialable"),
    [([], None), ([True], True), ([False], False), ([True, False], False), ([True, True, False], True)],
)
def test_most_decide_and_a_tie_is_a_no(found: list[bool], dialable: bool | None) -> None:
    assert Verdicts({str(n): yes for n, yes in enumerate(found)}).dialable is dialable


@pytest.mark.parametrize(
    "message", [None, [], [[]], [[0], None], [["1"], None], [[True], None], [[1], "x"], [[1] * 9, None]]
)
def test_a_question_that_is_none(message: Any) -> None:
    with pytest.raises(ProtocolViolation):
        reach_module._read_question(message)


@pytest.mark.parametrize(
    "message",
    [
        None,
        [],
        [["h"], None, []],
        [["192.0.2.1", 0], None, []],
        [["192.0.2.1", 1], 5, []],
        [["box.lan", 1], None, []],
        [["fe80::1%$(touch${IFS}pwned)", 1], None, []],
        [["192.0.2.1", 1], None, [1] * (MAX_PORTS + 1)],
    ],
)
def test_an_answer_that_is_none(message: Any) -> None:
    with pytest.raises(ProtocolViolation):
        reach_module._read_answer(message)


class Side:
    """A host with its Reachability."""

    def __init__(self, peer: Peer, relays: set[str]) -> None:
        self.peer = peer
        self.changes = 0
        self.reachability = Reachability(peer.host, relays=relays.__contains__, networks=lambda: [], on_change=self._changed)

    def _changed(self) -> None:
        self.changes += 1

    async def run(self) -> None:
        await self.reachability.run(HostPort(self.peer.address.host, self.peer.address.port))


@asynccontextmanager
async def sides(count: int, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[list[Side], set[str]]]:
    """So many, and the set of those that relay, which the test fills."""
    monkeypatch.setattr(reach_module, "is_outside", lambda _host, _networks: True)
    relays: set[str] = set()
    async with peers(count, relay=RelayLimits()) as found, trio.open_nursery() as nursery:
        made = [Side(peer, relays) for peer in found]
        for side in made:
            nursery.start_soon(side.run)
        yield made, relays
        nursery.cancel_scope.cancel()


async def connect(a: Side, b: Side) -> None:
    """`a` dials; both are told, as a node is."""
    a.peer.knows(b.peer)
    await until(lambda: b.peer.id in a.peer.host.links and a.peer.id in b.peer.host.links)
    a.reachability.peer_up(a.peer.host.links[b.peer.id])
    b.reachability.peer_up(b.peer.host.links[a.peer.id])


async def test_who_was_dialled_from_outside_is_dialable(monkeypatch: pytest.MonkeyPatch) -> None:
    async with sides(2, monkeypatch) as ((a, b), _):
        await connect(a, b)
        assert b.reachability.dialable is True  # at once


async def test_who_dials_out_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    async with sides(2, monkeypatch) as ((a, b), _):
        await connect(a, b)
        await until(lambda: a.reachability.dialable is True)
        assert list(a.reachability.public) == [("127.0.0.1", a.peer.address.port)]
        assert a.changes
        assert not b.peer.host.rejected  # a member that only looked is nobody to complain of


async def test_who_cannot_be_dialled_takes_a_place_and_a_new_one_when_the_relay_is_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with sides(2, monkeypatch) as ((a, b), relays):
        relays.add(b.peer.id)
        await a.peer.host.stop_listening()
        await connect(a, b)
        await until(lambda: a.reachability.via == (b.peer.id,))
        assert a.reachability.dialable is False
        assert b.peer.host.relay.reserved == [a.peer.id]
        a.peer.host.links[b.peer.id].fail("the relay restarts")
        await until(lambda: a.reachability.via == ())
        await until(lambda: b.peer.id in a.peer.host.links)
        a.reachability.peer_up(a.peer.host.links[b.peer.id])
        await until(lambda: a.reachability.via == (b.peer.id,))


async def test_a_relay_that_met_us_halfway_is_as_good(monkeypatch: pytest.MonkeyPatch) -> None:
    """It restarted, and came by way of another relay before we dialled it."""
    async with sides(2, monkeypatch) as ((a, b), relays):
        await connect(b, a)
        await until(lambda: b.peer.id in a.reachability._asked and not a.reachability._asking)
        relays.add(b.peer.id)
        a.reachability.verdicts.by_peer = {b.peer.id: False}
        a.peer.host.links[b.peer.id].path = "punched"
        a.reachability.look()
        await until(lambda: a.reachability.via == (b.peer.id,))


async def test_two_relays_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    async with sides(4, monkeypatch) as ((a, *others), relays):
        await a.peer.host.stop_listening()
        for other in others:
            await connect(a, other)
        await until(lambda: a.reachability.dialable is False)
        assert a.reachability.via == ()  # nobody says that it relays
        relays.update(other.peer.id for other in others)
        a.reachability.look()
        await until(lambda: len(a.reachability.via) == 2)
        assert sum(len(other.peer.host.relay.reserved) for other in others) == 2


async def test_the_nearest_relays_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    async with sides(4, monkeypatch) as ((a, *others), relays):
        await a.peer.host.stop_listening()
        for other in others:
            await connect(a, other)
        await until(lambda: a.reachability.dialable is False)
        for other, rtt_s in zip(others, (0.05, 0.2, 0.001), strict=True):
            a.peer.host.links[other.peer.id].rtt_s = rtt_s
        relays.update(other.peer.id for other in others)
        a.reachability.look()
        await until(lambda: a.reachability.via == (others[2].peer.id, others[0].peer.id))


def test_equally_near_relays_share_the_nodes() -> None:
    def first_choice(node: str) -> str:
        links = {relay: SimpleNamespace(rtt_s=0.02 + n / 1000) for n, relay in enumerate("ABCD")}
        reach = SimpleNamespace(_host=SimpleNamespace(links=links, peer_id=node))
        return min(links, key=lambda relay: Reachability._nearness(reach, relay))  # type: ignore[arg-type]

    taken = Counter(first_choice(f"node{n}") for n in range(400))
    assert min(taken[relay] for relay in "ABCD") > 70, taken


async def test_a_relay_that_says_no_is_left_alone_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    async with sides(2, monkeypatch) as ((a, b), relays):
        b.peer.host.relay.close()
        relays.add(b.peer.id)
        await a.peer.host.stop_listening()
        await connect(a, b)
        await until(lambda: b.peer.id in a.reachability._refused)
        a.reachability.look()
        await trio.testing.wait_all_tasks_blocked()
        assert not a.reachability._reservations


async def test_what_others_see_of_a_port(monkeypatch: pytest.MonkeyPatch) -> None:
    async with sides(2, monkeypatch) as ((a, b), _):
        await connect(a, b)
        with trio.fail_after(20):
            mapped = await a.reachability.mapped_address(HostPort(a.peer.address.host, a.peer.address.port))
        assert mapped == ("127.0.0.1", a.peer.address.port)
        with trio.fail_after(20):
            assert (
                await b.reachability.mapped_address(HostPort("127.0.0.1", b.peer.address.port)) is None
            )  # it dialled nobody


async def test_nobody_is_made_to_dial_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only where the asker itself is connected from, only a few ports, and not twice a second."""
    async with sides(2, monkeypatch) as ((a, b), _):
        dialled: list[tuple[str, int]] = []

        async def dial(host: str, port: int) -> None:
            dialled.append((host, port))
            raise OSError

        await connect(a, b)
        await until(lambda: a.reachability.dialable is not None)
        b.reachability._answered.clear()
        monkeypatch.setattr(trio, "open_tcp_stream", dial)
        monkeypatch.setattr(reach_module, "ANSWER_EVERY_S", 600.0)
        monkeypatch.setattr(reach_module, "DIAL_BACK_S", 0.5)
        link = a.peer.host.links[b.peer.id]
        began = trio.current_time()
        with trio.fail_after(30):
            _, _, ports = await a.reachability._question(link, [1, 2], b"no such handshake")
            assert ports == []
            assert trio.current_time() >= began + 0.5  # a closed port takes as long as a silent one
            with pytest.raises(trio.BrokenResourceError):
                await a.reachability._question(link, [3], None)
        assert sorted(dialled) == [("127.0.0.1", 1), ("127.0.0.1", 2)]


async def test_where_it_makes_no_sense_and_too_often_nobody_is_dialled_back(monkeypatch: pytest.MonkeyPatch) -> None:
    async with sides(2, monkeypatch) as ((a, b), _):
        await connect(a, b)
        await until(lambda: a.reachability.dialable is not None)
        dialled: list[int] = []

        async def dial(_host: str, port: int) -> None:
            dialled.append(port)
            raise OSError

        monkeypatch.setattr(trio, "open_tcp_stream", dial)
        found: list[int] = []
        b.reachability._may_dial = lambda address, _trusted: address.port != 22
        for port in (22, *range(2000, 2100)):
            await b.reachability._dial_back("127.0.0.1", port, a.peer.id, found)
        assert 22 not in dialled
        assert len(dialled) <= HOST_AT_ONCE + 5  # by whichever peers behind one host it is asked
        assert found == []


def test_one_member_does_not_decide_where_others_are_to_dial_us() -> None:
    reach: Any = SimpleNamespace(public={}, _named={"evil": [("203.0.113.66", 22)]})
    Reachability._believe_most(reach)
    assert list(reach.public) == [("203.0.113.66", 22)]  # there is nobody else to ask
    reach._named |= {"a": [("198.51.100.1", 4484)], "b": [("198.51.100.1", 4484)], "cannot": []}
    Reachability._believe_most(reach)
    assert list(reach.public) == [("198.51.100.1", 4484)]


async def test_only_ports_that_were_asked_for_are_announced(monkeypatch: pytest.MonkeyPatch) -> None:
    async with sides(2, monkeypatch) as ((a, b), _):

        async def answer(*_: Any) -> Any:
            return ("203.0.113.66", 1), None, [22]

        monkeypatch.setattr(a.reachability, "_question", answer)
        await connect(a, b)
        await until(lambda: a.reachability.dialable is not None)
        assert a.reachability.dialable is False
        assert not a.reachability.public


@asynccontextmanager
async def a_held_reservation() -> AsyncIterator[Rig]:
    """As its holder has it."""
    relay, link = FakeChannel(), SimpleNamespace(is_closed=False)
    reach, host = SimpleNamespace(lost=lambda *_, **__: None), SimpleNamespace(reserve=lambda *_: relay)
    relay.other = _HeldReservation(reach, host, link)  # type: ignore[arg-type]
    yield Rig(relay, has_room=False, carries=False)


async def test_a_held_reservation_keeps_the_contract_of_a_duplex() -> None:
    await check_duplex(_HeldReservation, a_held_reservation)
