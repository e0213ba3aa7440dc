"""Helpers for tests: whole nodes in this process, on free ports; and nodes that do not run, set by hand."""

from __future__ import annotations

import sys
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import trio

from federation.config import Settings
from federation.mesh.owner import OwnerKey
from federation.mesh.records import NodeData
from federation.mesh.tokens import Token
from federation.net.dial.address import PeerAddress
from federation.node import Node
from federation.state import StateDir

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from trio_typing import TaskStatus

    from federation.units import HostPort

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup

KEY = OwnerKey(b"o" * 32)
TOKEN = Token(b"n" * 32, "testnet", owner=KEY.public)
GIB = 1 << 30

MakeNode = Any  # (name, **settings) -> Node


async def no_control(
    _node: object, address: HostPort, *, task_status: TaskStatus[HostPort] = trio.TASK_STATUS_IGNORED
) -> None:
    task_status.started(address)
    await trio.sleep_forever()


def node(state_dir: Path, *, token: Token = TOKEN, serve_control: Any = no_control, **fields: Any) -> Node:
    settings = Settings(
        **{
            "listens": ("127.0.0.1:0",), "p2p_listen": "127.0.0.1:0", "control": "127.0.0.1:0", "mdns": False,
            "vram_bytes": 8 * GIB, "drain_timeout_s": 5.0, "health_interval_s": 0.2, "hold_s": 0.0,
            "state_dir": state_dir, **fields,
        }
    )  # fmt: skip
    state = StateDir(settings.state_dir)
    state.lock()
    state.unlock()
    return Node(settings, state, token, serve_control)


def idle_node(state_dir: Path, **fields: Any) -> Node:
    """A node that does not run, with the settings of a person who gave none."""
    settings = Settings(**{"name": "me", "p2p_listen": "127.0.0.1:4484", "state_dir": state_dir, **fields})
    state = StateDir(settings.state_dir)
    state.lock()
    state.unlock()
    return Node(settings, state, TOKEN, no_control)


class Run:
    """A node that runs; `status` is what it reported when it was ready."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.status: dict[str, Any] = {}
        self.ended = trio.Event()
        self.scope = trio.CancelScope()

    async def stopped(self, seconds: float = 3.0) -> None:
        self.node.stop()
        with trio.fail_after(seconds):
            await self.ended.wait()

    @property
    def client_address(self) -> HostPort:
        return self.node.facts.listens["default"]


@asynccontextmanager
async def running(node: Node) -> AsyncIterator[Run]:
    """Stops it at the end, if the test has not done so."""
    run, ready = Run(node), trio.Event()

    def on_ready(status: dict[str, Any]) -> None:
        run.status = status
        ready.set()

    async def serve() -> None:
        try:
            with run.scope:
                await node.run(on_ready)
        finally:
            run.ended.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        with trio.fail_after(20):
            await ready.wait()
        yield run
        await run.stopped()


def link(newcomer: Node, member: Node) -> None:
    newcomer.book.add(PeerAddress("127.0.0.1", member.facts.p2p.port, member.parts.peer_id), source="peer")
    newcomer.host.look_at_book()


def rows(node: Node) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in node.operator.peers()}


def states(node: Node) -> dict[str, str]:
    return {name: row["state"] for name, row in rows(node).items()}


def add(
    node: Node,
    name: str,
    /,
    *,
    age_s: float = 1.0,
    linked: bool = True,
    suspect: bool = False,
    rtt_s: float | None = None,
    **fields: Any,
) -> str:
    """A peer of that name, as if it had been heard of `age_s` ago."""
    peer_id = "12D3KooW" + name * 4
    fields = {"services": {"default": True}, "incarnation": 1, "name": name, **fields}
    record = NodeData(peer_id=peer_id, last_seen=node.clock.utc_now(), **fields)
    node.ledger.merge(record, now=node.clock.utc_now(), age=timedelta(seconds=age_s))
    if linked:
        node.host.links[peer_id] = SimpleNamespace(
            remote_address=None,  # type: ignore[assignment]
            suspect=suspect,
            rtt_s=rtt_s,
            peer_id=peer_id,
            path="direct",
            via_peer_id="",
            admission_key=TOKEN.admission_key(),
        )
    return peer_id


def only(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        assert len(error.exceptions) == 1
        error = error.exceptions[0]
    return error


@asynccontextmanager
async def echo_server() -> AsyncIterator[str]:
    """A backend; HOST:PORT of it."""

    async def echo(stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError):  # it was cut off
            async with stream:
                while data := await stream.receive_some():
                    await stream.send_all(data)

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, echo, 0, host="127.0.0.1"))
        host, port = listeners[0].socket.getsockname()
        yield f"{host}:{port}"
        nursery.cancel_scope.cancel()


async def client_of(run: Run) -> trio.SocketStream:
    return await trio.open_tcp_stream(run.client_address.host, run.client_address.port)
