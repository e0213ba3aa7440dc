from __future__ import annotations

import json
from contextlib import AsyncExitStack
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
import trio

from federation.api import handover
from federation.program.handover import MAX_DOWNLOADS
from tests.support.control import FakeNode, ask, get_of, raw, serving

if TYPE_CHECKING:
    from pathlib import Path

NAME = "ab" * 16


@pytest.fixture
def node(tmp_path: Path) -> FakeNode:
    (tmp_path / "a.tar.gz").write_bytes(bytes(range(256)) * 1000)
    node = FakeNode()
    node.handed[NAME] = SimpleNamespace(archive=tmp_path / "a.tar.gz", script=b"#!/bin/sh\n", downloads=0, running=0)
    return node


@pytest.mark.parametrize("remote", [False, True])
async def test_who_has_a_line_gets_script_and_archive(node: FakeNode, remote: bool) -> None:
    async with serving(node, remote=remote) as address:
        head, _, body = (await raw(address, get_of(address, f"/handover/{NAME}/install.sh"))).partition(b"\r\n\r\n")
        assert (head.startswith(b"HTTP/1.1 200"), body) == (True, b"#!/bin/sh\n")
        head, _, body = (await raw(address, get_of(address, f"/handover/{NAME}/archive"))).partition(b"\r\n\r\n")
        assert (b"content-length: 256000" in head, body) == (True, bytes(range(256)) * 1000)
        assert (await ask(address, f"/handover/{NAME}/token"))[0] in (401, 404)  # nothing else is there


async def test_who_has_none_gets_nothing(node: FakeNode) -> None:
    async with serving(node, remote=True) as address:
        for end in ("install.sh", "archive"):
            status, answer, _ = await ask(address, f"/handover/{'00' * 16}/{end}")
            assert (status, answer) == (404, {"error": handover.UNKNOWN})
        assert (await ask(address, f"/handover/{NAME}/../../api/v1/status"))[0] in (401, 404)
        assert (await ask(address, f"/handover/{NAME}/archive", method="POST"))[0] in (401, 405)
        assert (await ask(address, "/api/v1/handover", method="POST"))[0] == 401


async def test_downloads_are_few(node: FakeNode) -> None:
    node.handed[NAME].downloads = MAX_DOWNLOADS - 1
    async with serving(node) as address:
        assert (await raw(address, get_of(address, f"/handover/{NAME}/archive"))).startswith(b"HTTP/1.1 200")
        assert (await ask(address, f"/handover/{NAME}/archive"))[0] == 404


async def test_slow_readers_with_one_line_keep_no_others_out(node: FakeNode) -> None:
    other = "ef" * 16
    (node.handed[NAME].archive).write_bytes(bytes(64_000_000))
    node.handed[other] = SimpleNamespace(**{**vars(node.handed[NAME]), "script": b""})
    async with serving(node) as address, AsyncExitStack() as stack:
        for _ in range(handover.AT_ONCE):
            stream = await stack.enter_async_context(await trio.open_tcp_stream(address.host, address.port))
            await stream.send_all(get_of(address, f"/handover/{NAME}/archive"))
            await stream.receive_some(9)  # and reads no more
        assert node.handed[NAME].running == handover.AT_ONCE_BY_LINE
        assert (await ask(address, f"/handover/{NAME}/archive"))[0] == 503
        stream = await stack.enter_async_context(await trio.open_tcp_stream(address.host, address.port))
        await stream.send_all(get_of(address, f"/handover/{other}/archive"))
        assert await stream.receive_some(12) == b"HTTP/1.1 200"


async def test_the_owner_makes_the_line() -> None:
    node = FakeNode()
    async with serving(node) as address:
        body = json.dumps({"archive": None, "address": "h"}).encode()
        request = (
            f"POST /api/v1/handover HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nAuthorization: Bearer {'k' * 43}\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        answer = (await raw(address, request.encode() + body)).partition(b"\r\n\r\n")[2]
        assert json.loads(answer)["asked"] == [None, "h"]
