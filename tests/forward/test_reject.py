"""A rejected client, without a socket: the test is the client, the reactor's timers and the rules."""

from __future__ import annotations

from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from federation.forward.reject import REJECT_LINGER_S, ROOM, Rejection
from federation.forward.web_pages import Rules
from tests.support.duplex import Caller, End, Rig, check_duplex

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


class Timers:
    """As the reactor's, and the clock: at most one is pending."""

    def __init__(self) -> None:
        self.pending: list[Callable[[], None]] = []

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Timers:
        assert delay_s == REJECT_LINGER_S
        assert not self.pending
        self.pending.append(callback)
        return self

    def cancel(self) -> None:
        self.pending.clear()

    def passes(self) -> None:
        self.pending.pop()()


def rejected(seen: bytes = b"", *, wait: bool = False) -> tuple[Rejection, End, Timers]:
    timers, client = Timers(), End()
    made: Any = Rejection(timers, client, Rules(), "no peer is available")  # type: ignore[arg-type]
    made.begin(seen, wait=wait)
    return made, client, timers


def heard(client: End) -> tuple[bytes, list[Any]]:
    """The first line that the client got, and what came besides bytes."""
    return client.data.partition(b"\r\n")[0], [item for item in client.heard if not isinstance(item, bytes)]


def test_a_client_that_speaks_http_hears_why_at_once() -> None:
    _, client, timers = rejected(REQUEST)
    assert heard(client) == (b"HTTP/1.1 503 Service Unavailable", ["EOF"])
    assert b"no peer is available" in client.data
    timers.passes()
    assert client.heard[-1] == "RST turned away"


def test_another_protocol_ends_without_a_word() -> None:
    _, client, _ = rejected(b"\x16\x03\x01")
    assert client.heard == ["EOF"]


@pytest.mark.parametrize(("first", "line"), [(REQUEST, b"HTTP/1.1 503 Service Unavailable"), (b"PING\r\n", b"")])
def test_a_client_that_has_just_come_shows_first_what_it_speaks(first: bytes, line: bytes) -> None:
    rejection, client, timers = rejected(wait=True)
    assert client.heard == []
    rejection.send(first)
    assert heard(client) == (line, ["EOF"])
    rejection.send(REQUEST)  # more is not read
    assert heard(client) == (line, ["EOF"])
    timers.passes()
    assert client.heard[-1] == "RST turned away"


def test_a_silent_client_gets_the_end_and_then_its_time_to_read_it() -> None:
    _, client, timers = rejected(wait=True)
    timers.passes()
    assert client.heard == ["EOF"]
    timers.passes()
    assert client.heard == ["EOF", "RST turned away"]
    assert not timers.pending


def test_a_client_that_ends_first_is_answered_in_kind() -> None:
    rejection, client, _ = rejected(wait=True)
    rejection.send_eof()
    assert client.heard == ["EOF"]


def test_a_closed_client_leaves_no_timer() -> None:
    rejection, _, timers = rejected(REQUEST)
    rejection.cancel()
    rejection.cancel()
    assert not timers.pending


def test_what_else_a_client_sends_is_read_and_dropped() -> None:
    rejection, _, _ = rejected(REQUEST)
    assert rejection.writable() == ROOM


@asynccontextmanager
async def a_rejection(*, wait: bool) -> AsyncIterator[Rig]:
    timers, client = Timers(), Caller()
    rejection = client.other = Rejection(timers, client, Rules(), "no peer is available")  # type: ignore[arg-type]
    rejection.begin(b"", wait=wait)

    def later() -> None:
        while timers.pending:
            timers.passes()

    yield Rig(client, later=later, carries=False)


@pytest.mark.parametrize("wait", [False, True])
async def test_it_keeps_the_contract_of_a_duplex(wait: bool) -> None:
    await check_duplex(Rejection, partial(a_rejection, wait=wait))
