"""From a relayed link to a direct one, on loopback: the appointment, the meeting, and what a remote may say in it."""

from __future__ import annotations

from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import trio

from federation.errors import FederationError, ProtocolViolation
from federation.net.dial.address import PeerAddress
from federation.net.dial.hearsay import HOST_A_SECOND, HOST_AT_ONCE
from federation.net.nat import holepunch
from federation.net.nat.holepunch import MAX_ENDPOINTS, Puncher
from federation.units import HostPort
from tests.support.circuits import reserve
from tests.support.hosts import Peer, star
from tests.support.links import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

LOOPBACK = HostPort("127.0.0.1", 0)
NONSENSE = ("169.254.0.1", "10.0.0.1")


async def nobody_can_tell(_listen: HostPort) -> None:
    return None


@asynccontextmanager
async def relayed(
    *, outside: bool = True, hosts: Callable[[], list[str]] = lambda: ["127.0.0.1"]
) -> AsyncIterator[tuple[tuple[Peer, Puncher], tuple[Peer, Puncher]]]:
    """Two that have a relayed link, which the first one dialled."""
    async with star(2) as (relay, (a, b)), trio.open_nursery() as nursery:
        punchers = [
            Puncher(
                peer.host, mapped_address=nobody_can_tell, own_hosts=hosts, is_outside=lambda _host: outside,
                may_dial=lambda address, _trusted: address.host not in NONSENSE,
            )
            for peer in (a, b)
        ]  # fmt: skip
        for puncher in punchers:
            nursery.start_soon(puncher.run, LOOPBACK)
        await reserve(b, relay)
        await a.host.connect_via_relay(relay.id, b.id)
        await until(lambda: b.has(a, relay))
        yield (a, punchers[0]), (b, punchers[1])
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(("outside", "path"), [(True, "punched"), (False, "direct")])
async def test_the_path_becomes_direct(outside: bool, path: str) -> None:
    async with relayed(outside=outside) as ((a, puncher), (b, _)):
        puncher.peer_up(a.host.links[b.id])
        await until(lambda: a.host.links[b.id].path == b.host.links[a.id].path == path)
        assert a.host.links[b.id].is_initiator  # who led
        assert not b.host.links[a.id].is_initiator
        await until(lambda: not puncher._punching)  # the link is there a moment before the meeting is over


async def test_who_did_not_dial_the_relayed_link_does_not_lead() -> None:
    async with relayed() as ((a, _), (b, puncher)):
        puncher.peer_up(b.host.links[a.id])
        await trio.testing.wait_all_tasks_blocked()
        assert not puncher._punching
        assert b.host.links[a.id].path == "relayed"


async def test_in_vain_the_relayed_link_stays_and_it_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holepunch, "PUNCH_S", 0.2)
    monkeypatch.setattr(holepunch, "RETRY_AFTER_S", (0.0, 0.1, 60.0))
    monkeypatch.setattr(holepunch, "PUNCH_EVERY_S", 0.0)
    where = ["192.0.2.1"]  # no way there, or nobody there
    async with relayed(hosts=lambda: where) as ((a, puncher), (b, _)):
        tries = 0
        lead = puncher._lead

        async def count(link: Any) -> None:
            nonlocal tries
            await lead(link)
            tries += 1

        monkeypatch.setattr(puncher, "_lead", count)
        puncher.peer_up(a.host.links[b.id])
        await until(lambda: tries == 2)
        assert a.host.links[b.id].path == "relayed"
        where[:] = ["127.0.0.1"]
        puncher.reset_backoff()  # the addresses changed: not in a minute but now
        await until(lambda: a.host.links[b.id].path == "punched")


async def test_one_meeting_at_a_time_with_a_peer() -> None:
    async with relayed() as ((_, puncher), (b, _)):
        async with puncher._bound_port(b.id):
            with pytest.raises(ProtocolViolation):
                async with puncher._bound_port(b.id):
                    pass
        assert not puncher._punching


async def test_one_meeting_in_a_while_with_a_peer() -> None:
    async with relayed() as ((a, puncher), (b, follower)):
        async with puncher._bound_port(b.id):
            pass
        with pytest.raises(ProtocolViolation, match="a moment ago"):
            async with puncher._bound_port(b.id):
                pass
        assert holepunch.RETRY_AFTER_S[1] >= holepunch.PUNCH_EVERY_S  # the leader asks no sooner
        async with follower._bound_port(a.id):
            pass  # each counts for itself


async def test_only_who_is_connected_through_a_relay_is_met() -> None:
    async with relayed() as ((a, puncher), (b, _)):
        relay = next(peer for peer in a.host.links if peer != b.id)
        for peer in (relay, "12D3KooW" + "A" * 44):
            with pytest.raises(ProtocolViolation, match="through a relay"):
                async with puncher._bound_port(peer):
                    pass
        assert not puncher._punched_at


async def test_a_few_endpoints_are_knocked_at() -> None:
    """Those that make sense from here, outside first; ports of services, and the rest of a long list, are left out."""
    async with relayed() as ((_, puncher), _), relayed(outside=False) as ((_, at_home), _):
        hosts = ["169.254.0.1", "198.51.100.1", "10.0.0.1", "198.51.100.1", *(f"198.51.100.{n}" for n in range(2, 9))]
        theirs = [PeerAddress("198.51.100.99", 22), *(PeerAddress(host, 40000) for host in hosts)]
        assert puncher._dialable(theirs) == [("198.51.100.1", 40000), ("198.51.100.2", 40000)]
        assert at_home._dialable(theirs) == [(f"198.51.100.{n}", 40000) for n in (1, 2, 3, 4)]


async def test_knocks_are_counted_and_paced(autojump_clock: trio.testing.MockClock) -> None:
    """A NAT that refuses is knocked at often, and for all of the meeting; a host in whose name many are met, less."""
    host: Any = SimpleNamespace(handle_stream=lambda *_: None)
    puncher = Puncher(
        host, mapped_address=nobody_can_tell, own_hosts=list, is_outside=lambda _: True, may_dial=lambda *_: True
    )  # fmt: skip
    knocks: list[float] = []

    async def dial_once(*_: Any) -> bool:
        knocks.append(trio.current_time())
        return True

    puncher._dial_once = dial_once  # type: ignore[method-assign]
    await puncher._dial_repeatedly(LOOPBACK, ("198.51.100.1", 1), "peer", True, trio.Event())
    assert len(knocks) == holepunch.DIALS
    assert holepunch.PUNCH_S * 0.8 < knocks[-1] < holepunch.PUNCH_S * 1.2
    with trio.move_on_after(holepunch.PUNCH_S):
        for _ in range(9):
            await puncher._dial_repeatedly(LOOPBACK, ("198.51.100.1", 2), "peer", True, trio.Event())
    with trio.move_on_after(1.0):
        await puncher._dial_repeatedly(LOOPBACK, ("198.51.100.2", 2), "peer", True, trio.Event())
    assert len(knocks) <= HOST_AT_ONCE + HOST_A_SECOND * trio.current_time() + 10


@pytest.mark.parametrize(
    "message",
    [
        None,
        {},
        [["192.0.2.1"]],
        [["192.0.2.1", 0]],
        [["192.0.2.1", "1"]],
        [["box", 1]],
        [["192.0.2.1", 1]] * (MAX_ENDPOINTS + 1),
        [["0.0.0.0", 1]],
        [["fe80::1%eth0", 1]],
    ],
)
def test_endpoints_that_are_none(message: Any) -> None:
    with pytest.raises(FederationError):
        holepunch._read_endpoints(message)


def test_endpoints_that_are_some() -> None:
    assert holepunch._read_endpoints([["192.0.2.1", 1], ["2001:db8::1", 2]]) == [
        PeerAddress("192.0.2.1", 1), PeerAddress("2001:db8::1", 2)
    ]  # fmt: skip
