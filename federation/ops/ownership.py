"""Rotation, as the network's owner asks a node for it: a new token for all members but some. The order is signed with the
key in this node's state directory; or, where the owner has the key elsewhere, the node prepares the order, the owner signs
it there, and the node carries it out.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from itertools import chain, islice
from typing import TYPE_CHECKING

from federation.errors import NotDone
from federation.mesh.owner import MAX_MEMBERS
from federation.mesh.rotation import NO_OWNER
from federation.mesh.token_store import owner_key
from federation.ops import status

if TYPE_CHECKING:
    from collections.abc import Sequence

    from federation.mesh.rotation import Prepared
    from federation.ops import schemas
    from federation.ops.parts import Parts


@dataclass(frozen=True, slots=True)
class Wish:
    """`excepted`: members, named as people do (bans.find_peer). Peers banned here are left out, unless `keep_banned`."""

    grace_s: float
    excepted: Sequence[str] = ()
    keep_banned: bool = False


@dataclass(frozen=True, slots=True)
class Pending:
    rotation: Prepared
    out: frozenset[str]  # peer ids that are left out on purpose


class Ownership:
    """A node's rotations, as people ask for them. Remembers the one that was prepared last."""

    def __init__(self, node: Parts) -> None:
        self._node = node
        self._pending: Pending | None = None

    async def rotate(self, wish: Wish) -> schemas.Rotated:
        """Rotate with the key in the state directory. Raises NotFound, UsageError or NotDone."""
        pending = _prepared(self._node, wish)
        key = owner_key(self._node.token, self._node.state)
        if key is None:
            raise NotDone(where_the_key_is(self._node, "federation token rotate"))
        return await _carried_out(self._node, pending, key.sign(pending.rotation.order.encode()))

    def prepare(self, wish: Wish) -> schemas.PreparedRotation:
        """Prepare a rotation for a signature from elsewhere. Raises NotFound, UsageError or NotDone."""
        self._pending = pending = _prepared(self._node, wish)
        token, order = self._node.token, pending.rotation.order
        return {
            "network": token.network_id,
            "rotations": order.number,
            "owner": token.owner.hex(),
            "order": order.encode().hex(),
            "excepted": status.named_rows(self._node, pending.out),
        }

    async def carry_out(self, signature: str) -> schemas.Rotated:
        """Carry out the rotation that was prepared last. Raises NotDone."""
        pending, self._pending = self._pending, None
        if pending is None:
            raise NotDone("no rotation is prepared here; run it again")
        return await _carried_out(self._node, pending, bytes.fromhex(signature))


def _prepared(node: Parts, wish: Wish) -> Pending:
    if not node.token.owner:
        raise NotDone(NO_OWNER)
    itself = "this node itself cannot be left out; rotate the token on another member"
    excepted = {node.find_other(peer, if_itself=itself) for peer in wish.excepted}
    out = excepted if wish.keep_banned else excepted | set(node.bans.names)
    in_ledger = (record.peer_id for record in node.ledger.records())
    known = dict.fromkeys(chain([node.peer_id], node.host.links, in_ledger, node.discovery.remembered))
    members = islice((peer for peer in known if peer not in out), MAX_MEMBERS)
    prepared = node.rotation.prepare(grace=timedelta(seconds=wish.grace_s), members=members)
    return Pending(prepared, frozenset(out))


async def _carried_out(node: Parts, pending: Pending, signature: bytes) -> schemas.Rotated:
    not_told = await node.rotation.carry_out(pending.rotation, signature)
    return status.rotated(node, not_told, pending.out)


def where_the_key_is(node: Parts, command: str) -> str:
    others = status.owner_at(node)
    who = (
        f"{', '.join(others[:3])} {'says' if len(others) == 1 else 'say'} that it is there"
        if others
        else "no node says that it has it"
    )
    return (
        f"the owner key of network {node.token.network_id} is not on this node, and {who}: run `{command}` "
        "where it is, or give the key by --owner-key FILE"
    )
