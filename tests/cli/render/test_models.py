from __future__ import annotations

from typing import Any

from federation.cli.render import models as render_models

GIB = 1 << 30


def at(name: str, **fields: Any) -> dict[str, Any]:
    return {
        "peer_id": f"id-{name}", "name": name, "state": "online", "service": "default", "warm": False, "in_flight": 0,
        **fields,
    }  # fmt: skip


def test_a_line_a_model() -> None:
    answer = {
        "models": [
            {"name": "llama3:latest", "size": 4 * GIB, "requests": 12, "first_token_s": 0.25,
             "places": [at("athens", warm=True, in_flight=2), at("bergen")]},
            {"name": "e5", "size": 0, "places": [at("bergen", service="embed", state="draining", in_flight=1)]},
        ],
        "incomplete": [], "silent": [],
    }  # fmt: skip
    assert render_models.models(answer, color=False).splitlines() == [
        "MODEL          WHERE                          SIZE  BUSY  REQUESTS  FIRST TOKEN",
        "llama3:latest  athens*, bergen             4.0 GiB     2        12       250 ms",
        "e5             bergen as embed (draining)              1",
    ]


def test_a_node_with_two_services_is_busy_once() -> None:
    places = [at("athens", in_flight=3), at("athens", service="big", in_flight=3), at("bergen", in_flight=1)]
    assert render_models.models({"models": [{"name": "m", "places": places}]}, color=False).rstrip().endswith("4")


def test_none_and_who_does_not_tell() -> None:
    answer = {"models": [], "silent": [{"name": "old", "peer_id": "p"}], "incomplete": [{"name": "", "peer_id": "12345678"}]}
    assert render_models.models(answer, color=False).splitlines() == [
        "no models",
        "more than are shown at 345678: its record is full",
        "no models told by old",
    ]


def test_names_of_others_cannot_move_the_cursor() -> None:
    answer = {"models": [{"name": "m\x1b[2J", "size": 1, "places": [at("a\nb")] * 20}]}
    text = render_models.models(answer, color=False)
    assert "\x1b" not in text
    assert len(text.splitlines()) == 2
    assert "and 12 more" in text


def node(name: str, **fields: Any) -> dict[str, Any]:
    return {
        "name": name, "peer_id": f"12D3KooW-{name}", "fits": True, "why": "has room", "available_vram": 20 * GIB,
        "total_vram": 24 * GIB, "in_flight": 0, "last_used_age_s": None, **fields,
    }  # fmt: skip


def test_a_placement() -> None:
    nodes = [node("bergen", last_used_age_s=12.0), node("athens", fits=False, why="it is draining", total_vram=0)]
    answer = {"needed_vram": 8 * GIB, "best": nodes[0], "nodes": nodes}
    assert render_models.placement(answer, color=False).splitlines() == [
        "bergen: 20.0 GiB of 24.0 GiB free, has room",
        "NODE    PEER        VRAM FREE  BUSY  USED      WHY",
        "bergen  bergen  20.0/24.0 GiB     0  12 s ago  has room",
        "athens  athens                    0            no: it is draining",
    ]
    assert render_models.placement({**answer, "best": None}, color=False).startswith("no node has room for 8.0 GiB\n")
    assert render_models.placement({"needed_vram": 0, "best": None, "nodes": []}, color=False).startswith("no node has room")
