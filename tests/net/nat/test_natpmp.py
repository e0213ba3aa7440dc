"""Asking a router for a port, with a router of our own on loopback."""

from __future__ import annotations

import socket
import struct
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio

from federation.net.nat import natpmp
from federation.net.nat.mapping import LIFETIME_S, MappingRefused
from federation.net.nat.natpmp import map_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable


class Router:
    """Answers as `answer(request)` says; None: not at all."""

    def __init__(self, answer: Callable[[bytes], bytes | None]) -> None:
        self.answer = answer
        self.requests: list[tuple[int, int, int]] = []  # internal, external, lifetime
        self.port = 0

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        with trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            await sock.bind(("127.0.0.1", 0))
            self.port = sock.getsockname()[1]
            task_status.started()
            while True:
                request, client = await sock.recvfrom(100)
                self.requests.append(struct.unpack(">4xHHI", request))
                if (answer := self.answer(request)) is not None:
                    await sock.sendto(answer, client)


def granted(request: bytes, *, external: int = 0, lifetime_s: int | None = None, result: int = 0) -> bytes:
    internal, wanted, wanted_s = struct.unpack(">4xHHI", request)
    given_s = wanted_s if lifetime_s is None else lifetime_s
    return struct.pack(">BBHIHHI", 0, 130, result, 99, internal, external or wanted, given_s)


@asynccontextmanager
async def router(answer: Callable[[bytes], bytes | None]) -> AsyncIterator[Router]:
    async with trio.open_nursery() as nursery:
        made = Router(answer)
        await nursery.start(made.run)
        yield made
        nursery.cancel_scope.cancel()


async def test_the_port_is_what_the_router_says() -> None:
    async with router(lambda request: granted(request, external=5000, lifetime_s=600)) as there:
        assert await map_port("127.0.0.1", 4484, 4484, LIFETIME_S, port=there.port) == (5000, 600)
    assert there.requests == [(4484, 4484, LIFETIME_S)]


async def test_an_answer_that_is_lost_is_asked_for_again() -> None:
    answers: list[Callable[[bytes], bytes | None]] = [lambda _: None, lambda _: b"", lambda _: b"\0" * 16, granted]
    async with router(lambda request: answers.pop(0)(request)) as there:
        assert (await map_port("127.0.0.1", 1, 2, 60, port=there.port))[0] == 2
    assert len(there.requests) == 4


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (lambda request: granted(request, result=2), "not allowed"),
        (lambda request: granted(request, result=77), "result 77"),
        (lambda _request: b"\0\x82\0\x01\0\0\0\0", "does not speak this version"),
    ],
)
async def test_a_router_that_refuses(answer: Callable[[bytes], bytes], why: str) -> None:
    async with router(answer) as there:
        with pytest.raises(MappingRefused, match=why):
            await map_port("127.0.0.1", 1, 1, 60, port=there.port)


async def test_no_router(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(natpmp, "FIRST_WAIT_S", 0.01)
    async with router(lambda _request: None) as there:
        with pytest.raises(MappingRefused, match="does not answer"):
            await map_port("127.0.0.1", 1, 1, 60, port=there.port)
        assert len(there.requests) == natpmp.WAITS


async def test_nobody_is_asked_without_a_router() -> None:
    with pytest.raises(MappingRefused, match="no router is known"):
        await map_port(None, 1, 1, 60)
