"""The ways to a node, put together: what its record says of them, which relays lead to a peer, and a machine that moves."""

from __future__ import annotations

import ipaddress
from contextlib import asynccontextmanager
from datetime import datetime, timezone
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import trio

from federation.config import Settings
from federation.mesh import connectivity as paths_module
from federation.mesh import gaps
from federation.mesh.connectivity import LOOK_EVERY_S, Connectivity, relay_limits
from federation.mesh.ledger import Ledger
from federation.mesh.records import NodeData
from federation.net.dial.address import PeerAddress
from federation.net.nat.relay import RelayLimits
from tests.support.hosts import new_peer, reactor_running
from tests.support.links import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

NOW = datetime(2026, 1, 1, tzinfo=timezone.utc)
BOB, RELAY, OTHER, BANNED = (f"12D3KooW{letter * 44}" for letter in "BRSX")


class World:
    def __init__(self, connectivity: Connectivity, host: Any, ledger: Ledger) -> None:
        self.connectivity, self.host, self.ledger = connectivity, host, ledger
        self.changes = 0

    def hear(self, peer_id: str, **fields: Any) -> NodeData:
        known = self.ledger.get(peer_id)
        seq = known.record.seq + 1 if known is not None else 1
        record = NodeData(peer_id=peer_id, last_seen=NOW, seq=seq, **fields)
        self.ledger.merge(record, now=NOW)
        return record

    def link(self, peer_id: str, **fields: Any) -> SimpleNamespace:
        link = SimpleNamespace(
            **{"peer_id": peer_id, "path": "direct", "rtt_s": None, "is_initiator": True,
               "remote_address": ("198.51.100.1", 1), "local_host": "192.0.2.1", "failed": "", **fields}
        )  # fmt: skip
        link.pings = 0
        link.fail = lambda reason: setattr(link, "failed", reason)
        link.ping = lambda: setattr(link, "pings", link.pings + 1)
        self.host.links[peer_id] = link
        return link


@asynccontextmanager
async def world(**settings: Any) -> AsyncIterator[World]:
    async with reactor_running() as reactor:
        peer = await new_peer(1, reactor, relay=RelayLimits())
        ledger = Ledger()
        made: World

        def changed() -> None:
            made.changes += 1

        connectivity = Connectivity(
            peer.host, ledger, Settings(**settings), on_change=changed, utc_now=lambda: NOW, is_banned=BANNED.__eq__
        )
        made = World(connectivity, peer.host, ledger)
        yield made
        peer.host.links.clear()
        await peer.host.stop_listening()


def test_limits_are_those_of_the_settings() -> None:
    assert relay_limits(Settings(relay=False)) is None
    assert relay_limits(Settings(relay_reservations=1, relay_circuits=2, relay_rate_bytes=3)) == RelayLimits(1, 2, 3)


async def test_who_can_be_dialled_relays_unless_told_not_to() -> None:
    async with world() as it:
        assert not it.connectivity.relays
        it.connectivity.reachability.verdicts.by_peer[BOB] = True
        assert it.connectivity.relays
        it.host.relay.close()
        assert not it.connectivity.relays


async def test_who_has_members_on_two_of_its_networks_relays(monkeypatch: pytest.MonkeyPatch) -> None:
    nets = [ipaddress.ip_network(text) for text in ("10.0.0.0/8", "10.1.0.0/24", "192.168.1.0/24", "fd00::/64")]
    monkeypatch.setattr(paths_module, "local_networks", lambda **_: nets)
    async with world() as it:
        for host, path, relays in (
            ("10.1.0.5", "direct", False), ("10.1.0.6", "direct", False), ("198.51.100.1", "direct", False),
            ("fd00::5", "direct", False), ("192.168.1.5", "relayed", False), ("192.168.1.6", "direct", True),
        ):  # fmt: skip
            it.link(host, remote_address=(host, 4484), path=path)
            it.connectivity._look_at_links()
            assert it.connectivity.relays is relays
        assert it.changes == 1
        del it.host.links["192.168.1.6"]
        it.connectivity._look_at_links()
        assert not it.connectivity.relays
        assert it.changes == 2


async def test_a_member_that_is_there_without_a_way_to_it_is_a_reason_for_relays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gaps, "AFTER_S", 0.0)
    async with world() as it:
        reachability = it.connectivity.reachability
        it.hear(OTHER)
        it.link(OTHER)
        for _ in range(10):
            it.hear(BANNED)
            it.hear(OTHER)
            it.connectivity._look_at_links()
        assert not reachability._is_cut_off
        for _ in range(10):
            it.hear(BOB)
            it.connectivity._look_at_links()
        assert reachability._is_cut_off
        reachability.moved()
        assert not reachability._is_cut_off


async def test_where_members_reached_us_is_announced_behind_our_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths_module, "local_addresses", lambda *_: ["/ip4/192.168.1.2/tcp/4484"])
    async with world() as it:
        assert it.connectivity.read()
        it.connectivity.reachability.public["198.51.100.7", 4484] = None
        it.connectivity._reachability_changed()
        assert [(a.host, a.port) for a in it.connectivity.addresses] == [("192.168.1.2", 4484), ("198.51.100.7", 4484)]
        assert it.changes == 1
        it.connectivity.reachability.moved()
        assert it.connectivity.read()
        assert [a.host for a in it.connectivity.addresses] == ["192.168.1.2"]


async def test_what_is_announced_by_hand_is_all_of_our_own() -> None:
    async with world(announce=("box.example:9000",)) as it:
        it.connectivity.read()
        assert [str(PeerAddress(a.host, a.port)) for a in it.connectivity.addresses] == ["/dns/box.example/tcp/9000"]


async def test_the_nearest_relay_goes_first_and_only_those_that_are_linked_directly() -> None:
    async with world() as it:
        assert it.connectivity.routes(BOB) == []
        it.hear(BOB, via=(RELAY, OTHER, "gone", "round"))
        it.link(RELAY, rtt_s=0.2)
        it.link(OTHER, rtt_s=0.1)
        it.link("round", path="relayed")
        assert it.connectivity.routes(BOB) == [OTHER, RELAY]
        it.hear(BOB, via=(RELAY,), left=True)
        assert it.connectivity.routes(BOB) == []


async def test_a_record_that_names_new_relays_is_a_new_way() -> None:
    async with world() as it:
        first = it.hear(BOB)
        assert not it.connectivity.record_changed(first, None)
        second = it.hear(BOB, via=(RELAY,))
        assert it.connectivity.record_changed(second, first)
        assert not it.connectivity.record_changed(it.hear(BOB, via=(RELAY,), in_flight=1), second)
        assert not it.connectivity.record_changed(it.hear(BOB), second)


async def test_who_waits_for_a_relay_is_dialled_when_it_is_there() -> None:
    async with world() as it:
        it.hear(BOB, via=(RELAY,))
        news = it.host.dial_loop._routes_changed
        it.connectivity.peer_up(it.link(OTHER))
        assert not news.is_set()
        it.connectivity.peer_up(it.link(RELAY))
        assert news.is_set()


async def test_addresses_on_our_own_networks_are_near(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths_module, "local_networks", lambda **_: [ipaddress.ip_network("192.168.1.0/24")])
    async with world() as it:
        near = [
            it.host.book.is_near(PeerAddress(host, 1)) for host in ("192.168.1.9", "192.168.2.9", "127.0.0.1", "box.lan")
        ]
        assert near == [True, False, False, False]


async def test_what_others_announce_is_dialled_where_it_makes_sense(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths_module, "interface_ips", lambda: {"127.0.0.1", "11.22.33.44"})
    monkeypatch.setattr(paths_module, "local_networks", lambda **_: [ipaddress.ip_network("11.22.33.0/24")])
    async with world() as it:
        home = PeerAddress("192.168.7.7", 4484, BOB)
        it.hear(BOB)
        it.host.book.add(home, source="record")
        (target,) = it.host.book.due(0.0, connected=(), self_id="me")
        assert target.addresses == ()
        it.host.book.started(target)
        it.host.book.failed(target, 0.0)
        it.connectivity.peer_up(it.link(RELAY, remote_address=("192.168.9.9", 40000)))  # packets find there after all
        (target,) = it.host.book.due(0.3, connected=(), self_id="me")
        assert target.addresses == (home,)


async def test_a_name_is_announced_with_what_it_stands_for(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    """Others do not dial names. While it does not resolve, what it stood for last is kept; and it may stand for here."""
    answers: list[Any] = [["11.22.33.44", "127.0.0.1", "fe80::1%eth0"], None, ["11.22.33.45"], ["127.0.1.1"], None]
    monkeypatch.setattr(paths_module, "local_addresses", lambda _host, port: [f"/ip4/192.168.1.5/tcp/{port}"])

    async def resolve(host: str, port: int, **_: Any) -> Any:
        assert (host, port) == ("box.example", 9000)
        found = answers.pop(0)
        if found is None:
            raise OSError
        return [(0, 0, 0, "", (ip, port)) for ip in found]

    monkeypatch.setattr(trio.socket, "getaddrinfo", resolve)
    async with world(announce=("box.example:9000",)) as it, trio.open_nursery() as nursery:
        it.connectivity.read()
        nursery.start_soon(it.connectivity._resolve_forever, list(it.connectivity.addresses))
        seen = []
        for _ in range(4):
            await trio.sleep(paths_module.RESOLVE_EVERY_S / 2)
            seen.append([a.host for a in it.connectivity.addresses])
            await trio.sleep(paths_module.RESOLVE_EVERY_S / 2)
        ips = ("11.22.33.44", "11.22.33.44", "11.22.33.45", "192.168.1.5")
        assert seen == [["box.example", ip] for ip in ips]
        assert it.changes == 3
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(("at", "failed"), [("10.7.0.2", True), ("10.7.0.3", False), ("198.51.100.1", False), (None, False)])
async def test_a_peer_that_moved_hears_nothing_at_its_old_address(
    monkeypatch: pytest.MonkeyPatch, at: str | None, failed: bool
) -> None:
    """Of an address on our own network it says so itself; for any other there is a PING. 10.7.0.3 it still has."""
    monkeypatch.setattr(paths_module, "local_networks", lambda **_: [ipaddress.ip_network("10.7.0.0/24")])
    async with world() as it:
        link = it.link(BOB, remote_address=None if at is None else (at, 40000))
        before = it.hear(BOB, addresses=("/ip4/10.7.0.2/tcp/1", "/ip4/10.7.0.3/tcp/1", "/ip4/198.51.100.1/tcp/1", "/x/new"))
        it.connectivity.record_changed(before, None)
        it.connectivity.record_changed(it.hear(BOB, addresses=before.addresses, in_flight=1), before)
        assert (link.failed, link.pings) == ("", 0)
        it.connectivity.record_changed(it.hear(BOB, addresses=("/ip4/10.7.0.3/tcp/2",)), before)
        assert bool(link.failed) is failed
        assert link.pings == (not failed and at is not None)


async def test_a_peer_that_leaves_has_no_addresses_and_finishes_what_it_does() -> None:
    async with world() as it:
        link = it.link(BOB)
        before = it.hear(BOB, addresses=("/ip4/198.51.100.1/tcp/1",))
        it.connectivity.record_changed(it.hear(BOB, left=True), before)
        assert not link.failed


async def test_a_machine_that_moves_drops_what_hangs_on_the_old_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths_module, "LOOK_EVERY_S", LOOK_EVERY_S / 100)
    ips = {"192.0.2.1", "192.0.2.2"}
    looks = 0

    def look() -> set[str]:
        nonlocal looks
        looks += 1
        return set(ips)

    monkeypatch.setattr(paths_module, "interface_ips", look)
    monkeypatch.setattr(paths_module, "lasting_ips", lambda: set(ips))
    async with world() as it, trio.open_nursery() as nursery:
        old, kept, relayed = (
            it.link(BOB),
            it.link(RELAY, local_host="192.0.2.2"),
            it.link(OTHER, local_host="", path="relayed"),
        )
        it.connectivity.reachability.verdicts.by_peer[RELAY] = True
        nursery.start_soon(it.connectivity._watch)
        await until(lambda: looks == 3)
        assert it.changes == 0
        ips.remove("192.0.2.1")
        await until(lambda: it.changes == 1)
        assert old.failed
        assert not kept.failed
        assert not relayed.failed
        assert it.connectivity.reachability.dialable is None  # all has to be found out anew
        nursery.cancel_scope.cancel()


async def test_containers_that_come_and_go_are_no_move(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    ips = {"192.0.2.1"}
    monkeypatch.setattr(paths_module, "interface_ips", lambda: set(ips))
    monkeypatch.setattr(paths_module, "lasting_ips", lambda: {ip for ip in ips if not ip.startswith(("fe80", "172"))})
    monkeypatch.setattr(paths_module, "local_addresses", lambda *_: ["/ip4/192.0.2.1/tcp/1"])
    async with world() as it, trio.open_nursery() as nursery:
        it.connectivity.read()
        to_a_container = it.link(BOB, local_host="172.18.0.1")
        it.connectivity.reachability.verdicts.by_peer[RELAY] = True
        nursery.start_soon(it.connectivity._watch)
        for number in range(10):
            ips |= {f"fe80::{number}", "172.18.0.1"}
            await trio.sleep(1.1 * LOOK_EVERY_S)  # never at the moment of a look
            ips -= {f"fe80::{number}", "172.18.0.1"}
            await trio.sleep(1.1 * LOOK_EVERY_S)
        assert it.changes == 0
        assert it.connectivity.reachability.dialable is True
        assert to_a_container.failed  # nobody hears us there
        ips.add("192.0.2.2")
        await trio.sleep(1.5 * LOOK_EVERY_S)
        assert it.changes == 1
        nursery.cancel_scope.cancel()
