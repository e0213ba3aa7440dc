"""The routes about invites: who may use them, and what they take."""

from __future__ import annotations

import http.client
import json
from typing import Any

import pytest
import trio

from federation.ops.invites import InviteWish
from federation.units import HostPort
from tests.support.control import OWNER, FakeNode, ask, serving


async def post(address: HostPort, path: str, body: object, headers: dict[str, str] = OWNER) -> tuple[int, Any]:
    def blocking() -> tuple[int, Any]:
        connection = http.client.HTTPConnection(address.host, address.port, timeout=20)
        try:
            connection.request("POST", path, json.dumps(body), headers)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()

    return await trio.to_thread.run_sync(blocking)


async def test_what_is_asked_for_comes_to_the_node() -> None:
    node = FakeNode()
    async with serving(node) as address:
        assert (await ask(address, "/api/v1/invites"))[:2] == (200, {"invites": [], "waiting": []})
        assert (await post(address, "/api/v1/invites/add", {}))[0] == 200
        await post(address, "/api/v1/invites/add", {"lifetime_s": 60, "uses": 3, "approve": True})
        await post(address, "/api/v1/invites/revoke", {"id": "all"})
        await post(address, "/api/v1/newcomers/approve", {"peer": "bergen"})
        await post(address, "/api/v1/newcomers/refuse", {"peer": "bergen"})
    assert node.told == [InviteWish(), InviteWish(60.0, 3, True), "revoke all", "approve bergen", "refuse bergen"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("invites/add", {}), ("invites/revoke", {"id": "all"}), ("newcomers/approve", {"peer": "b"}),
        ("newcomers/refuse", {"peer": "b"}),
    ],
)  # fmt: skip
async def test_only_the_owner_decides(path: str, body: object) -> None:
    node = FakeNode()
    async with serving(node) as address:
        assert (await post(address, f"/api/v1/{path}", body, {}))[0] == 401
    assert node.told == []


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("invites/add", {"lifetime_s": 0}), ("invites/add", {"lifetime_s": 31 * 86400}), ("invites/add", {"uses": 0}),
        ("invites/add", {"uses": 257}), ("invites/add", {"approve": 1}), ("invites/add", {"code": "mine"}),
        ("invites/revoke", {"id": ""}), ("invites/revoke", {}), ("newcomers/approve", {"peer": ""}),
    ],
)  # fmt: skip
async def test_what_cannot_be_meant_is_refused(path: str, body: object) -> None:
    node = FakeNode()
    async with serving(node) as address:
        assert (await post(address, f"/api/v1/{path}", body))[0] == 400
    assert node.told == []
