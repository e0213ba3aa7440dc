"""Over whole nodes in this process, as in test_node.py."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import pytest

from federation.errors import NotDone, NotFound, OwnerKeyWrong, UsageError
from federation.mesh.owner import Order, OwnerKey
from federation.mesh.tokens import Token
from federation.ops.ownership import Wish
from tests.support.links import until
from tests.support.nodes import KEY, TOKEN, MakeNode, link, rows, running

if TYPE_CHECKING:
    from federation.node import Node


def gives_key(node: Node, key: OwnerKey = KEY) -> None:
    node.state.save_owner_key(TOKEN.network_id, key.encode())


async def test_a_token_is_rotated_for_all_but_who_is_excepted_or_banned(make: MakeNode) -> None:
    async with AsyncExitStack() as stack:
        one, two, out, bad = nodes = [make(name) for name in ("one", "two", "out", "bad")]
        gives_key(one)
        for node in nodes:
            await stack.enter_async_context(running(node))
        for node in nodes[1:]:
            link(node, one)
        await until(lambda: all(len(node.host.links) == 3 for node in nodes))
        await until(lambda: set(rows(one)) == {"one", "two", "out", "bad"})
        await until(lambda: two.operator.status()["network"]["owner_at"] == [f"one ({one.parts.peer_id})"])
        one.operator.ban("bad")
        answer = await one.operator.rotate(Wish(0.0, ["out"]))
        excepted = answer.pop("excepted")
        assert answer == {
            "network": TOKEN.network_id, "rotations": 1, "former_until": None,
            "told": ["two"], "not_told": [], "left_out": [], "open_invites": 0,
        }  # fmt: skip
        assert {row["peer_id"]: row["name"] for row in excepted} == {out.parts.peer_id: "out", bad.parts.peer_id: "bad"}
        await until(lambda: set(two.host.links) == {one.parts.peer_id} and one.parts.peer_id not in out.host.links)
        assert one.parts.token.secret == two.parts.token.secret
        assert {out.parts.token, bad.parts.token} == {TOKEN}
        assert one.operator.invite()["token"].startswith("fed3_")
        await until(lambda: any("no longer valid" in warning for warning in out.operator.status()["warnings"]))
        with pytest.raises(UsageError, match="cannot be left out"):
            await one.operator.rotate(Wish(0.0, [one.parts.peer_id]))
        with pytest.raises(NotFound):
            await one.operator.rotate(Wish(0.0, ["nobody"]))
        assert one.parts.token.rotations == 1


async def test_who_is_banned_is_told_if_the_owner_wants_that(make: MakeNode) -> None:
    async with AsyncExitStack() as stack:
        one, two, bad = nodes = [make(name) for name in ("one", "two", "bad")]
        gives_key(one)
        for node in nodes:
            await stack.enter_async_context(running(node))
        link(two, one)
        link(bad, one)
        await until(lambda: all(len(node.host.links) == 2 for node in nodes))
        await until(lambda: set(rows(one)) == {"one", "two", "bad"})
        one.operator.ban("bad")
        await one.operator.rotate(Wish(3600.0, keep_banned=True))
        await until(lambda: bad.parts.token.secret == one.parts.token.secret)  # by way of two


async def test_without_the_key_it_is_said_who_has_it(make: MakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("federation.node.OWNER_KEY_EVERY_S", 0.01)
    async with running(make("one")) as a, running(make("two")) as b:
        one, two = a.node, b.node
        with pytest.raises(NotDone, match=r"is not on this node, and no node says that it has it: .*--owner-key FILE"):
            await one.operator.rotate(Wish(0.0))
        gives_key(two)
        link(one, two)
        await until(lambda: bool(one.operator.status()["network"]["owner_at"]))
        with pytest.raises(NotDone, match=rf"and two \({two.parts.peer_id}\) says that it is there"):
            await one.operator.rotate(Wish(0.0))
        assert one.parts.token == TOKEN


async def test_a_key_of_another_network_is_none(make: MakeNode) -> None:
    one = make("one")
    gives_key(one, OwnerKey(b"x" * 32))
    async with running(one):
        assert not one.facts.has_owner_key
        with pytest.raises(OwnerKeyWrong, match="another network's"):
            await one.operator.rotate(Wish(0.0))


async def test_a_network_without_an_owner_says_how_to_move(make: MakeNode) -> None:
    one = make("one", token=Token(b"n" * 32))
    with pytest.raises(NotDone, match=r"no owner key.*token new.*join --token-file"):
        await one.operator.rotate(Wish(0.0))
    with pytest.raises(NotDone, match="no owner key"):
        one.operator.prepare_rotation(Wish(0.0))


class TestSignedElsewhere:
    async def test_it_is_prepared_here_and_carried_out_once(self, make: MakeNode) -> None:
        async with running(make("one")) as run:
            node = run.node
            prepared = node.operator.prepare_rotation(Wish(60.0))
            assert (prepared["network"], prepared["rotations"], prepared["owner"]) == (TOKEN.network_id, 1, KEY.public.hex())
            data = bytes.fromhex(prepared["order"])
            order = Order.decode(data)
            assert (order.names, order.grace_ms, order.members) == (TOKEN.names, 60_000, frozenset([node.parts.peer_id]))
            assert node.parts.token == TOKEN
            answer = await node.operator.carry_out_rotation(KEY.sign(data).hex())
            assert answer["rotations"] == node.parts.token.rotations == 1
            assert not list(node.state.path.glob("owner-*"))
            with pytest.raises(NotDone, match="no rotation is prepared"):
                await node.operator.carry_out_rotation(KEY.sign(data).hex())

    async def test_a_signature_of_somebody_else_changes_nothing(self, make: MakeNode) -> None:
        async with running(make("one")) as run:
            prepared = run.node.operator.prepare_rotation(Wish(60.0))
            with pytest.raises(NotDone, match="not the signature of the network's owner"):
                await run.node.operator.carry_out_rotation(OwnerKey(b"x" * 32).sign(bytes.fromhex(prepared["order"])).hex())
            assert run.node.parts.token == TOKEN
