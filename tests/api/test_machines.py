from __future__ import annotations

import pytest

from tests.support.control import OWNER, FakeNode, ask, serving

SIGNATURE = "ab" * 64


async def test_whoever_may_read_gets_history_and_notices() -> None:
    async with serving(FakeNode()) as address:
        assert (await ask(address, "/api/v1/history"))[:2] == (200, {"machine": None})
        assert (await ask(address, "/api/v1/history?peer=bergen"))[:2] == (200, {"machine": "bergen"})
        assert (await ask(address, f"/api/v1/history?peer={'x' * 129}"))[0] == 400
        assert (await ask(address, "/api/v1/notices"))[:2] == (200, {"to": ""})


@pytest.mark.parametrize(
    ("path", "body", "answer"),
    [
        ("orders", {"peer": "bergen", "order": "drain"}, {"peer_id": "bergen", "draining": True}),
        ("orders", {"peer": "bergen", "order": "look"}, {"peer_id": "bergen", "draining": False}),
        ("orders/prepare", {"peer": "bergen", "order": "undrain"}, {"peer_id": "bergen", "order": "undrain"}),
        ("orders/signed", {"signature": SIGNATURE}, {"signature": SIGNATURE}),
        ("notices/test", None, {"told": 1}),
    ],
)
async def test_orders_and_test_messages_are_the_owner_s(path: str, body: object, answer: object) -> None:
    async with serving(FakeNode()) as address:
        assert (await ask(address, f"/api/v1/{path}", "POST", body=body))[0] == 401
        assert (await ask(address, f"/api/v1/{path}", "POST", OWNER, body))[:2] == (200, answer)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("orders", {"peer": "bergen", "order": "reboot"}),
        ("orders", {"peer": "", "order": "drain"}),
        ("orders", {"peer": "bergen"}),
        ("orders/prepare", {"peer": "bergen", "order": "look"}),
        ("orders/signed", {"signature": SIGNATURE[:-1]}),
        ("orders/signed", {"signature": "AB" * 64}),
    ],
)
async def test_wrong_ones_are_refused_before_the_node_hears(path: str, body: object) -> None:
    async with serving(FakeNode()) as address:
        status, said, _ = await ask(address, f"/api/v1/{path}", "POST", OWNER, body)
        assert status == 400
        assert said["error"]
