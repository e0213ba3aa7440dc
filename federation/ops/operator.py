"""The node as its operator sees it: the control API's questions and orders, over the node's parts.

Implements the API's protocols: routes.ControlledNode, diagnosis.DiagnosableNode, machines.WatchfulNode,
handover.HandedOverNode, server.KeyedNode.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from federation.errors import NotFound
from federation.mesh.bans import find_peer
from federation.ops import client_keys, diagnose, doctor, invitation, invites, lately, models, netcheck, status
from federation.ops.handover import HandingOver
from federation.ops.orders import Orders
from federation.ops.ownership import Ownership

if TYPE_CHECKING:
    import socket
    import ssl
    from collections.abc import Sequence

    from federation.ops import schemas, shapes
    from federation.ops.alerts.notices import Notices
    from federation.ops.client_keys import KeyWish
    from federation.ops.invites import InviteWish
    from federation.ops.ownership import Wish
    from federation.ops.parts import Parts
    from federation.program.handover import Handed

log = structlog.get_logger(__name__)


class Operator:
    def __init__(self, parts: Parts, notices: Notices) -> None:
        self._parts = parts
        self._ownership = Ownership(parts)
        self._handing_over = HandingOver(parts)
        self._orders = Orders(parts)
        self._notices = notices

    # State

    async def has_started(self) -> None:
        """Wait until the node serves."""
        await self._parts.facts.serves.wait()

    def status(self) -> schemas.Status:
        return status.status(self._parts)

    def peers(self) -> list[schemas.Peer]:
        return status.peers(self._parts)

    def explain(self, last: int, connection: int | None = None) -> list[schemas.Decision]:
        return status.explain(self._parts, last, connection)

    def turned_away(self, last: int, connection: int | None = None) -> list[schemas.TurnedAway]:
        return status.turned_away(self._parts, last, connection)

    def connections(self, most: int) -> schemas.OpenConnections:
        return status.connections(self._parts, most)

    def models(self) -> schemas.Models:
        return models.models(self._parts)

    def place(self, needed_vram: int, among: Sequence[str], model: str | None) -> schemas.Placement:
        return models.place(self._parts, needed_vram, among, model)

    def metrics_text(self, accept: str) -> tuple[bytes, str]:
        return self._parts.metrics.exposition(accept)

    # Diagnosis

    def log_lines(self, after: int, last: int) -> schemas.LogLines:
        return diagnose.log_lines(after, last)

    async def ping(self, peer: str, count: int, bulk_bytes: int) -> schemas.Ping:
        return await diagnose.ping(self._parts, peer, count, bulk_bytes)

    def netcheck(self) -> schemas.Netcheck:
        return netcheck.check(self._parts)

    async def examine(self) -> schemas.Examination:
        return {"findings": [*await doctor.examine(self._parts), *self._notices.findings()]}

    # The machines

    def history(self, peer: str | None) -> shapes.History:
        return lately.answer(self._parts, peer)

    async def order(self, peer: str, order: shapes.Order) -> shapes.Ordered:
        return await self._orders.give(peer, order)

    async def prepare_order(self, peer: str, order: shapes.Order) -> shapes.PreparedOrder:
        return await self._orders.prepare(peer, order)

    async def carry_out_order(self, signature: str) -> shapes.Ordered:
        return await self._orders.carry_out(signature)

    def notices(self) -> shapes.Notices:
        return self._notices.status()

    async def try_notices(self) -> shapes.Notices:
        await self._notices.try_out()
        return self._notices.status()

    # Drain and leave

    def drain(self) -> None:
        """Give this node's backends no new connection, from here or, as soon as gossip has it, elsewhere; open ones go on.

        The other nodes serve the clients of this node's own ports, so these clients notice nothing.
        """
        self._set_draining(True)

    def undrain(self) -> None:
        self._set_draining(False)

    def drain_status(self) -> schemas.Draining:
        return status.draining(self._parts)

    def _set_draining(self, draining: bool) -> None:
        parts = self._parts
        if parts.stop.is_set() or parts.facts.draining == draining:
            return  # a node that leaves goes on draining
        parts.facts.draining = parts.backends.draining = draining
        log.info("draining: the backends take no new connections" if draining else "no longer draining")
        parts.roster.changed()
        parts.gossip.stir()

    def leave(self) -> None:
        """Stop, and forget the network: the next start without a token begins a new one."""
        self._parts.facts.forgets_network = True
        self._parts.stop.set()

    # Members

    def invite(self) -> schemas.Invite:
        return invitation.invite(self._parts)

    def invites(self) -> schemas.Invites:
        return invites.invites(self._parts)

    async def make_invite(self, wish: InviteWish) -> schemas.NewInvite:
        return await invites.make(self._parts, wish)

    async def revoke_invite(self, which: str) -> schemas.Invites:
        return await invites.revoke(self._parts, which)

    async def approve(self, peer: str) -> schemas.Decided:
        return await invites.approve(self._parts, peer)

    async def refuse(self, peer: str) -> schemas.Decided:
        return await invites.refuse(self._parts, peer)

    async def hand_over(self, archive: str | None, address: str | None) -> schemas.Handover:
        return await self._handing_over.new(archive, address)

    def handed_over(self, name: str) -> Handed | None:
        return self._handing_over.handed(name)

    def banned(self) -> schemas.Banned:
        rows = self._parts.bans.rows()
        return {"banned": [{"peer_id": ban.peer_id, "name": ban.name, "since": ban.since} for ban in rows]}

    def ban(self, peer: str) -> None:
        """Keep away the peer that `peer` names (bans.find_peer). Raises NotFound or UsageError."""
        parts = self._parts
        peer_id = parts.find_other(peer)
        name = parts.name_of(peer_id)
        parts.bans.ban(peer_id, name)
        log.info("peer banned", peer=peer_id, name=name)
        parts.host.cut(peer_id, "banned here")
        parts.roster.changed()

    def unban(self, peer: str) -> None:
        """End the ban of the peer that `peer` names. Raises NotFound or UsageError."""
        parts = self._parts
        names = {peer_id: parts.name_of(peer_id) or name for peer_id, name in parts.bans.names.items()}
        peer_id = find_peer(peer, names, among="those that are banned here")
        if peer_id not in parts.bans:
            raise NotFound("it is not banned here")
        parts.bans.unban(peer_id)
        log.info("peer no longer banned", peer=peer_id)
        parts.book.refresh(peer_id)
        parts.host.look_at_book()

    async def rotate(self, wish: Wish) -> schemas.Rotated:
        return await self._ownership.rotate(wish)

    def prepare_rotation(self, wish: Wish) -> schemas.PreparedRotation:
        return self._ownership.prepare(wish)

    async def carry_out_rotation(self, signature: str) -> schemas.Rotated:
        return await self._ownership.carry_out(signature)

    # Clients

    async def keys(self) -> schemas.ClientKeys:
        return await client_keys.keys(self._parts)

    async def add_key(self, wish: KeyWish) -> schemas.NewClientKey:
        return await client_keys.add(self._parts, wish)

    async def revoke_key(self, name: str) -> schemas.ClientKeys:
        return await client_keys.revoke(self._parts, name)

    # For the API's server

    def control_hosts(self) -> tuple[str, ...]:
        return self._parts.facts.settings.control_hosts

    def control_key(self) -> str:
        return self._parts.state.control_key()

    def control_tls(self) -> ssl.SSLContext | None:
        """For the control port, off loopback."""
        return self._parts.certificate.context

    def control_socket(self) -> socket.socket | None:
        return self._parts.state.listen_control()
