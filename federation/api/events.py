"""The node's state and decisions as server-sent events: one producer, a ring of the newest events, a few clients.

    event: state      about once a second: schemas.NetworkState
    event: decision   each pick of a peer: schemas.Decision; of a burst the newest only

Ids rise, also over restarts. A client that reconnects names the last id that it saw (Last-Event-ID, as browsers do,
or ?after=ID) and gets the events of the ring behind that id; a new client gets the present state. A client that falls out of
the ring, or does not read (http_server.WRITE_TIMEOUT_S), is cut off and may come again. Without clients nothing is produced.
"""

from __future__ import annotations

import math
from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, NamedTuple, Protocol

import structlog
import trio
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.responses import Response

from federation.api.routing import Routes, is_owner, to_json

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from datetime import datetime

    from starlette.requests import Request
    from starlette.types import Receive, Scope, Send

    from federation.ops import schemas

log = structlog.get_logger(__name__)

PATH = "/api/v1/events"
STATE_EVERY_S = 1.0
DECISIONS_EVERY_S = 0.25
DECISIONS_AT_ONCE = 10
MAX_SHARE = 0.02  # of a core for producing states: in a large network they come less often,
RAREST_S = 5.0  # but often enough that the page sees that the connection lives
RECONNECT_WITHIN_S = 60.0  # without clients, so that one that reconnects misses nothing
RING_BYTES = 4 * 1024 * 1024
RING_EVENTS = 1024
MAX_CLIENTS = 16
MAX_KEYLESS = 8  # any program on this machine may listen without a key, but must leave places for the owner
SILENCE_S = 15.0  # then a comment, so that proxies and clients see that the connection lives
RETRY_MS = 2000


class EventfulNode(Protocol):
    """The node, as the events need it."""

    def status(self) -> schemas.Status: ...
    def peers(self) -> list[schemas.Peer]: ...
    def explain(self, last: int) -> list[schemas.Decision]: ...


class Event(NamedTuple):
    id: int
    text: bytes  # as it goes over the wire


class Hub:
    """`utc_now` dates the states; its time at the start is the first id."""

    def __init__(self, node: EventfulNode, utc_now: Callable[[], datetime]) -> None:
        self._node = node
        self._utc_now = utc_now
        self._next_id = round(utc_now().timestamp() * 1000)
        self._ring: deque[Event] = deque()
        self._ring_bytes = 0
        self._news = trio.Event()
        self._wanted = trio.Event()
        self.clients = 0
        self._alone_since = -math.inf
        self._state_at = -math.inf
        self._seen: tuple[int, int, int, str] | None = None  # the newest decision: one that is sent back is made again

    async def run(self) -> None:
        """Produce events while there are clients, and for RECONNECT_WITHIN_S afterwards."""
        is_news = False  # a decision from before there was a client is none
        while True:
            if not self.clients and trio.current_time() - self._alone_since > RECONNECT_WITHIN_S:
                self._wanted = trio.Event()
                await self._wanted.wait()
                is_news = False
            begun = trio.current_time()
            self._look(begun, is_news)
            is_news = True
            cost_s = trio.current_time() - begun
            await trio.sleep(min(RAREST_S, max(DECISIONS_EVERY_S, cost_s / MAX_SHARE)))

    def _look(self, now: float, is_news: bool) -> None:
        """Publish new decisions, and the state if it is due."""
        try:
            for decision in self._fresh_decisions():
                if is_news:
                    self._publish("decision", decision)
            if now >= self._state_at:
                self._state_at = now + STATE_EVERY_S
                self._publish("state", self._state())
        except Exception:  # as for a request: a bug here must not end the daemon
            log.exception("events could not be made")

    def _state(self) -> schemas.NetworkState:
        status = self._node.status()
        now = self._utc_now().timestamp()
        return {"at": round(now, 3), "status": status, "peers": self._node.peers(), "rates": status["rates"]}

    def _fresh_decisions(self) -> list[schemas.Decision]:
        """The decisions since the last call, oldest first; of a burst the newest only."""
        newest = self._node.explain(DECISIONS_AT_ONCE)
        names = [(made["id"], made["request"], made["attempt"], made["chosen"]) for made in newest]
        seen = next((i for i in range(len(names), 0, -1) if names[i - 1] == self._seen), 0)
        if names:
            self._seen = names[-1]
        return newest[seen:]

    def _publish(self, kind: str, content: object) -> None:
        text = f"id: {self._next_id}\nevent: {kind}\ndata: {to_json(content)}\n\n".encode()
        self._ring.append(Event(self._next_id, text))
        self._ring_bytes += len(text)
        self._next_id += 1
        while len(self._ring) > RING_EVENTS or (self._ring_bytes > RING_BYTES and len(self._ring) > 1):
            self._ring_bytes -= len(self._ring.popleft().text)
        self._news.set()
        self._news = trio.Event()

    async def follow(self, after: int | None, tell: Callable[[bytes], Awaitable[None]]) -> None:
        """Send a client all events until it falls out of the ring."""
        with self._listening():
            await tell(f"retry: {RETRY_MS}\n\n".encode())
            if after is None or not self._ring or after >= self._next_id:
                after = self._next_id - 1
                self._publish("state", self._state())
            else:
                after = max(after, self._ring[0].id - 1)  # the client was away for longer than the ring reaches back
            while self._ring[0].id <= after + 1:
                events = [event for event in self._ring if event.id > after]
                if events:
                    after = events[-1].id
                    await tell(b"".join(event.text for event in events))
                    continue
                with trio.move_on_after(SILENCE_S) as silence:
                    await self._news.wait()
                if silence.cancelled_caught:
                    await tell(b": still here\n\n")

    @contextmanager
    def _listening(self) -> Iterator[None]:
        self.clients += 1
        self._wanted.set()
        try:
            yield
        finally:
            self.clients -= 1
            self._alone_since = trio.current_time()


class EventStream(Response):
    media_type = "text/event-stream"

    def __init__(self, hub: Hub, after: int | None) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]  # a stream of events has no length
        self._hub = hub
        self._after = after

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        if scope["method"] == "HEAD":
            await send({"type": "http.response.body", "body": b""})
            return

        async def tell(text: bytes) -> None:
            await send({"type": "http.response.body", "body": text, "more_body": True})

        async with trio.open_nursery() as nursery:

            async def watch() -> None:
                while (await receive())["type"] != "http.disconnect":
                    pass
                nursery.cancel_scope.cancel()

            nursery.start_soon(watch)
            await self._hub.follow(self._after, tell)
            nursery.cancel_scope.cancel()
        await send({"type": "http.response.body", "body": b""})


class EventsQuery(BaseModel):
    after: Annotated[int, Field(ge=0, lt=2**63, description="the last id that was seen")] | None = None


def routes(hub: Hub) -> Routes:
    routes = Routes()

    @routes.get(PATH, EventStream, query=EventsQuery, request=True, media_type="text/event-stream")
    async def events(_node: object, query: EventsQuery, request: Request) -> EventStream:
        """Server-sent events: `state` about once a second, `decision` for each pick of a peer."""
        if hub.clients >= (MAX_CLIENTS if is_owner(request.scope) else MAX_KEYLESS):
            raise HTTPException(503, f"{hub.clients} clients listen already", {"Retry-After": "10"})
        last = request.headers.get("last-event-id", "")
        is_id = last.isascii() and last.isdigit() and len(last) < 20
        return EventStream(hub, int(last) if is_id else query.after)

    return routes
