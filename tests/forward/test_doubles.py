"""The double that stands for a tunnel in the tests of an entry keeps the contract that a real channel keeps."""

from __future__ import annotations

from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from tests.support.duplex import Caller, Rig, check_duplex
from tests.support.entries import Tunnel

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@asynccontextmanager
async def a_tunnel() -> AsyncIterator[Rig]:
    caller: Any = Caller()
    caller._entry = caller._client = SimpleNamespace(client_name="client")
    tunnel = Tunnel("peer", "default", caller, caller)
    tunnel.answers()
    caller.heard.clear()
    yield Rig(
        tunnel, caller, arrived=lambda: tunnel.data, ended=lambda: "RST" if tunnel.reset else "EOF" if tunnel.eof else "",
        say=tunnel.sends, say_eof=tunnel.ends, break_off=tunnel.breaks, stop=lambda: None,
        go=lambda: tunnel.grants(1 << 20), acknowledges=False,
    )  # fmt: skip


async def test_the_tunnel_of_entries() -> None:
    await check_duplex(a_tunnel)
