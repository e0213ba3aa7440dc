"""Routes about the machines of a network: their last 24 hours, orders to them, notices of their deaths. See routes.py."""

from __future__ import annotations

from typing import Annotated, Literal, Protocol

from pydantic import BaseModel, Field

from federation.api.routing import Body, Routes
from federation.ops import shapes

routes = Routes()

PeerText = Annotated[str, Field(min_length=1, max_length=128, description="id, name, or the last 6 characters of an id")]


class WatchfulNode(Protocol):
    """The node, as these routes need it."""

    def history(self, peer: str | None) -> shapes.History: ...
    async def order(self, peer: str, order: shapes.Order) -> shapes.Ordered: ...
    async def prepare_order(self, peer: str, order: shapes.Order) -> shapes.PreparedOrder: ...
    async def carry_out_order(self, signature: str) -> shapes.Ordered: ...
    def notices(self) -> shapes.Notices: ...
    async def try_notices(self) -> shapes.Notices: ...


class HistoryQuery(BaseModel):
    peer: (
        Annotated[PeerText, Field(description="all that is kept of this node, instead of the busiest ones' loads")] | None
    ) = None


@routes.get("/api/v1/history", shapes.History, query=HistoryQuery)
async def history(node: WatchfulNode, query: HistoryQuery) -> shapes.History:
    """The last 24 hours at most, in steps of two minutes, as this node saw them since its start."""
    return node.history(query.peer)


class OrderBody(Body):
    peer: PeerText
    order: Annotated[shapes.Order, Field(description="`look` is no order: any member may ask for the answer")]


@routes.post("/api/v1/orders", shapes.Ordered, owner=True, body=OrderBody)
async def order(node: WatchfulNode, body: OrderBody) -> shapes.Ordered:
    """Have another node drain or undrain, by order of the network's owner, whose key is in this node's state directory."""
    return await node.order(body.peer, body.order)


class OrderToPrepare(Body):
    peer: PeerText
    order: Literal["drain", "undrain"]


@routes.post("/api/v1/orders/prepare", shapes.PreparedOrder, owner=True, body=OrderToPrepare)
async def prepare_order(node: WatchfulNode, body: OrderToPrepare) -> shapes.PreparedOrder:
    """Prepare an order for an owner's key that is not on this node. Nothing changes before it is signed."""
    return await node.prepare_order(body.peer, body.order)


class SignedOrder(Body):
    signature: Annotated[str, Field(pattern="^[0-9a-f]{128}$", description="of the prepared order, by the owner's key; hex")]


@routes.post("/api/v1/orders/signed", shapes.Ordered, owner=True, body=SignedOrder)
async def carry_out_order(node: WatchfulNode, body: SignedOrder) -> shapes.Ordered:
    """Carry out the order that was prepared last, within a minute."""
    return await node.carry_out_order(body.signature)


@routes.get("/api/v1/notices", shapes.Notices)
async def notices(node: WatchfulNode) -> shapes.Notices:
    """The notices of machines that die and return: where this node sends them, and whether they arrive."""
    return node.notices()


@routes.post("/api/v1/notices/test", shapes.Notices, owner=True)
async def try_notices(node: WatchfulNode) -> shapes.Notices:
    """Send a test message to the address of --notify-url."""
    return await node.try_notices()
