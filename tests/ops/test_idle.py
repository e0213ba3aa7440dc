"""Which connections are idle since an answer, by what the kernel says of real sockets. Tests wait for no real time."""

from __future__ import annotations

import socket
import sys
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from federation.ops import idle
from federation.ops.idle import IDLE_S
from federation.reactor import keepalive
from federation.reactor.keepalive import Silence
from tests.support.entries import network, settled
from tests.support.exits import tunnels
from tests.support.links import until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trio.testing import MockClock

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="TCP_INFO is Linux's")


@pytest.mark.parametrize(
    ("silence", "is_idle"),
    [
        (None, False),
        (Silence(sent_s=IDLE_S + 1, received_s=IDLE_S), True),
        (Silence(sent_s=9.0, received_s=IDLE_S - 1), False),  # it may be in the middle of an answer
        (Silence(sent_s=IDLE_S, received_s=60.0), False),  # it thinks about the question
    ],
)
def test_a_backend_that_spoke_last_and_a_while_ago(silence: Silence | None, is_idle: bool) -> None:
    assert idle._has_been_answered(silence, by_other_side=True) is is_idle
    turned = None if silence is None else Silence(silence.received_s, silence.sent_s)
    assert idle._has_been_answered(turned, by_other_side=False) is is_idle


@contextmanager
def later(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The kernel's answers of a while later."""
    asked = keepalive.silence

    def silence(sock: socket.socket) -> Silence | None:
        told = asked(sock)
        return told and Silence(told.sent_s + IDLE_S, told.received_s + IDLE_S)

    with monkeypatch.context() as patched:
        patched.setattr(idle, "keepalive", SimpleNamespace(silence=silence))
        yield


async def test_at_backends(monkeypatch: pytest.MonkeyPatch) -> None:
    async with tunnels() as t:
        answered, end = t.open()
        first = await t.accept()
        answered.send(b"question")
        assert await first.receive_some() == b"question"
        waits, _ = t.open()
        second = await t.accept()
        await first.send_all(b"answer")
        await until(lambda: end.data == b"answer")
        waits.send(b"question")
        assert await second.receive_some() == b"question"
        assert idle.at_backends(t.exit.backends) == 0, "a moment ago"
        with later(monkeypatch):
            await until(lambda: idle.at_backends(t.exit.backends) == 1)
        for channel in (answered, waits):
            channel.abort("over")
        await until(lambda: t.exit.backends.in_flight == 0)
        with later(monkeypatch):
            assert idle.at_backends(t.exit.backends) == 0


async def test_a_connection_that_is_kept_for_the_next_request_is_none_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    async with tunnels(keeps=True) as t:
        await t.exchange()
        assert len(t.exit.backends.kept) == 1
        with later(monkeypatch):
            assert idle.at_backends(t.exit.backends) == 0


async def test_clients_on_layer_4(monkeypatch: pytest.MonkeyPatch, mock_clock: MockClock) -> None:
    async with network(mock_clock) as net:
        net.add("a")
        client = await net.connect(sends=b"question")
        await settled(lambda: net.tunnel.data == b"question")
        net.tunnel.answers()
        net.tunnel.sends(b"answer")
        assert await client.receive_some() == b"answer"
        assert idle.of_clients(net.frontend.active) == 0
        with later(monkeypatch):
            assert idle.of_clients(net.frontend.active) == 1
