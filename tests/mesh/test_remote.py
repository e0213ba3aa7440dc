"""The owner's orders from member to member, over real links; and what forged, replayed and late ones come to."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import msgpack
import pytest
import trio

from federation.errors import NotDone
from federation.mesh import remote
from federation.mesh.owner import REMOTE_ORDER, ROTATION, OwnerKey, is_signed
from federation.mesh.remote import HEARD_AT_ONCE, NONCE_BYTES, Load, Remote, order_bytes
from federation.mesh.tokens import Token
from federation.net import wire
from tests.support.hosts import Peer, assert_serves, peers
from tests.support.links import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

KEY, STRANGER = OwnerKey(b"o" * 32), OwnerKey(b"s" * 32)
TOKEN = Token(b"n" * 32, "testnet", owner=KEY.public)


class Member:
    def __init__(self, peer: Peer, token: Token = TOKEN) -> None:
        self.peer = peer
        self.token = token
        self.orders: list[str] = []
        self.remote = Remote(
            host=peer.host, token=lambda: self.token, carry_out=self.orders.append,
            load=lambda: Load(self.orders[-1:] == ["drain"], 2, 1),
        )  # fmt: skip

    async def give(self, other: Member, order: str, key: OwnerKey = KEY) -> Load:
        prepared = await self.remote.prepare(other.peer.id, order)
        return await self.remote.carry_out(prepared, key.sign(prepared.text, REMOTE_ORDER))


@asynccontextmanager
async def members(count: int = 2, *tokens: Token) -> AsyncIterator[list[Member]]:
    """All linked."""
    async with peers(count) as hosts:
        found = [Member(peer, (tokens or (TOKEN,) * count)[i]) for i, peer in enumerate(hosts)]
        for i, a in enumerate(hosts):
            for b in hosts[i + 1 :]:
                a.knows(b)
        await until(lambda: all(len(peer.host.links) == count - 1 for peer in hosts))
        yield found


async def test_an_order_is_carried_out_where_it_was_meant() -> None:
    async with members(3) as (ada, bea, cyd):
        assert await ada.give(bea, "drain") == Load(True, 2, 1)
        assert await ada.remote.look(bea.peer.id) == Load(True, 2, 1)
        assert await cyd.give(bea, "undrain") == Load(False, 2, 1)  # any member carries it
        assert (ada.orders, bea.orders, cyd.orders) == ([], ["drain", "undrain"], [])


async def test_another_s_signature_stays_here() -> None:
    async with members() as (ada, bea):
        with pytest.raises(NotDone, match="not the signature of the network's owner"):
            await ada.give(bea, "drain", STRANGER)
        with pytest.raises(NotDone, match="not the signature"):
            prepared = await ada.remote.prepare(bea.peer.id, "drain")
            await ada.remote.carry_out(prepared, KEY.sign(prepared.text, ROTATION))  # signed for another purpose
        assert bea.orders == []
        await assert_serves(bea.peer, ada.peer)


@asynccontextmanager
async def asked(member: Member, other: Member, order: object) -> AsyncIterator[tuple[Any, Any]]:
    """A stream on which an order was named, and the answer to it."""
    async with await member.peer.host.open_stream(other.peer.id, TOKEN.orders_protocol()) as stream:
        with trio.fail_after(20):
            await wire.send(stream, order)
            yield stream, await wire.receive(stream, at_most=1024)


async def test_a_signature_is_good_once_for_one_node_and_one_order() -> None:
    async with members(3) as (ada, bea, cyd):
        async with asked(ada, bea, "drain") as (stream, nonce):
            assert len(nonce) == NONCE_BYTES
            said = order_bytes(TOKEN.names, nonce, bea.peer.id, "drain")
            signature = KEY.sign(said, REMOTE_ORDER)
            await wire.send(stream, signature)
            assert await wire.receive(stream, at_most=1024) == {"draining": True, "in_flight": 2, "clients": 1}
        async with asked(ada, bea, "drain") as (stream, other):
            assert other != nonce
            await wire.send(stream, signature)  # again
            with pytest.raises((trio.BrokenResourceError, trio.ClosedResourceError)):
                await wire.receive(stream, at_most=1024)
        await until(lambda: bea.peer.id not in ada.peer.host.links)  # nobody honest does that
        async with asked(ada, cyd, "drain") as (stream, nonce):
            await wire.send(stream, KEY.sign(order_bytes(TOKEN.names, nonce, bea.peer.id, "drain"), REMOTE_ORDER))
            with pytest.raises((trio.BrokenResourceError, trio.ClosedResourceError)):
                await wire.receive(stream, at_most=1024)
        assert (bea.orders, cyd.orders) == (["drain"], [])
        await assert_serves(bea.peer, cyd.peer)


@pytest.mark.parametrize("order", ["reboot", "", 7, ["drain"], {"drain": 1}, b"drain", None])
async def test_an_order_of_tomorrow_is_refused_in_words_and_costs_no_link(order: object) -> None:
    async with members() as (ada, bea):
        async with asked(ada, bea, order) as (_, answer):
            assert "older" in answer["refused"]
        with pytest.raises(NotDone, match="that node says no: it does not know this order"):
            await ada.remote.prepare(bea.peer.id, "reboot")
        assert bea.orders == []
        await assert_serves(bea.peer, ada.peer)


@pytest.mark.parametrize(
    "data",
    [b"\xff" * 40, b"\x00\x00\x00\x05" + b"\xc1" * 5, b"\x00\x00\xff\xff", wire.framed(msgpack.packb("x" * 99))],
)
async def test_bytes_that_are_no_order_end_their_own_link(data: bytes) -> None:
    async with members(3) as (ada, bea, cyd):
        async with await ada.peer.host.open_stream(bea.peer.id, TOKEN.orders_protocol()) as stream:
            await stream.send_all(data)
            await until(lambda: bea.peer.id not in ada.peer.host.links)
        assert bea.orders == []
        await assert_serves(bea.peer, cyd.peer)


async def test_who_asks_without_end_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "HEARD_A_SECOND", 0.0)
    async with members() as (ada, bea):
        bea.remote._hearings._rate = 0.0
        for _ in range(int(HEARD_AT_ONCE)):
            await ada.remote.look(bea.peer.id)
        with pytest.raises(NotDone, match="asked too often"):
            await ada.remote.look(bea.peer.id)
        await assert_serves(bea.peer, ada.peer)


async def test_a_network_without_an_owner_takes_no_order() -> None:
    without = Token(b"n" * 32, "testnet")
    async with members(2, without, without) as (ada, bea):
        with pytest.raises(NotDone, match="no owner key"):
            await ada.give(bea, "drain")
        assert await ada.remote.look(bea.peer.id) == Load(False, 2, 1)


async def test_a_node_that_is_older_or_not_there_is_said_to_be() -> None:
    async with peers(2) as (one, two):
        ada = Member(one)  # the other one has no handler, as an older version
        one.knows(two)
        await until(lambda: one.has(two) and two.has(one))
        with pytest.raises(NotDone, match="its version of federation is older"):
            await ada.remote.prepare(two.id, "drain")
        await assert_serves(two, one)
        with pytest.raises(NotDone, match="no connection to it"):
            await ada.remote.prepare("12D3KooWnobody", "drain")


async def test_what_is_signed_names_all_there_is() -> None:
    said = {
        order_bytes(names * 40, nonce * 32, peer, order)
        for names in (b"a", b"b") for nonce in (b"c", b"d") for peer in ("p", "q") for order in ("drain", "undrain")
    }  # fmt: skip
    assert len(said) == 16
    assert is_signed(KEY.public, b"x", KEY.sign(b"x", REMOTE_ORDER), REMOTE_ORDER)
    assert not is_signed(KEY.public, b"x", KEY.sign(b"x", REMOTE_ORDER), ROTATION)
    assert not is_signed(KEY.public, b"x", b"short", REMOTE_ORDER)
