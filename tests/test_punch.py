"""From a relayed link to a direct one, on loopback: the appointment, the meeting, and what a remote may say in it."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import trio

from federation.errors import FederationError, ProtocolViolation
from federation.net import punch
from federation.net.punch import MAX_ENDPOINTS, Puncher
from federation.values import HostPort
from tests.hosts import Peer, star
from tests.links import until
from tests.test_circuit import reserve

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

LOOPBACK = HostPort("127.0.0.1", 0)


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Elsewhere nobody is met on loopback."""
    monkeypatch.setattr(punch, "_is_meetable", lambda _address: True)


async def nobody_can_tell(_listen: HostPort) -> None:
    return None


@asynccontextmanager
async def relayed(
    *, outside: bool = True, hosts: Callable[[], list[str]] = lambda: ["127.0.0.1"]
) -> AsyncIterator[tuple[tuple[Peer, Puncher], tuple[Peer, Puncher]]]:
    """Two that have a relayed link, which the first one dialled."""
    async with star(2) as (relay, (a, b)), trio.open_nursery() as nursery:
        punchers = [
            Puncher(peer.host, face_of=nobody_can_tell, own_hosts=hosts, is_outside=lambda _host: outside) for peer in (a, b)
        ]
        for puncher in punchers:
            nursery.start_soon(puncher.run, LOOPBACK)
        await reserve(b, relay)
        await a.host.dial_through(relay.id, b.id)
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
        await until(lambda: not puncher._meeting)  # the link is there a moment before the meeting is over


async def test_who_did_not_dial_the_relayed_link_does_not_lead() -> None:
    async with relayed() as ((a, _), (b, puncher)):
        puncher.peer_up(b.host.links[a.id])
        await trio.testing.wait_all_tasks_blocked()
        assert not puncher._meeting
        assert b.host.links[a.id].path == "relayed"


async def test_in_vain_the_relayed_link_stays_and_it_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(punch, "MEETING_S", 0.2)
    monkeypatch.setattr(punch, "RETRY_AFTER_S", (0.0, 0.1, 60.0))
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
        puncher.again()  # the addresses changed: not in a minute but now
        await until(lambda: a.host.links[b.id].path == "punched")


async def test_one_meeting_at_a_time_with_a_peer() -> None:
    async with relayed() as ((_, puncher), (b, _)):
        async with puncher._door(b.id):
            with pytest.raises(ProtocolViolation):
                async with puncher._door(b.id):
                    pass
        assert not puncher._meeting


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
        [["127.0.0.1", 1]],
        [["::1", 1]],
        [["169.254.0.1", 1]],
    ],
)
def test_endpoints_that_are_none(monkeypatch: pytest.MonkeyPatch, message: Any) -> None:
    monkeypatch.undo()
    with pytest.raises(FederationError):
        punch._read_endpoints(message)


def test_endpoints_that_are_some(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert punch._read_endpoints([["192.0.2.1", 1], ["2001:db8::1", 2]]) == [("192.0.2.1", 1), ("2001:db8::1", 2)]
