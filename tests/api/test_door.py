from __future__ import annotations

import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import trio

from federation.api import door
from federation.errors import ListenFailed
from federation.units import HostPort
from tests.support.control import ANYWHERE, FakeNode, ask

if TYPE_CHECKING:
    from trio.testing import MockClock


class StartingNode(FakeNode):
    """A node that has not started before `starts` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.starts = trio.Event()
        self.waits = trio.Event()
        self.has_key = False

    def control_key(self) -> str:
        self.has_key = True
        return super().control_key()

    async def has_started(self) -> None:
        self.waits.set()
        await self.starts.wait()


async def test_the_sockets_are_there_before_the_node_serves(nursery: trio.Nursery) -> None:
    node = StartingNode()
    with trio.fail_after(60):
        address: HostPort = await nursery.start(door.serve_node, node, ANYWHERE)
        assert address.port > 0
        assert node.has_key, "or a script that waits for the start finds no control.key"
        await node.waits.wait()
        answers = []

        async def early() -> None:
            answers.append((await ask(address, "/api/v1/peers"))[0])
            nursery.cancel_scope.cancel()

        nursery.start_soon(early)
        with socket.create_connection((address.host, address.port)):  # into the queue, though nobody reads yet
            assert not answers
        node.starts.set()
        await trio.sleep_forever()


async def test_a_start_that_takes_long_can_be_asked_about(nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "PATIENCE_S", 0.01)
    address: HostPort = await nursery.start(door.serve_node, StartingNode(), ANYWHERE)
    assert (await ask(address, "/api/v1/peers"))[0] == 200
    nursery.cancel_scope.cancel()


async def test_a_port_in_use_fails_before_the_start() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = HostPort("127.0.0.1", taken.getsockname()[1])
        with pytest.raises(ListenFailed, match="the port is in use"):
            await door.serve_node(FakeNode(), address)


async def test_it_closes_its_sockets_when_the_start_is_given_up(mock_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        address: HostPort = await nursery.start(door.serve_node, StartingNode(), ANYWHERE)
        nursery.cancel_scope.cancel()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((address.host, address.port)).close()


def test_it_imports_no_web_server() -> None:
    program = "import sys, federation.api.door; print({'starlette', 'hypercorn'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "set()\n"
