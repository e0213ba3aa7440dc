"""What the routes answer, over a real socket and a node that is made up. Who may ask is in test_server.py."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import trio

from federation.api import routes, server
from federation.api.routing import Body, Operation, Routes
from tests.support.control import OWNER, FakeNode, ask, get_of, raw, serving

if TYPE_CHECKING:
    pass


async def test_status_and_peers() -> None:
    async with serving(FakeNode()) as address:
        assert (await ask(address, "/api/v1/status"))[:2] == (200, {"node": {"name": "b\x9bx", "vram": 1}, "rates": {}})
        status, body, headers = await ask(address, "/api/v1/peers")
        assert (status, body) == (200, {"peers": [{"peer_id": "a", "self": True}]})
        assert headers["Content-Type"] == "application/json"
        assert headers["Cache-Control"] == "no-store"
        assert "server" not in headers


async def test_the_answer_is_one_line_of_ascii() -> None:
    async with serving(FakeNode()) as address:
        head, _, body = (await raw(address, get_of(address, "/api/v1/status"))).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200")
        assert body == b'{"node": {"name": "b\\u009bx", "vram": 1}, "rates": {}}'


async def test_connections() -> None:
    async with serving(FakeNode()) as address:
        assert len((await ask(address, "/api/v1/connections"))[1]["connections"]) == 3
        answer = (await ask(address, "/api/v1/connections?limit=2"))[1]
        assert (answer["total"], len(answer["connections"])) == (3, 2)
        assert (await ask(address, "/api/v1/connections?limit=0"))[0] == 400


async def test_models_and_placement() -> None:
    async with serving(FakeNode()) as address:
        nothing = {"models": [], "incomplete": [], "silent": []}
        assert (await ask(address, "/api/v1/models"))[:2] == (200, nothing)
        status, body, _ = await ask(address, "/api/v1/placement?vram=7&among=a,%20b,&model=m%2Fn")
        assert (status, body["needed_vram"], body["asked"]) == (200, 7, [["a", "b"], "m/n"])
        assert (await ask(address, "/api/v1/placement"))[1]["asked"] == [[], None]
        for wrong in ("vram=-1", "vram=1GiB", "model=", f"among={'x' * 4097}"):
            assert (await ask(address, f"/api/v1/placement?{wrong}"))[0] == 400


async def test_use() -> None:
    node = FakeNode()
    row = {"service": "default", "address": "0.0.0.0:8484", "scheme": "http", "names": [], "asks_key": False}
    node.status = lambda: {"node": {"listeners": [row]}}  # type: ignore[method-assign]
    async with serving(node) as address:
        status, body, _ = await ask(address, "/api/v1/use?host=gpu.lan&key=true")
        assert (status, body["url"], body["model"]) == (200, "http://gpu.lan:8484", "MODEL")
        assert "Bearer YOUR_KEY" in body["clients"][0]["texts"][0]["text"]
        assert (await ask(address, "/api/v1/use?service=none"))[0] == 404
        assert (await ask(address, "/api/v1/use?host=a%27b"))[1]["url"] == "http://127.0.0.1:8484"
        for wrong in (f"host={'x' * 256}", f"model={'x' * 201}", "key=perhaps"):
            assert (await ask(address, f"/api/v1/use?{wrong}"))[0] == 400


async def test_metrics() -> None:
    async with serving(FakeNode()) as address:
        answer = await raw(address, get_of(address, "/metrics").replace(b"\r\n\r\n", b"\r\nAccept: x=1\r\n\r\n"))
        head, _, body = answer.partition(b"\r\n\r\n")
        assert b"content-type: text/plain; x=1" in head
        assert body == b"up 1\n"


async def test_events_over_http() -> None:
    async with serving(FakeNode()) as address:
        stream = await trio.open_tcp_stream(address.host, address.port)
        async with stream:
            await stream.send_all(get_of(address, "/api/v1/events"))
            seen = b""
            while b"event: state" not in seen:
                seen += await stream.receive_some(65536)
            assert b"text/event-stream" in seen


async def test_a_body_has_its_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "BODY_S", 0.1)

    class Nothing(Body):
        pass

    async def take(_node: object, _body: Nothing) -> dict[str, Any]:
        return {}

    monkeypatch.setattr(routes, "routes", Routes([Operation("POST", "/api/v1/take", dict, take, body=Nothing)]))
    async with serving(FakeNode()) as address:
        head = f"POST /api/v1/take HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n".encode()
        fits = head + b"Content-Length: 65536\r\n\r\n" + b" " * 65_534 + b"{}"
        assert (await raw(address, fits)).split()[1] == b"200"
        assert (await raw(address, head + b"Content-Length: 65537\r\n\r\n" + b" " * 65_537)).split()[1] == b"413"
        chunks = b"8000\r\n" + b" " * 0x8000 + b"\r\n"
        assert (await raw(address, head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks * 3)).split()[1] == b"413"
        assert (await raw(address, head + b"Content-Length: 9\r\n\r\n{")).split()[1] == b"408"


async def test_drain_and_back() -> None:
    node = FakeNode()
    async with serving(node) as address:
        assert (await ask(address, "/api/v1/drain", "POST", OWNER))[1]["draining"] is True
        assert node.draining
        assert (await ask(address, "/api/v1/undrain", "POST", OWNER))[1]["draining"] is False
        assert (await ask(address, "/api/v1/leave", "POST", OWNER))[0] == 200
        assert node.left


async def test_explain_and_its_bounds() -> None:
    node = FakeNode()
    async with serving(node) as address:
        status, body, _ = await ask(address, "/api/v1/explain?last=7")
        assert status == 200
        assert body["decisions"] == [{"id": 1, "attempt": 1, "candidates": [{"last_used": None}, [None, 1.5]]}]
        assert body["turned_away"] == [{"why": "7 None"}]
        await ask(address, "/api/v1/explain")
        await ask(address, "/api/v1/explain?id=3&last=9")
        assert node.asked == [7, routes.EXPLAIN_DEFAULT, 3]
        for last in ("0", "-1", "1001", "x", "1.5", "%D9%A3", "9" * 5000):
            status, body, _ = await ask(address, f"/api/v1/explain?last={last}")
            assert status == 400
            assert body["error"].startswith("last: ")
        assert len(node.asked) == 3


async def test_keys() -> None:
    async with serving(FakeNode()) as address:
        assert (await ask(address, "/api/v1/keys"))[1]["keys"] == []

        async def made(body: Any, **headers: str) -> tuple[int, Any]:
            data = json.dumps(body).encode()
            fields = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
            head = f"POST /api/v1/keys/add HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n{fields}"
            answer = await raw(address, f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
            return int(answer.split()[1]), json.loads(answer.partition(b"\r\n\r\n")[2])

        assert (await made({"name": "phone"}))[0] == 401
        assert await made({"name": "phone"}, **OWNER) == (200, {"key": "fedk_new", "wish": ["phone", [], None, 0, 0]})
        whole = {"name": "phone", "models": ["m"], "lifetime_s": 5, "requests": 60, "seconds": 3600}
        assert (await made(whole, **OWNER))[1]["wish"] == ["phone", ["m"], 5.0, 60, 3600]
        for wrong in ({}, {"name": ""}, {"name": "x" * 65}, {**whole, "lifetime_s": 0}, {**whole, "models": ["m"] * 17}):
            assert (await made(wrong, **OWNER))[0] == 400, wrong
