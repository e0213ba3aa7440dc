"""Over whole nodes in this process, as in test_node.py."""

from __future__ import annotations

import pytest

from federation.errors import NotFound, PeerUnavailable, UsageError
from tests.support.links import until
from tests.support.nodes import MakeNode, link, running, states


class TestPing:
    async def test_round_trips_and_bulk(self, make: MakeNode) -> None:
        one, two = make("one"), make("two")
        async with running(one), running(two):
            link(one, two)
            await until(lambda: "two" in states(one))
            answer = await one.operator.ping("two", 3, 0)
            assert (answer["peer_id"], answer["name"], answer["path"]) == (two.parts.peer_id, "two", "direct")
            assert answer["address"] == f"127.0.0.1:{two.facts.p2p.port}"
            assert len(answer["rtt_ms"]) == 3
            assert answer["up"] is answer["down"] is None
            answer = await two.operator.ping(one.parts.peer_id[-6:], 1, 100_000)
            assert answer["up"]["bytes"] == answer["down"]["bytes"] == 100_000

    async def test_a_peer_that_is_not_there_says_why(self, make: MakeNode) -> None:
        one, two = make("one"), make("two")
        async with running(one):
            async with running(two):
                link(one, two)
                await until(lambda: "two" in states(one))
            with pytest.raises(PeerUnavailable, match="no connection to two"):
                await one.operator.ping("two", 1, 0)

    async def test_nobody_and_oneself(self, make: MakeNode) -> None:
        one = make("one")
        with pytest.raises(NotFound):
            await one.operator.ping("nobody", 1, 0)
        async with running(one):
            with pytest.raises(UsageError, match="the node itself"):
                await one.operator.ping("one", 1, 0)
