from __future__ import annotations

import http.client
import json
from typing import Any

import pytest
import trio

from federation.api import diagnosis, server
from federation.errors import NotFound
from federation.ops.ownership import Wish
from federation.units import HostPort


class FakeNode:
    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []

    def log_lines(self, after: int, last: int) -> dict[str, Any]:
        self.asked.append((after, last))
        return {"lines": [{"number": 1}], "next": 1}

    async def ping(self, peer: str, count: int, bulk_bytes: int) -> dict[str, Any]:
        self.asked.append((peer, count, bulk_bytes))
        if peer == "nobody":
            raise NotFound("no peer 'nobody'")
        return {"peer_id": peer}

    async def examine(self) -> dict[str, Any]:
        return {"findings": []}

    def netcheck(self) -> dict[str, Any]:
        return {"nat": "unknown"}

    async def rotate(self, wish: Wish) -> dict[str, Any]:
        self.asked.append(("rotate", wish))
        return {"rotations": 1}

    def prepare_rotation(self, wish: Wish) -> dict[str, Any]:
        self.asked.append(("prepare", wish))
        return {"rotations": 1}

    async def carry_out_rotation(self, signature: str) -> dict[str, Any]:
        self.asked.append(("carry out", signature))
        return {"rotations": 1}


async def ask(node: FakeNode, method: str, path: str, body: object = None, key: str = "key") -> tuple[int, Any]:
    async with trio.open_nursery() as nursery:
        app = server.create_app(node, "key")  # type: ignore[arg-type]
        address: HostPort = await nursery.start(server.serve, app, HostPort("127.0.0.1", 0))

        def blocking() -> tuple[int, Any]:
            connection = http.client.HTTPConnection(address.host, address.port, timeout=5)
            try:
                text = None if body is None else json.dumps(body)
                connection.request(method, path, text, {"Authorization": f"Bearer {key}"} if key else {})
                response = connection.getresponse()
                return response.status, json.loads(response.read())
            finally:
                connection.close()

        answer = await trio.to_thread.run_sync(blocking)
        nursery.cancel_scope.cancel()
    return answer


async def test_logs() -> None:
    node = FakeNode()
    assert await ask(node, "GET", "/api/v1/logs") == (200, {"lines": [{"number": 1}], "next": 1})
    await ask(node, "GET", "/api/v1/logs?after=7&last=3")
    assert node.asked == [(0, diagnosis.LOG_LINES), (7, 3)]
    for wrong in ("after=-1", "last=0", "last=x"):
        assert (await ask(node, "GET", f"/api/v1/logs?{wrong}"))[0] == 400


async def test_ping() -> None:
    node = FakeNode()
    assert await ask(node, "POST", "/api/v1/ping", {"peer": "bob"}) == (200, {"peer_id": "bob"})
    await ask(node, "POST", "/api/v1/ping", {"peer": "bob", "count": 5, "bulk_bytes": 10})
    assert node.asked == [("bob", 1, 0), ("bob", 5, 10)]
    assert (await ask(node, "POST", "/api/v1/ping", {"peer": "nobody"}))[0] == 404
    for wrong in ({}, {"peer": ""}, {"peer": "a", "count": 0}, {"peer": "a", "bulk_bytes": 10**12}, []):
        assert (await ask(node, "POST", "/api/v1/ping", wrong))[0] == 400


async def test_doctor() -> None:
    assert await ask(FakeNode(), "POST", "/api/v1/doctor") == (200, {"findings": []})


@pytest.mark.parametrize(("method", "path"), [("GET", "logs"), ("POST", "ping"), ("POST", "doctor")])
async def test_all_of_it_is_for_the_owner(method: str, path: str) -> None:
    node = FakeNode()
    body = {"peer": "bob"} if path == "ping" else None
    assert (await ask(node, method, f"/api/v1/{path}", body, key=""))[0] == 401
    assert node.asked == []


async def test_rotations_are_the_owners_and_what_they_say_is_checked() -> None:
    node = FakeNode()
    body = {"grace_s": 5, "except": ["bergen"], "keep_banned": True}
    for path, name in (("rotate", "rotate"), ("rotation", "prepare")):
        assert await ask(node, "POST", f"/api/v1/token/{path}", body) == (200, {"rotations": 1})
        assert await ask(node, "POST", f"/api/v1/token/{path}", {}) == (200, {"rotations": 1})
        assert node.asked == [(name, Wish(5.0, ["bergen"], True)), (name, Wish(3600.0, [], False))]
        node.asked.clear()
        assert (await ask(node, "POST", f"/api/v1/token/{path}", {}, key=""))[0] == 401
        for wrong in (
            {"grace_s": -1},
            {"grace_s": 31 * 86400},
            {"except": ["x"] * 257},
            {"keep_banned": 1},
            {"owner_key": "x"},
        ):
            assert (await ask(node, "POST", f"/api/v1/token/{path}", wrong))[0] == 400
    signature = "ab" * 64
    assert await ask(node, "POST", "/api/v1/token/rotation/signed", {"signature": signature}) == (200, {"rotations": 1})
    assert node.asked == [("carry out", signature)]
    for wrong in ({}, {"signature": "ab"}, {"signature": "xy" * 64}, {"signature": "AB" * 64}):
        assert (await ask(node, "POST", "/api/v1/token/rotation/signed", wrong))[0] == 400
    assert (await ask(node, "POST", "/api/v1/token/rotation/signed", {"signature": signature}, key=""))[0] == 401


async def test_netcheck() -> None:
    assert await ask(FakeNode(), "GET", "/api/v1/netcheck", key="") == (200, {"nat": "unknown"})
