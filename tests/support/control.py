"""Helpers for tests: the control API over real sockets, for a node that is made up."""

from __future__ import annotations

import http.client
import json
from contextlib import asynccontextmanager
from dataclasses import astuple
from typing import TYPE_CHECKING, Any

import trio

from federation.api import server
from federation.units import HostPort

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator

KEY = "k" * 43
OWNER = {"Authorization": f"Bearer {KEY}"}
ANYWHERE = HostPort("127.0.0.1", 0)


class FakeNode:
    def __init__(self) -> None:
        self.asked: list[int] = []
        self.told: list[Any] = []
        self.handed: dict[str, Any] = {}
        self.fails = self.draining = self.left = False

    def status(self) -> dict[str, Any]:
        if self.fails:
            raise RuntimeError("a bug of ours")
        return {"node": {"name": "b\x9bx", "vram": 1}, "rates": {}}

    def peers(self) -> list[dict[str, Any]]:
        return [{"peer_id": "a", "self": True}]

    def explain(self, last: int, connection: int | None = None) -> list[dict[str, Any]]:
        self.asked.append(connection or last)
        return [{"id": 1, "attempt": 1, "candidates": [{"last_used": float("-inf")}, (float("nan"), 1.5)]}]

    def connections(self, most: int) -> dict[str, Any]:
        return {"total": 3, "connections": [{"id": 1}, {"id": 2}, {"id": 3}][:most]}

    def turned_away(self, last: int, connection: int | None = None) -> list[dict[str, Any]]:
        return [{"why": f"{last} {connection}"}]

    def models(self) -> dict[str, Any]:
        return {"models": [], "incomplete": [], "silent": []}

    def place(self, needed_vram: int, among: list[str], model: str | None) -> dict[str, Any]:
        return {"needed_vram": needed_vram, "best": None, "nodes": [], "asked": [among, model]}

    def metrics_text(self, accept: str) -> tuple[bytes, str]:
        return b"up 1\n", f"text/plain; {accept}"

    def control_key(self) -> str:
        return KEY

    def control_hosts(self) -> tuple[str, ...]:
        return ("other.lan",)

    def control_tls(self) -> None: ...

    async def has_started(self) -> None: ...

    def control_socket(self) -> socket.socket | None:
        return None

    def invite(self) -> dict[str, Any]:
        return {"token": "fed1_secret", "command": "join"}

    async def hand_over(self, archive: str | None, address: str | None) -> dict[str, Any]:
        return {"line": "u=...", "asked": [archive, address]}

    def handed_over(self, name: str) -> Any:
        return self.handed.get(name)

    def drain(self) -> None:
        self.draining = True

    def undrain(self) -> None:
        self.draining = False

    def leave(self) -> None:
        self.left = True

    async def rotate(self, wish: Any) -> dict[str, Any]:
        return {
            "network": "n",
            "rotations": 1,
            "former_until": None,
            "told": [],
            "not_told": [],
            "left_out": list(wish.excepted),
            "excepted": [],
        }

    def history(self, peer: str | None) -> dict[str, Any]:
        return {"machine": peer}

    async def order(self, peer: str, order: str) -> dict[str, Any]:
        return {"peer_id": peer, "draining": order == "drain"}

    async def prepare_order(self, peer: str, order: str) -> dict[str, Any]:
        return {"peer_id": peer, "order": order}

    async def carry_out_order(self, signature: str) -> dict[str, Any]:
        return {"signature": signature}

    def notices(self) -> dict[str, Any]:
        return {"to": ""}

    async def try_notices(self) -> dict[str, Any]:
        return {"told": 1}

    def invites(self) -> dict[str, Any]:
        return {"invites": [], "waiting": []}

    async def make_invite(self, wish: Any) -> dict[str, Any]:
        self.told.append(wish)
        return {"code": "fed100_code"}

    async def revoke_invite(self, which: str) -> dict[str, Any]:
        self.told.append(f"revoke {which}")
        return self.invites()

    async def approve(self, peer: str) -> dict[str, Any]:
        self.told.append(f"approve {peer}")
        return self.invites()

    async def refuse(self, peer: str) -> dict[str, Any]:
        self.told.append(f"refuse {peer}")
        return self.invites()

    def banned(self) -> dict[str, Any]:
        return {"banned": []}

    def ban(self, peer: str) -> None: ...

    def unban(self, peer: str) -> None: ...

    async def keys(self) -> dict[str, Any]:
        return {"keys": [], "asked_off_loopback": False, "asked_on_loopback": False, "entries": 1, "entries_counted": 1}

    async def add_key(self, wish: Any) -> dict[str, Any]:
        return {"key": "fedk_new", "wish": astuple(wish)}

    async def revoke_key(self, name: str) -> dict[str, Any]:
        return {"keys": [name]}

    def drain_status(self) -> dict[str, Any]:
        return {"draining": self.draining, "in_flight": 0, "clients": 0, "entries": [], "idle": 0, "idle_clients": 0}


@asynccontextmanager
async def serving(node: FakeNode, address: HostPort = ANYWHERE, **access: Any) -> AsyncIterator[HostPort]:
    async with trio.open_nursery() as nursery:
        actual: HostPort = await nursery.start(server.serve, server.create_app(node, KEY, **access), address)
        with trio.fail_after(20):
            yield actual
        nursery.cancel_scope.cancel()


async def ask(
    address: HostPort, path: str, method: str = "GET", headers: dict[str, str] | None = None, body: object = None
) -> tuple[int, Any, http.client.HTTPMessage]:
    def blocking() -> tuple[int, Any, http.client.HTTPMessage]:
        connection = http.client.HTTPConnection(address.host, address.port, timeout=5)
        try:
            connection.request(method, path, None if body is None else json.dumps(body), headers or {})
            response = connection.getresponse()
            return response.status, json.loads(response.read()), response.headers
        finally:
            connection.close()

    return await trio.to_thread.run_sync(blocking)


async def raw(address: HostPort, request: bytes) -> bytes:
    stream = await trio.open_tcp_stream(address.host, address.port)
    async with stream:
        await stream.send_all(request)
        answer = b""
        async for chunk in stream:
            answer += chunk
        return answer


def get_of(address: HostPort, path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n".encode()
