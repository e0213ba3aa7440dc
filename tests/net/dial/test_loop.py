"""Redialling: what is due, a few at a time, whatever hangs; after a drop, a restart, a lost identity."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

import trio
from structlog.testing import capture_logs

from federation.net import host as host_module
from federation.net.dial import loop
from federation.net.dial.address import PeerAddress
from federation.net.dial.book import AddressBook
from federation.net.dial.hearsay import HOST_A_SECOND, HOST_AT_ONCE
from federation.net.host import Host
from federation.units import HostPort
from tests.support.hosts import KEY, linked, new_peer, peers, reactor_running
from tests.support.links import until

if TYPE_CHECKING:
    import pytest


def fake_id(n: int) -> str:
    return f"12D3KooW{'ABCDEFGHJKLMN'[n] * 44}"


class TestRedial:
    async def test_a_machine_that_lost_its_identity(self) -> None:
        """It knows nobody: the others find it, where a person once told them."""
        async with peers(3) as (a, b, gone):
            with capture_logs() as logs:
                a.host.book.add(replace(b.address, peer_id=gone.id), source="token")
                a.host.look_at_book()
                await until(lambda: a.has(b) and b.has(a))
            assert [entry["event"] for entry in logs if entry.get("where") == gone.id] == [
                "another peer answers at the address of this one"
            ]

    async def test_after_a_drop(self) -> None:
        async with linked() as (a, b):
            await until(lambda: a.host.book.next_due(trio.current_time()) is None)  # it sleeps until it is told
            a.host.links[b.id].fail("cable cut")
            await until(lambda: a.events.down and b.events.down)
            assert a.events.down == [(b.id, "cable cut")]
            await until(lambda: a.has(b) and b.has(a), seconds=2)

    async def test_of_a_peer_that_restarted(self) -> None:
        async with reactor_running() as reactor:
            a, b = await new_peer(1, reactor), await new_peer(2, reactor)
            async with a.host.running():
                async with b.host.running():
                    a.knows(b)
                    await until(lambda: a.has(b))
                await until(lambda: a.has())  # its host closed its links as it left (L)
                again = Host(
                    seed=bytes([2]) * 32, reactor=reactor, events=b.events, book=AddressBook(), admission_keys=lambda: [KEY]
                )
                await again.listen(HostPort(b.address.host, b.address.port))
                async with again.running():
                    await until(lambda: a.has(b) and a.id in again.links, seconds=3)

    async def test_that_hangs_keeps_nobody_else_waiting(self) -> None:
        """A full backlog, where the SYN gets no answer, and listeners that accept and say nothing."""
        with ExitStack() as stack:
            full = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
            for _ in range(3):
                client = stack.enter_context(socket.socket())
                client.setblocking(False)
                client.connect_ex(full.getsockname())
            silent = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(4)]
            async with peers(2) as (a, b):
                for n, listener in enumerate([full, *silent]):
                    a.host.book.add(PeerAddress("127.0.0.1", listener.getsockname()[1], fake_id(n)), source="token")
                a.knows(b)
                await until(lambda: a.has(b), seconds=1)

    async def test_gives_up_on_what_hangs_and_comes_back_to_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(host_module, "DIAL_TIMEOUT_S", 0.1)
        with socket.create_server(("127.0.0.1", 0)) as silent:
            async with peers(1) as (a,):
                a.host.book.add(PeerAddress("127.0.0.1", silent.getsockname()[1]), source="token")
                a.host.look_at_book()
                with ExitStack() as stack:
                    for _ in range(2):
                        silent.settimeout(5)
                        stack.enter_context((await trio.to_thread.run_sync(silent.accept))[0])

    async def test_hearsay_that_was_in_vain_is_not_tried_again_at_once(self) -> None:
        """As long as silence would take; and what is no hearsay is, beside it."""
        async with peers(1) as (a,):
            with socket.create_server(("127.0.0.1", 0)) as gone, socket.create_server(("127.0.0.1", 0)) as other:
                where, elsewhere = gone.getsockname()[1], other.getsockname()[1]
            heard, given = PeerAddress("127.0.0.1", where, fake_id(1)), PeerAddress("127.0.0.1", elsewhere, fake_id(1))
            tried: list[PeerAddress] = []

            async def connect(address: PeerAddress) -> None:
                tried.append(address)
                raise OSError("closed")

            a.host.connect = connect
            a.host.book.add(heard, source="record")
            a.host.book.add(given, source="token")
            a.host.look_at_book()
            await until(lambda: tried.count(given) == 4, seconds=20)
            assert tried.count(heard) == 1
            assert fake_id(1) in a.host.dial_loop.not_reached
            a.host.dial_loop.start_over()

    async def test_no_address_that_makes_sense(self) -> None:
        async with peers(1) as (a,):
            a.host.book.may_dial = lambda _address, _trusted: False
            a.host.book.add(PeerAddress("10.0.0.1", 1, fake_id(1)), source="record")
            a.host.look_at_book()
            await until(lambda: a.host.dial_loop.not_reached)
            assert a.host.dial_loop.not_reached == {fake_id(1): loop.NO_ADDRESS}

    async def test_a_crowd_at_one_host_is_dialled_at_its_pace(self) -> None:
        async with peers(1) as (a,):
            tried: list[PeerAddress] = []

            async def connect(address: PeerAddress) -> None:
                tried.append(address)
                raise OSError("closed")

            a.host.connect = connect
            began = trio.current_time()
            for n in range(40):
                a.host.book.add(
                    PeerAddress("198.18.0.1", 1000 + n, f"12D3KooW{'A' * 42}{n + 10}".replace("0", "x")), source="record"
                )
            a.host.look_at_book()
            await until(lambda: len(tried) >= HOST_AT_ONCE, seconds=20)
            await trio.sleep(0.5)  # those for which there was no turn have been looked at by then
            assert len(tried) <= HOST_AT_ONCE + HOST_A_SECOND * (trio.current_time() - began) + 1

    async def test_a_dial_that_waited_too_long_for_its_turn_is_not_made(self) -> None:
        async with peers(2) as (lower, higher):
            async with lower.host.dial_loop._dials:
                for n in range(loop.MAX_DIALS - 1):
                    lower.host.dial_loop._dials.acquire_on_behalf_of_nowait(n)
                lower.knows(higher)
                higher.knows(lower)
                await until(lambda: lower.has(higher) and higher.has(lower))
                for n in range(loop.MAX_DIALS - 1):
                    lower.host.dial_loop._dials.release_on_behalf_of(n)
            await until(lambda: lower.host.book.next_due(trio.current_time()) is None)
            assert len(lower.events.up) == len(higher.events.up) == 1
