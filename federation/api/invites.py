"""The control API's routes about invites and newcomers. The list holds no secret; a code is told once, to its maker."""

from __future__ import annotations

from typing import Annotated, Protocol

from pydantic import Field

from federation.api.routes import PeerText  # noqa: TC001  # pydantic reads it
from federation.api.routing import Body, Routes
from federation.mesh.invites import MAX_USES
from federation.ops import schemas
from federation.ops.invites import DEFAULT_S, MAX_LIFETIME_S, InviteWish

routes = Routes()


class InvitingNode(Protocol):
    """The node, as these routes need it."""

    def invites(self) -> schemas.Invites: ...
    async def make_invite(self, wish: InviteWish) -> schemas.NewInvite: ...
    async def revoke_invite(self, which: str) -> schemas.Invites: ...
    async def approve(self, peer: str) -> schemas.Decided: ...
    async def refuse(self, peer: str) -> schemas.Decided: ...


class NewInvite(Body):
    lifetime_s: Annotated[float, Field(gt=0, le=MAX_LIFETIME_S, description="seconds until it expires")] = DEFAULT_S
    uses: Annotated[int, Field(ge=1, le=MAX_USES, description="how many machines may come by it")] = 1
    approve: Annotated[bool, Field(description="each newcomer waits for a person's yes")] = False


class WhichInvite(Body):
    id: Annotated[str, Field(min_length=3, max_length=32, description="an invite's id, or `all`: those that are open")]


class OneNewcomer(Body):
    peer: PeerText


@routes.get("/api/v1/invites", schemas.Invites)
async def invites(node: InvitingNode) -> schemas.Invites:
    """The invites that this node made, and the newcomers that wait for a person here."""
    return node.invites()


@routes.post("/api/v1/invites/add", schemas.NewInvite, owner=True, body=NewInvite)
async def make_invite(node: InvitingNode, body: NewInvite) -> schemas.NewInvite:
    """Make an invite: its code is told this once, and is exchanged for the network's token at this node."""
    return await node.make_invite(InviteWish(body.lifetime_s, body.uses, body.approve))


@routes.post("/api/v1/invites/revoke", schemas.Invites, owner=True, body=WhichInvite)
async def revoke_invite(node: InvitingNode, body: WhichInvite) -> schemas.Invites:
    """End an invite that is open. Who has come by it stays."""
    return await node.revoke_invite(body.id)


@routes.post("/api/v1/newcomers/approve", schemas.Decided, owner=True, body=OneNewcomer)
async def approve(node: InvitingNode, body: OneNewcomer) -> schemas.Decided:
    """Let in a newcomer that waits."""
    return await node.approve(body.peer)


@routes.post("/api/v1/newcomers/refuse", schemas.Decided, owner=True, body=OneNewcomer)
async def refuse(node: InvitingNode, body: OneNewcomer) -> schemas.Decided:
    """Turn away a newcomer that waits, for good as far as its invite goes."""
    return await node.refuse(body.peer)
