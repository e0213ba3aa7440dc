"""Server-sent events on a clock that jumps: what is told, to whom, and how little is kept."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import pytest
import trio
from structlog.testing import capture_logs
from trio.testing import MockClock

from federation.api import events
from federation.api.events import (
    DECISIONS_AT_ONCE,
    MAX_CLIENTS,
    MAX_KEYLESS,
    RECONNECT_WITHIN_S,
    RING_BYTES,
    SILENCE_S,
    STATE_EVERY_S,
    Hub,
)
from federation.api.routing import mark_owner, route

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

START = datetime(2026, 1, 1, tzinfo=timezone.utc)
FIRST_ID = round(START.timestamp() * 1000)


class FakeNode:
    def __init__(self) -> None:
        self.decisions: list[dict[str, Any]] = []
        self.padding = ""
        self.asked = 0
        self.fails = False

    def status(self) -> dict[str, Any]:
        self.asked += 1
        if self.fails:
            raise RuntimeError("a bug of ours")
        return {"rates": {"bytes_per_s": 5}, "padding": self.padding}

    def peers(self) -> list[dict[str, Any]]:
        return [{"name": "a\nb"}]

    def explain(self, last: int) -> list[dict[str, Any]]:
        return self.decisions[-last:]

    def decide(self, connection: int, attempt: int = 1, *, request: int = 1, chosen: str = "a") -> None:
        self.decisions.append({"id": connection, "request": request, "attempt": attempt, "chosen": chosen})


@pytest.fixture
def node() -> FakeNode:
    return FakeNode()


@pytest.fixture
def hub(node: FakeNode, autojump_clock: MockClock) -> Hub:
    return Hub(node, lambda: START + timedelta(seconds=autojump_clock.current_time()))  # type: ignore[arg-type]


class Client:
    """What it was told, as (id, event, data)."""

    def __init__(self) -> None:
        self.told: list[tuple[int, str, Any]] = []
        self.comments = 0
        self.ended = False
        self.gate: trio.Event | None = None  # closed: it does not read
        self._news = trio.Event()

    async def tell(self, text: bytes) -> None:
        if self.gate is not None:
            await self.gate.wait()
        for block in text.decode().split("\n\n")[:-1]:
            if block.startswith(":"):
                self.comments += 1
            elif not block.startswith("retry: "):
                lines = dict(line.split(": ", 1) for line in block.split("\n"))
                self.told.append((int(lines["id"]), lines["event"], json.loads(lines["data"])))
        self._news.set()
        self._news = trio.Event()

    async def hears(self, count: int) -> None:
        while len(self.told) < count:
            await self._news.wait()

    def kinds(self) -> list[str]:
        return [kind for _, kind, _ in self.told]


@asynccontextmanager
async def running(hub: Hub) -> AsyncIterator[trio.Nursery]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(hub.run)
        with trio.fail_after(3600):
            yield nursery
        nursery.cancel_scope.cancel()


async def follow(hub: Hub, client: Client, after: int | None = None) -> None:
    await hub.follow(after, client.tell)
    client.ended = True


async def test_a_new_client_gets_the_state_at_once_and_then_each_second(hub: Hub, autojump_clock: MockClock) -> None:
    client = Client()
    async with running(hub) as nursery:
        begun = trio.current_time()
        nursery.start_soon(follow, hub, client)
        await client.hears(1)
        assert trio.current_time() - begun < 0.3
        assert client.told[0][2] == {
            "at": pytest.approx(START.timestamp(), abs=1),
            "status": {"rates": {"bytes_per_s": 5}, "padding": ""},
            "peers": [{"name": "a\nb"}],
            "rates": {"bytes_per_s": 5},
        }
        await client.hears(12)
    assert 9 * STATE_EVERY_S <= trio.current_time() - begun <= 13 * STATE_EVERY_S
    ids = [number for number, _, _ in client.told]
    assert ids == sorted(set(ids))
    assert ids[0] >= FIRST_ID
    assert set(client.kinds()) == {"state"}


async def test_each_decision_once_and_none_from_before(hub: Hub, autojump_clock: MockClock, node: FakeNode) -> None:
    client = Client()
    node.decide(1)
    async with running(hub) as nursery:
        nursery.start_soon(follow, hub, client)
        await client.hears(2)
        node.decide(2)
        node.decide(2, attempt=2)
        await trio.sleep(1)
        node.decide(3)
        await trio.sleep(1)
    decided = [(data["id"], data["attempt"]) for _, kind, data in client.told if kind == "decision"]
    assert decided == [(2, 1), (2, 2), (3, 1)]


async def test_each_request_of_a_connection_is_told(hub: Hub, autojump_clock: MockClock, node: FakeNode) -> None:
    client = Client()
    async with running(hub) as nursery:
        nursery.start_soon(follow, hub, client)
        await client.hears(2)
        for request in (1, 2, 3):
            node.decide(1, request=request)
            await trio.sleep(1)
        node.decide(1, request=3, chosen="b")  # the first one sent it back
        await trio.sleep(1)
    decided = [(data["request"], data["chosen"]) for _, kind, data in client.told if kind == "decision"]
    assert decided == [(1, "a"), (2, "a"), (3, "a"), (3, "b")]


async def test_of_a_burst_the_newest(hub: Hub, autojump_clock: MockClock, node: FakeNode) -> None:
    client = Client()
    async with running(hub) as nursery:
        nursery.start_soon(follow, hub, client)
        await client.hears(2)
        for connection in range(100):
            node.decide(connection)
        await trio.sleep(1)
    decided = [data["id"] for _, kind, data in client.told if kind == "decision"]
    assert decided == list(range(100 - DECISIONS_AT_ONCE, 100))


async def test_who_comes_back_hears_what_it_missed(hub: Hub, autojump_clock: MockClock) -> None:
    first, again, stays = Client(), Client(), Client()
    async with running(hub) as nursery:
        nursery.start_soon(follow, hub, stays)
        await stays.hears(1)
        with trio.move_on_after(3.1):
            await follow(hub, first)
        await trio.sleep(5)
        nursery.start_soon(follow, hub, again, first.told[-1][0])
        await trio.sleep(3)
    assert first.told + again.told == [told for told in stays.told if told[0] >= first.told[0][0]]


async def test_but_not_so_rarely_that_it_looks_dead(
    hub: Hub, autojump_clock: MockClock, node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    status = node.status

    def very_slow_status() -> dict[str, Any]:
        autojump_clock.jump(2.0)
        return status()

    monkeypatch.setattr(node, "status", very_slow_status)
    client = Client()
    async with running(hub) as nursery:
        nursery.start_soon(follow, hub, client)
        await trio.sleep(70)
    assert len(client.told) >= 9


@pytest.mark.parametrize("after", [0, 2**62])
async def test_ids_of_another_time_do_no_harm(hub: Hub, autojump_clock: MockClock, after: int) -> None:
    client = Client()
    async with running(hub) as nursery:
        nursery.start_soon(follow, hub, client, after)
        await client.hears(3)
    assert client.told[0][0] < client.told[1][0] < client.told[2][0]


async def test_nobody_listens_nothing_is_made(hub: Hub, autojump_clock: MockClock, node: FakeNode) -> None:
    async with running(hub) as nursery:
        await trio.sleep(1000)
        assert node.asked == 0
        client = Client()
        with trio.move_on_after(2):
            await follow(hub, client)
        await trio.sleep(RECONNECT_WITHIN_S + 5)
        made = node.asked
        assert made > RECONNECT_WITHIN_S / STATE_EVERY_S / 2  # for one that comes back
        await trio.sleep(1000)
        assert node.asked == made
        nursery.start_soon(follow, hub, client, client.told[-1][0])
        before = len(client.told)
        await client.hears(before + 3)


async def test_the_ring_is_bounded_and_who_falls_out_is_cut_off(hub: Hub, autojump_clock: MockClock, node: FakeNode) -> None:
    node.padding = "x" * (RING_BYTES // 4)
    slow, fast = Client(), Client()
    async with running(hub) as nursery:
        nursery.start_soon(follow, hub, slow)
        nursery.start_soon(follow, hub, fast)
        await slow.hears(1)
        slow.gate = trio.Event()
        await trio.sleep(60)
        assert sum(len(event.text) for event in hub._ring) <= RING_BYTES
        assert len(fast.told) > 50
        slow.gate.set()
        await trio.sleep(1)
        assert (slow.ended, fast.ended) == (True, False)
        assert hub.clients == 1


async def test_silence_is_broken(hub: Hub, autojump_clock: MockClock) -> None:
    client = Client()
    with trio.move_on_after(SILENCE_S * 3.5):  # nothing runs: there is nothing to tell but the first state
        await follow(hub, client)
    assert (len(client.told), client.comments) == (1, 3)


async def test_our_bug_is_logged_and_costs_one_event(hub: Hub, autojump_clock: MockClock, node: FakeNode) -> None:
    client = Client()
    with capture_logs() as logged:
        async with running(hub) as nursery:
            nursery.start_soon(follow, hub, client)
            await client.hears(1)
            node.fails = True
            await trio.sleep(2)
            node.fails = False
            await client.hears(len(client.told) + 2)
    assert {entry["event"] for entry in logged} == {"events could not be made"}


async def test_a_large_network_is_told_less_often(
    hub: Hub, autojump_clock: MockClock, node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A state that takes 0.1 s to make, at most 2 % of the time: one in five seconds."""
    status = node.status

    def slow_status() -> dict[str, Any]:
        autojump_clock.jump(0.1)
        return status()

    monkeypatch.setattr(node, "status", slow_status)
    client = Client()
    async with running(hub) as nursery:
        nursery.start_soon(follow, hub, client)
        await trio.sleep(60)
    assert 11 <= len(client.told) <= 15


# Over ASGI


async def respond(
    hub: Hub,
    *,
    method: str = "GET",
    headers: tuple[tuple[bytes, bytes], ...] = (),
    for_s: float = 3,
    owner: bool = False,
) -> list[Any]:
    (operation,) = events.routes(hub)
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        await trio.sleep(for_s)
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": method, "path": operation.path, "headers": headers, "query_string": b""}
    if owner:
        mark_owner(scope)
    await route(operation, None)(scope, receive, send)
    return sent


async def test_the_response(hub: Hub, autojump_clock: MockClock) -> None:
    async with running(hub):
        sent = await respond(hub)
    assert sent[0]["status"] == 200
    headers = dict(sent[0]["headers"])
    assert headers[b"content-type"].startswith(b"text/event-stream")
    assert b"content-length" not in headers
    assert sent[1]["body"] == b"retry: 2000\n\n"
    assert all(message["more_body"] for message in sent[1:-1])
    assert hub.clients == 0


async def test_last_event_id(hub: Hub, autojump_clock: MockClock) -> None:
    async with running(hub):
        first = await respond(hub)
        ids = [line for message in first[1:] for line in message["body"].split(b"\n") if line.startswith(b"id: ")]
        again = await respond(hub, headers=((b"last-event-id", ids[0][4:]),))
        assert ids[1] in again[2]["body"]
        assert ids[0] not in again[2]["body"]
        for nonsense in (b"x", b"-1", b"9" * 30, b""):
            assert b"event: state" in (await respond(hub, headers=((b"last-event-id", nonsense),)))[2]["body"]


async def test_head_ends(hub: Hub, autojump_clock: MockClock) -> None:
    assert [message["type"] for message in await respond(hub, method="HEAD")] == [
        "http.response.start",
        "http.response.body",
    ]


async def test_no_more_clients_than_that(hub: Hub, autojump_clock: MockClock) -> None:
    from starlette.exceptions import HTTPException

    async with running(hub) as nursery:
        for _ in range(MAX_KEYLESS):
            nursery.start_soon(follow, hub, Client())
        await trio.sleep(0.1)
        with pytest.raises(HTTPException, match="503: 8 clients listen already"):
            await respond(hub)
        assert (await respond(hub, owner=True))[0]["status"] == 200
        for _ in range(MAX_CLIENTS - MAX_KEYLESS):
            nursery.start_soon(follow, hub, Client())
        await trio.sleep(0.1)
        with pytest.raises(HTTPException, match="503: 16 clients listen already"):
            await respond(hub, owner=True)
