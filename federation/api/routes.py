"""The control API's routes, one function each; schemas.py has their shapes, routing.py the mechanics, server.py the server.

Reading needs no key on loopback. A route that changes something or shows a secret is for the owner: `owner=True`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Protocol

from pydantic import BaseModel, Field
from starlette.responses import Response

from federation.api.routing import Body, Routes
from federation.mesh.client_keys import MAX_MODELS, MAX_NAME_CHARS, MAX_RATE_S, MAX_REQUESTS
from federation.ops import schemas, using
from federation.ops.client_keys import KeyWish

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.requests import Request

EXPLAIN_DEFAULT = 20
EXPLAIN_MAX = 1000
CONNECTIONS_MAX = 1000
MAX_LIFETIME_S = 50 * 365 * 86400

routes = Routes()


class ControlledNode(Protocol):
    """The node, as these routes need it."""

    def status(self) -> schemas.Status: ...
    def peers(self) -> list[schemas.Peer]: ...
    def explain(self, last: int, connection: int | None = None) -> list[schemas.Decision]: ...
    def turned_away(self, last: int, connection: int | None = None) -> list[schemas.TurnedAway]: ...
    def connections(self, most: int) -> schemas.OpenConnections: ...
    def models(self) -> schemas.Models: ...
    def place(self, needed_vram: int, among: Sequence[str], model: str | None) -> schemas.Placement: ...
    def metrics_text(self, accept: str) -> tuple[bytes, str]: ...
    def invite(self) -> schemas.Invite: ...
    def drain(self) -> None: ...
    def undrain(self) -> None: ...
    def leave(self) -> None: ...
    def drain_status(self) -> schemas.Draining: ...
    def banned(self) -> schemas.Banned: ...
    def ban(self, peer: str) -> None: ...
    def unban(self, peer: str) -> None: ...
    async def keys(self) -> schemas.ClientKeys: ...
    async def add_key(self, wish: KeyWish) -> schemas.NewClientKey: ...
    async def revoke_key(self, name: str) -> schemas.ClientKeys: ...


class ExplainQuery(BaseModel):
    last: Annotated[int, Field(ge=1, le=EXPLAIN_MAX, description="how many, the newest")] = EXPLAIN_DEFAULT
    id: Annotated[int, Field(ge=1, description="all picks for the connection of this number, instead")] | None = None


class ConnectionsQuery(BaseModel):
    limit: Annotated[int, Field(ge=1, le=CONNECTIONS_MAX, description="how many, the oldest")] = CONNECTIONS_MAX


class PlacementQuery(BaseModel):
    vram: Annotated[int, Field(ge=0, lt=2**63, description="bytes that have to be free")] = 0
    among: Annotated[str, Field(max_length=4096, description="the only nodes to look at: ids or names, with commas")] = ""
    model: (
        Annotated[str, Field(min_length=1, max_length=200, description="a model; it needs its size if vram is not given")]
        | None
    ) = None


@routes.get("/api/v1/status", schemas.Status)
async def status(node: ControlledNode) -> schemas.Status:
    """The state of this node."""
    return node.status()


@routes.get("/api/v1/peers", schemas.Peers)
async def peers(node: ControlledNode) -> schemas.Peers:
    """All nodes of the network, this one first."""
    return {"peers": node.peers()}


@routes.get("/api/v1/explain", schemas.Explained, query=ExplainQuery)
async def explain(node: ControlledNode, query: ExplainQuery) -> schemas.Explained:
    """The last picks of a peer, their reasons and results; the newest last."""
    return {"decisions": node.explain(query.last, query.id), "turned_away": node.turned_away(query.last, query.id)}


@routes.get("/api/v1/connections", schemas.OpenConnections, query=ConnectionsQuery)
async def connections(node: ControlledNode, query: ConnectionsQuery) -> schemas.OpenConnections:
    """The clients of this node's own ports, as they are now; the oldest first."""
    return node.connections(query.limit)


@routes.get("/api/v1/models", schemas.Models)
async def models(node: ControlledNode) -> schemas.Models:
    """The models of the network's backends, by name, and the nodes that have each."""
    return node.models()


@routes.get("/api/v1/placement", schemas.Placement, query=PlacementQuery)
async def placement(node: ControlledNode, query: PlacementQuery) -> schemas.Placement:
    """The nodes that have room for something, the best one first, and why."""
    among = [text.strip() for text in query.among.split(",") if text.strip()]
    return node.place(query.vram, among, query.model)


class UseQuery(BaseModel):
    service: Annotated[str, Field(max_length=64, description="the service to ask for; without it the first one")] = ""
    model: Annotated[str, Field(max_length=200, description="the model in the texts; without it one in memory")] = ""
    host: Annotated[
        str, Field(max_length=255, description="this machine, as the client's machine calls it; else ignored")
    ] = ""
    key: Annotated[bool, Field(description="with a place for a key, also where the port asks for none")] = False


@routes.get("/api/v1/use", schemas.Use, query=UseQuery)
async def use(node: ControlledNode, query: UseQuery) -> schemas.Use:
    """What to paste into each client: the port's address, the models, and a place for the key."""
    return using.use(node.status(), node.models(), query.service, query.model, host=query.host, with_key=query.key)


@routes.get("/api/v1/invite", schemas.Invite, owner=True)
async def invite(node: ControlledNode) -> schemas.Invite:
    """The network's token with fresh addresses in it, and the command for the next machine, which asks for the token."""
    return node.invite()


@routes.post("/api/v1/drain", schemas.Draining, owner=True)
async def drain(node: ControlledNode) -> schemas.Draining:
    """Take no new connections at this node's backends; those that are open go on."""
    node.drain()
    return node.drain_status()


@routes.post("/api/v1/undrain", schemas.Draining, owner=True)
async def undrain(node: ControlledNode) -> schemas.Draining:
    """Take connections again."""
    node.undrain()
    return node.drain_status()


@routes.post("/api/v1/leave", schemas.Draining, owner=True)
async def leave(node: ControlledNode) -> schemas.Draining:
    """Drain, say good-bye, forget the token, and end."""
    node.leave()
    return node.drain_status()


PeerText = Annotated[str, Field(min_length=1, max_length=128, description="id, name, or the last 6 characters of an id")]


class OnePeer(Body):
    peer: PeerText


@routes.get("/api/v1/banned", schemas.Banned)
async def banned(node: ControlledNode) -> schemas.Banned:
    """The peers that this node keeps away."""
    return node.banned()


@routes.post("/api/v1/ban", schemas.Banned, owner=True, body=OnePeer)
async def ban(node: ControlledNode, body: OnePeer) -> schemas.Banned:
    """Keep a peer away from this node: cut its connection, and make no other one."""
    node.ban(body.peer)
    return node.banned()


@routes.post("/api/v1/unban", schemas.Banned, owner=True, body=OnePeer)
async def unban(node: ControlledNode, body: OnePeer) -> schemas.Banned:
    """Let a peer in again."""
    node.unban(body.peer)
    return node.banned()


class NewKey(Body):
    name: Annotated[str, Field(min_length=1, max_length=MAX_NAME_CHARS, description="for people, logs and metrics")]
    models: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=200)]],
        Field(max_length=MAX_MODELS, default_factory=list, description="the models that it is for; none: all"),
    ]
    lifetime_s: Annotated[float, Field(gt=0, le=MAX_LIFETIME_S, description="seconds until it expires")] | None = None
    requests: Annotated[int, Field(ge=0, le=MAX_REQUESTS, description="so many in `seconds`, at each entry; 0: any")] = 0
    seconds: Annotated[int, Field(ge=1, le=MAX_RATE_S)] = 60


class OneKey(Body):
    name: Annotated[str, Field(min_length=1, max_length=MAX_NAME_CHARS)]


@routes.get("/api/v1/keys", schemas.ClientKeys)
async def keys(node: ControlledNode) -> schemas.ClientKeys:
    """The keys that clients may show, and their use at all entries that answer within a second."""
    return await node.keys()


@routes.post("/api/v1/keys/add", schemas.NewClientKey, owner=True, body=NewKey)
async def add_key(node: ControlledNode, body: NewKey) -> schemas.NewClientKey:
    """Make a client's key, which all nodes of the network know within a second; it is told this once."""
    seconds = body.seconds if body.requests else 0
    return await node.add_key(KeyWish(body.name, tuple(body.models), body.lifetime_s, body.requests, seconds))


@routes.post("/api/v1/keys/revoke", schemas.ClientKeys, owner=True, body=OneKey)
async def revoke_key(node: ControlledNode, body: OneKey) -> schemas.ClientKeys:
    """Revoke the client keys of that name, at all nodes of the network."""
    return await node.revoke_key(body.name)


@routes.get("/metrics", Response, request=True, media_type="text/plain")
async def metrics(node: ControlledNode, request: Request) -> Response:
    """Prometheus' text format, or OpenMetrics for a client that accepts it."""
    text, content_type = node.metrics_text(request.headers.get("accept", ""))
    return Response(text, headers={"Cache-Control": "no-store", "Content-Type": content_type})
