"""Routes for who looks after a node: its log, a peer's round trips, what is wrong. See api.py."""

from __future__ import annotations

from typing import Annotated, Protocol

from pydantic import BaseModel, Field

from federation import answers
from federation.web import Body, Routes

LOG_LINES = 50
MAX_LOG_LINES = 3000
MAX_PINGS = 100
MAX_BULK_BYTES = 256 * 1024**2

routes = Routes()


class CaredForNode(Protocol):
    """What these routes need of a node."""

    def log_lines(self, after: int, last: int) -> answers.LogLines: ...
    async def ping(self, peer: str, count: int, bulk_bytes: int) -> answers.Ping: ...
    async def examine(self) -> answers.Examination: ...


class LogsQuery(BaseModel):
    after: Annotated[
        int, Field(ge=0, description="only lines behind that number, as the answer before this one gave it")
    ] = 0
    last: Annotated[int, Field(ge=1, le=MAX_LOG_LINES, description="how many, the newest")] = LOG_LINES


class PingBody(Body):
    peer: Annotated[str, Field(min_length=1, max_length=128, description="its id, its name, or the end of its id")]
    count: Annotated[int, Field(ge=1, le=MAX_PINGS, description="round trips, one after the other")] = 1
    bulk_bytes: Annotated[int, Field(ge=0, le=MAX_BULK_BYTES, description="to move each way, for 10 s at most")] = 0


@routes.get("/api/v1/logs", answers.LogLines, query=LogsQuery, owner=True)
async def logs(node: CaredForNode, query: LogsQuery) -> answers.LogLines:
    """The newest lines of this node's log, connections that ended among them."""
    return node.log_lines(query.after, query.last)


@routes.post("/api/v1/ping", answers.Ping, body=PingBody, owner=True)
async def ping(node: CaredForNode, body: PingBody) -> answers.Ping:
    """Round trips to a peer and back, and how much the way there carries. No backend notices."""
    return await node.ping(body.peer, body.count, body.bulk_bytes)


@routes.post("/api/v1/doctor", answers.Examination, owner=True)
async def doctor(node: CaredForNode) -> answers.Examination:
    """What is wrong with this node, and what to do about it. Asks peers for their clocks."""
    return await node.examine()
