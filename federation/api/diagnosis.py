"""Routes for the person who looks after a node or owns the network: log, round trips, doctor, rotation. See routes.py."""

from __future__ import annotations

from typing import Annotated, Protocol

from pydantic import BaseModel, Field

from federation.api.routing import Body, Routes
from federation.mesh.probe import MAX_BULK_BYTES
from federation.ops import schemas
from federation.ops.ownership import Wish

LOG_LINES = 50
MAX_LOG_LINES = 3000
MAX_PINGS = 100

routes = Routes()


class DiagnosableNode(Protocol):
    """The node, as these routes need it."""

    def log_lines(self, after: int, last: int) -> schemas.LogLines: ...
    async def ping(self, peer: str, count: int, bulk_bytes: int) -> schemas.Ping: ...
    async def examine(self) -> schemas.Examination: ...
    def netcheck(self) -> schemas.Netcheck: ...
    async def rotate(self, wish: Wish) -> schemas.Rotated: ...
    def prepare_rotation(self, wish: Wish) -> schemas.PreparedRotation: ...
    async def carry_out_rotation(self, signature: str) -> schemas.Rotated: ...


class LogsQuery(BaseModel):
    after: Annotated[
        int, Field(ge=0, description="only lines behind that number, as the answer before this one gave it")
    ] = 0
    last: Annotated[int, Field(ge=1, le=MAX_LOG_LINES, description="how many, the newest")] = LOG_LINES


class PingBody(Body):
    peer: Annotated[str, Field(min_length=1, max_length=128, description="its id, its name, or the end of its id")]
    count: Annotated[int, Field(ge=1, le=MAX_PINGS, description="round trips, one after the other")] = 1
    bulk_bytes: Annotated[int, Field(ge=0, le=MAX_BULK_BYTES, description="to move each way, for 10 s at most")] = 0


@routes.get("/api/v1/logs", schemas.LogLines, query=LogsQuery, owner=True)
async def logs(node: DiagnosableNode, query: LogsQuery) -> schemas.LogLines:
    """The newest lines of this node's log, connections that ended among them."""
    return node.log_lines(query.after, query.last)


@routes.post("/api/v1/ping", schemas.Ping, body=PingBody, owner=True)
async def ping(node: DiagnosableNode, body: PingBody) -> schemas.Ping:
    """Round trips to a peer and back, and how much the way there carries. No backend notices."""
    return await node.ping(body.peer, body.count, body.bulk_bytes)


@routes.post("/api/v1/doctor", schemas.Examination, owner=True)
async def doctor(node: DiagnosableNode) -> schemas.Examination:
    """Examine this node: its faults, and a remedy for each. The node asks its peers for their clocks."""
    return await node.examine()


@routes.get("/api/v1/netcheck", schemas.Netcheck)
async def netcheck(node: DiagnosableNode) -> schemas.Netcheck:
    """How other machines can reach this one: NAT, router, relays, IPv6. Nobody is asked anew."""
    return node.netcheck()


PeerText = Annotated[str, Field(min_length=1, max_length=128, description="id, name, or the last 6 characters of an id")]


class Rotate(Body):
    grace_s: Annotated[float, Field(ge=0, le=30 * 86400, description="seconds for which the former token admits")] = 3600.0
    excepted: list[PeerText] = Field(default_factory=list, alias="except", max_length=256, description="who is not told")
    keep_banned: Annotated[bool, Field(description="tell those too whom this node has banned")] = False

    def wish(self) -> Wish:
        return Wish(self.grace_s, self.excepted, self.keep_banned)


@routes.post("/api/v1/token/rotate", schemas.Rotated, owner=True, body=Rotate)
async def rotate(node: DiagnosableNode, body: Rotate) -> schemas.Rotated:
    """A new token for the network, handed to its members; waits some seconds for those that are linked with this node.

    Needs the owner's key in this node's state directory; else see /api/v1/token/rotation.
    """
    return await node.rotate(body.wish())


class Signed(Body):
    signature: Annotated[str, Field(pattern="^[0-9a-f]{128}$", description="of the prepared order, by the owner's key; hex")]


@routes.post("/api/v1/token/rotation", schemas.PreparedRotation, owner=True, body=Rotate)
async def prepare_rotation(node: DiagnosableNode, body: Rotate) -> schemas.PreparedRotation:
    """Prepare a rotation for an owner's key that is not on this node. Nothing changes before it is signed."""
    return node.prepare_rotation(body.wish())


@routes.post("/api/v1/token/rotation/signed", schemas.Rotated, owner=True, body=Signed)
async def carry_out_rotation(node: DiagnosableNode, body: Signed) -> schemas.Rotated:
    """Carry out the rotation that was prepared last, within a minute."""
    return await node.carry_out_rotation(body.signature)
