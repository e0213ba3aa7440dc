"""Asking a router for a port, with a router of our own on loopback."""

from __future__ import annotations

import socket
import struct
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio

from federation.net.nat import natpmp
from federation.net.nat.natpmp import LIFETIME_S, RETRY_S, MappingRefused, PortMapping, default_gateway, map_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

HEAD = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n"


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


async def test_it_is_kept_and_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    mapped: list[int | None] = []
    async with router(lambda request: granted(request, external=5000)) as there:
        monkeypatch.setattr(natpmp, "default_gateway", lambda: "127.0.0.1")
        monkeypatch.setattr(natpmp, "PORT", there.port)
        monkeypatch.setattr(map_port, "__kwdefaults__", {"port": there.port})
        mapping = PortMapping(4484, mapped.append)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(mapping.run)
            with trio.fail_after(20):
                while not mapped:  # noqa: ASYNC110
                    await trio.sleep(0.001)
            nursery.cancel_scope.cancel()
    assert mapped == [5000]
    assert mapping.problem == ""
    assert there.requests == [(4484, 4484, LIFETIME_S), (4484, 0, 0)]


@pytest.mark.parametrize(
    ("given", "again_in_s", "external"),
    [((5000, 600), 300, 5000), ((5000, 2**32 - 1), LIFETIME_S / 2, 5000), ((5000, 0), 60, 5000), ((0, 600), RETRY_S, None)],
    ids=["as it should", "for ever", "for no time", "no port"],
)
async def test_what_a_router_says_is_kept_within_reason(
    given: tuple[int, int], again_in_s: float, external: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def answered(*_: object) -> tuple[int, int]:
        await trio.lowlevel.checkpoint()
        return given

    monkeypatch.setattr(natpmp, "map_port", answered)
    mapping = PortMapping(4484, lambda _port: None)
    assert await mapping._renew("127.0.0.1") == again_in_s
    assert mapping.external == external
    assert bool(mapping.problem) == (external is None)


@pytest.mark.parametrize(
    ("lines", "gateway"),
    [
        ("eth0\t00000000\t010BA8C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n", "192.168.11.1"),
        ("eth0\t000BA8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n", None),
        ("tun0\t00000000\t00000000\t0001\t0\t0\t0\t00000000\t0\t0\t0\n", None),
        ("", None),
    ],
)
def test_the_gateway_is_the_default_routes(tmp_path: Path, lines: str, gateway: str | None) -> None:
    table = tmp_path / "route"
    table.write_text(HEAD + lines)
    assert default_gateway(table) == gateway
    assert default_gateway(tmp_path / "none") is None
