"""LocalAI's paths: its field names, and what of ours they hold."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter

from federation.api import localai

LATELY = "2026-01-01T00:00:00+00:00"


class FakeNode:
    def status(self) -> dict[str, Any]:
        return {"node": {"listens": {"default": "127.0.0.1:8484", "embed": "127.0.0.1:8486"}}}

    def peers(self) -> list[dict[str, Any]]:
        def peer(name: str, **facts: Any) -> dict[str, Any]:
            plain = {"name": name, "peer_id": f"12D3{name}", "last_seen": LATELY, "state": "online", "online": True}
            return plain | {"services": {"default": True}} | facts

        return [
            peer("entry", services={}),
            peer("athens"),
            peer("bergen", services={"chat": True, "embed": False}),
            peer("cusco", services={"chat": True}),
            peer("dakar", state="offline", online=False),
            peer("essen", state="left", online=False),
        ]

    def invite(self) -> dict[str, str]:
        return {"token": "fed1_secret", "command": ""}


async def answer(path: str) -> Any:
    (operation,) = [operation for operation in localai.routes if operation.path == path]
    made = await operation.handler(FakeNode())
    TypeAdapter(operation.answer).validate_python(made, strict=True)
    return made


async def test_federation_has_who_offers_something() -> None:
    nodes = (await answer("/api/p2p/federation"))["nodes"]
    assert [(node["name"], node["serviceID"], node["tunnelAddress"]) for node in nodes] == [
        ("athens", "default", "127.0.0.1:8484"),
        ("bergen", "embed", "127.0.0.1:8486"),  # the one that can be asked for here
        ("cusco", "chat", ""),
        ("dakar", "default", "127.0.0.1:8484"),
    ]
    assert nodes[0] == {
        "name": "athens", "id": "12D3athens", "tunnelAddress": "127.0.0.1:8484", "serviceID": "default",
        "lastSeen": LATELY, "isOnline": True,
    }  # fmt: skip


async def test_all_nodes_have_go_s_names() -> None:
    nodes = await answer("/api/p2p")
    assert nodes["nodes"] == nodes["llama_cpp_nodes"] == nodes["mlx_nodes"] == []
    assert [node["Name"] for node in nodes["federated_nodes"]] == ["athens", "bergen", "cusco", "dakar"]
    assert nodes["federated_nodes"][0].keys() == {"Name", "ID", "TunnelAddress", "ServiceID", "LastSeen"}


async def test_stats_and_workers() -> None:
    stats = await answer("/api/p2p/stats")
    assert stats["federated"] == {"online": 3, "total": 4}
    assert stats["workers"] == stats["llama_cpp_workers"] == stats["mlx_workers"] == {"online": 0, "total": 0}
    assert await answer("/api/p2p/workers") == {"nodes": []}


async def test_the_token_is_plain_and_the_owner_s() -> None:
    (operation,) = [operation for operation in localai.routes if operation.path == "/api/p2p/token"]
    assert operation.owner
    response = await operation.handler(FakeNode())
    assert response.body == b"fed1_secret"
    assert response.headers["content-type"].startswith("text/plain")
