"""The models of a network and placements, over a node that does not run: its ledger and links are set by hand."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio

from federation.errors import NotFound
from federation.mesh.models import MAX_PACKED_BYTES, Model, catalog, pack
from tests.support.nodes import GIB, MakeNode, add, idle_node

if TYPE_CHECKING:
    from pathlib import Path

    from federation.node import Node


@pytest.fixture
def make(tmp_path: Path) -> MakeNode:
    return partial(idle_node, tmp_path / "s")


def having(*models: Model, kind: str = "ollama", service: str = "default", total: int = 0) -> dict[str, Any]:
    packed = pack({service: catalog(kind, models, total=total)})
    assert len(packed) <= MAX_PACKED_BYTES
    return {"models": packed, "services": {service: True}}


def shown(node: Node) -> dict[str, list[tuple[str, bool]]]:
    rows = node.operator.models()["models"]
    return {row["name"]: [(at["name"], at["warm"]) for at in row["places"]] for row in rows}


async def test_a_model_and_where_it_is_the_warm_and_idle_first(make: MakeNode) -> None:
    node = make()
    add(node, "ada", in_flight=1, **having(Model("m", True, 5 * GIB)))
    add(node, "bob", in_flight=0, **having(Model("m", False, 4 * GIB), Model("n")))
    add(node, "cyd", in_flight=0, **having(Model("m", True, 5 * GIB, 4), kind="llama.cpp", service="big"))
    assert shown(node) == {"m": [("cyd", True), ("ada", True), ("bob", False)], "n": [("bob", False)]}
    row = node.operator.models()["models"][0]
    assert row["size"] == 5 * GIB
    cyd = row["places"][0]
    assert {key: cyd[key] for key in ("state", "service", "kind", "size", "slots", "in_flight")} == {
        "state": "online", "service": "big", "kind": "llama.cpp", "size": 5 * GIB, "slots": 4, "in_flight": 0,
    }  # fmt: skip


async def test_requests_and_first_token_by_whatever_name_they_were_asked_for(make: MakeNode) -> None:
    node = make()
    add(node, "ada", **having(Model("m:latest"), Model("n")))
    add(node, "bob", **having(Model("M"), kind="vllm"))
    for name, seconds in (("M", 3.0), ("m:latest", 1.0), ("m", 2.0)):
        counts = node.metrics.of_model(name, is_known=True)
        counts.requests["ok"] += 1
        counts.heard_first(seconds)
    rows = {row["name"]: (row["requests"], row["first_token_s"]) for row in node.operator.models()["models"]}
    assert rows == {"M": (1, 3.0), "m:latest": (3, 2.0), "n": (0, None)}
    node.metrics.of_model("m", is_known=True).paces.extend((20.04, 40.0, 10.0))
    paces = {row["name"]: row["tokens_per_s"] for row in node.operator.models()["models"]}
    assert paces == {"M": None, "m:latest": 20.0, "n": None}


async def test_only_nodes_that_are_there_and_their_state(make: MakeNode) -> None:
    node = make()
    add(node, "ada", draining=True, **having(Model("m")))
    add(node, "bob", linked=False, **having(Model("m")))
    add(node, "cyd", age_s=100.0, **having(Model("m")))
    add(node, "dan", left=True, **having(Model("m")))
    (row,) = node.operator.models()["models"]
    assert [(at["name"], at["state"]) for at in row["places"]] == [("ada", "draining")]


async def test_who_tells_none_and_who_has_more(make: MakeNode) -> None:
    node = make()
    add(node, "old")
    add(node, "entry", services={})
    add(node, "big", **having(Model("m"), total=900))
    add(node, "odd", models=b"of a later version")
    answer = node.operator.models()
    assert {peer["name"] for peer in answer["silent"]} == {"old", "odd"}
    assert [peer["name"] for peer in answer["incomplete"]] == ["big"]


def placed(node: Node, vram: int = 0, among: tuple[str, ...] = (), model: str | None = None) -> list[tuple[str, bool, str]]:
    answer = node.operator.place(vram, among, model)
    assert (answer["best"] or {}).get("name") == next((row["name"] for row in answer["nodes"] if row["fits"]), None)
    return [(row["name"], row["fits"], row["model"]) for row in answer["nodes"]]


async def test_where_there_is_room(make: MakeNode) -> None:
    node = make()
    add(node, "ada", available_vram=10 * GIB, total_vram=24 * GIB, in_flight=2)
    bob = add(node, "bob", available_vram=20 * GIB, total_vram=24 * GIB)
    add(node, "cyd", available_vram=12 * GIB, total_vram=24 * GIB)
    me = ("me", False, "unknown")  # it has no backend
    assert placed(node, 9 * GIB) == [("bob", True, "unknown"), ("cyd", True, "unknown"), ("ada", True, "unknown"), me]
    pick = node.selector.pick([row.record for row in map(node.ledger.get, [bob]) if row], now=trio.current_time())
    assert pick is not None
    node.selector.release(bob)
    assert [name for name, fits, _ in placed(node, 9 * GIB) if fits] == ["cyd", "bob", "ada"]  # bob was used
    assert [name for name, fits, _ in placed(node, 15 * GIB) if fits] == ["bob"]
    assert placed(node, 9 * GIB, ("ada", bob)) == [("bob", True, "unknown"), ("ada", True, "unknown")]
    assert node.operator.place(30 * GIB, (), None)["best"] is None


async def test_where_a_model_fits_and_its_size_is_what_it_needs(make: MakeNode) -> None:
    node = make()
    vram = {"available_vram": 4 * GIB, "total_vram": 8 * GIB}
    add(node, "ada", **vram, in_flight=9, **having(Model("m:latest", True, 5 * GIB)))
    add(node, "bob", **vram, **having(Model("m:latest", False, 5 * GIB)))
    add(node, "cyd", available_vram=6 * GIB, total_vram=8 * GIB, **having(Model("other")))
    rows = placed(node, model="M")
    assert [row for row in rows if row[1]] == [("ada", True, "warm"), ("cyd", True, "no")]
    assert ("bob", False, "cold") in rows
    assert node.operator.place(0, (), "m")["needed_vram"] == 5 * GIB
    assert ("bob", True, "cold") in placed(node, 2 * GIB, model="m")


async def test_what_cannot_be_answered(make: MakeNode) -> None:
    node = make()
    for among, model in ((("nobody",), None), (("12D3KooW" + "x" * 44,), None), ((), "m")):
        with pytest.raises(NotFound):
            node.operator.place(0, among, model)
