"""Orders of the network's owner to another node, as people give them at this one (mesh/remote.py): signed with the key in
this node's state directory; or prepared here, signed where the owner has the key, and carried out here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from federation.errors import NotDone
from federation.mesh.owner import REMOTE_ORDER
from federation.mesh.remote import LOOK
from federation.mesh.token_store import owner_key
from federation.ops.ownership import where_the_key_is

if TYPE_CHECKING:
    from federation.mesh.remote import Load, Prepared
    from federation.ops import shapes
    from federation.ops.parts import Parts

ITSELF = "this is the node itself; run the command without --node"


class Orders:
    """Remembers the order that was prepared last, with the stream on which its node waits."""

    def __init__(self, node: Parts) -> None:
        self._node = node
        self._pending: Prepared | None = None

    async def give(self, peer: str, order: shapes.Order) -> shapes.Ordered:
        """Give an order, or look at the node. Raises NotFound, UsageError or NotDone."""
        node = self._node
        peer_id = node.find_other(peer, if_itself=ITSELF)
        if order == LOOK:
            return self._ordered(peer_id, await node.remote.look(peer_id))
        key = owner_key(node.token, node.state)
        if key is None and node.token.owner:
            raise NotDone(where_the_key_is(node, f"federation {order} --node {node.name_of(peer_id) or peer_id}"))
        prepared = await node.remote.prepare(peer_id, order)
        assert key is not None  # or there is no owner, and nothing was prepared
        return self._ordered(peer_id, await node.remote.carry_out(prepared, key.sign(prepared.text, REMOTE_ORDER)))

    async def prepare(self, peer: str, order: shapes.Order) -> shapes.PreparedOrder:
        """Prepare an order for a signature from elsewhere. Raises NotFound, UsageError or NotDone."""
        node = self._node
        peer_id = node.find_other(peer, if_itself=ITSELF)
        former, self._pending = self._pending, None
        if former is not None:
            await node.remote.drop(former)
        prepared = await node.remote.prepare(peer_id, order)
        former, self._pending = self._pending, prepared
        if former is not None:  # of somebody who asked meanwhile
            await node.remote.drop(former)
        return {
            "network": node.token.network_id,
            "owner": prepared.owner.hex(),
            "peer_id": peer_id,
            "name": node.name_of(peer_id),
            "order": prepared.text.hex(),
        }

    async def carry_out(self, signature: str) -> shapes.Ordered:
        """Carry out the order that was prepared last. Raises NotDone."""
        pending, self._pending = self._pending, None
        if pending is None:
            raise NotDone("no order is prepared here; run it again")
        return self._ordered(pending.peer_id, await self._node.remote.carry_out(pending, bytes.fromhex(signature)))

    def _ordered(self, peer_id: str, load: Load) -> shapes.Ordered:
        return {"peer_id": peer_id, "name": self._node.name_of(peer_id), **load._asdict()}  # type: ignore[typeddict-item]
