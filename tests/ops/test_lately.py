from __future__ import annotations

from typing import Any

import pytest
import trio

from federation.errors import NotFound
from federation.ops import lately
from federation.ops.history import STEP_S
from tests.support.nodes import MakeNode, add


async def test_what_was_open_where_and_who_was_away(make: MakeNode, autojump_clock: trio.testing.MockClock) -> None:
    node = make()
    athens, lost = add(node, "athens", in_flight=3), add(node, "lost")
    invented = add(node, "invented", linked=False)  # heard of, never met
    lately.sample(node.parts)
    node.frontend.counters.totals.started = 12
    node.host.links.pop(lost)
    await trio.sleep(STEP_S)
    add(node, "athens", in_flight=5, seq=2, age_s=0)
    lately.sample(node.parts)
    answer = node.operator.history(None)
    assert (answer["step_s"], answer["open"], answer["totals"]["connections"]) == (STEP_S, [0, 0], [0, 12])
    assert {row["peer_id"]: row["load"] for row in answer["machines"]} == {
        athens: [3, 5], lost: [0, 0], node.parts.peer_id: [0, 0],
    }  # fmt: skip
    assert answer["machines"][0]["name"] == "athens"
    assert answer["others"] is None
    assert 0 < answer["covers_s"] <= 2 * STEP_S
    assert answer["memory"] == node.history.bytes
    one = node.operator.history("lost")["machine"]
    assert one is not None
    assert (one["well"], one["load"]) == ([1, 0], [0, 0])
    assert node.operator.history(invented)["machine"] is None
    with pytest.raises(NotFound):
        node.operator.history("nobody")


async def test_the_busiest_by_name_and_the_others_as_one(make: MakeNode, autojump_clock: Any) -> None:
    node = make()
    for n in range(12):
        add(node, f"m{n}", in_flight=n)
    answer = node.operator.history(None)  # the first answer takes the first sample
    assert [row["name"] for row in answer["machines"]] == [f"m{n}" for n in range(11, 11 - lately.LINES, -1)]
    assert answer["others"] == [sum(range(12 - lately.LINES))]


async def test_it_goes_on_by_itself(make: MakeNode, autojump_clock: Any) -> None:
    node = make()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lately.keep, node.parts)
        await trio.sleep(3 * STEP_S + 1)
        assert len(node.operator.history(None)["open"]) in (4, 5)
        nursery.cancel_scope.cancel()
