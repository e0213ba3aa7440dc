"""Over whole nodes in this process: the owner's key here, elsewhere, or nowhere."""

from __future__ import annotations

from contextlib import AsyncExitStack

import pytest

from federation.errors import NotDone, NotFound, UsageError
from federation.mesh.owner import REMOTE_ORDER, OwnerKey
from tests.support.links import until
from tests.support.nodes import KEY, TOKEN, MakeNode, link, rows, running


async def test_orders_to_another_node(make: MakeNode) -> None:
    async with AsyncExitStack() as stack:
        one, two = make("one"), make("two", backends=("127.0.0.1:1",))
        one.state.save_owner_key(TOKEN.network_id, KEY.encode())
        for node in (one, two):
            await stack.enter_async_context(running(node))
        link(two, one)
        await until(lambda: set(rows(one)) == {"one", "two"} and len(one.host.links) == 1)
        answer = await one.operator.order("two", "drain")
        assert answer == {
            "peer_id": two.parts.peer_id, "name": "two", "draining": True, "in_flight": 0, "clients": 0,
        }  # fmt: skip
        assert two.facts.draining
        await until(lambda: rows(one)["two"]["state"] == "draining")
        assert (await one.operator.order("two", "look"))["draining"]
        assert not (await one.operator.order(two.parts.peer_id[-8:], "undrain"))["draining"]
        assert not two.facts.draining

        # The key is not at the other node: it says where it is, and takes a signature from elsewhere.
        await until(lambda: two.operator.status()["network"]["owner_at"] != [])
        with pytest.raises(NotDone, match=r"not on this node, and one .* run `federation drain --node one` where it is"):
            await two.operator.order("one", "drain")
        prepared = await two.operator.prepare_order("one", "drain")
        assert (prepared["owner"], prepared["name"]) == (KEY.public.hex(), "one")
        with pytest.raises(NotDone, match="not the signature"):
            await two.operator.carry_out_order("00" * 64)
        with pytest.raises(NotDone, match="no order is prepared"):
            await two.operator.carry_out_order("00" * 64)
        assert not one.facts.draining
        await two.operator.prepare_order("one", "undrain")
        prepared = await two.operator.prepare_order("one", "drain")  # the newest one counts
        signature = KEY.sign(bytes.fromhex(prepared["order"]), REMOTE_ORDER).hex()
        assert (await two.operator.carry_out_order(signature))["draining"]
        assert one.facts.draining

        with pytest.raises(NotFound):
            await one.operator.order("nobody", "drain")
        with pytest.raises(UsageError, match="without --node"):
            await one.operator.order("one", "drain")
        stranger = OwnerKey(b"s" * 32)
        prepared = await two.operator.prepare_order("one", "undrain")
        with pytest.raises(NotDone, match="not the signature"):
            await two.operator.carry_out_order(stranger.sign(bytes.fromhex(prepared["order"]), REMOTE_ORDER).hex())
        assert one.facts.draining
