"""Invites and newcomers, as people make, list, revoke, approve and refuse them at a node."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING

import structlog
import trio

from federation.mesh.invite_codes import InviteCode, shown
from federation.mesh.invites import Invite

if TYPE_CHECKING:
    from federation.mesh.newcomers import Waiting
    from federation.ops import schemas
    from federation.ops.parts import Parts

log = structlog.get_logger(__name__)

# This command asks for the code: one that is typed into a command stays in the shell's history.
COMMAND = "federation join --token-file -"
DEFAULT_S = 3600.0
MAX_LIFETIME_S = 30 * 86400.0


@dataclass(frozen=True, slots=True)
class InviteWish:
    lifetime_s: float = DEFAULT_S
    uses: int = 1
    approve: bool = False


def invites(node: Parts) -> schemas.Invites:
    return {
        "invites": [_row(node, invite) for invite in node.newcomers.invites],
        "waiting": [_newcomer(waiting) for waiting in node.newcomers.waiting.values()],
    }


async def new(node: Parts, wish: InviteWish) -> tuple[InviteCode, Invite]:
    """Raises NotDone or StateDirUnusable."""
    now_ms = node.newcomers.now_ms
    expires_ms = now_ms + int(wish.lifetime_s * 1000)
    code = InviteCode.new(math.ceil(expires_ms / 1000), tuple(node.addresses))
    invite = Invite(code.id, code.key, now_ms, expires_ms, wish.uses, wish.approve)
    await node.newcomers.make(invite)
    log.info("invite made", invite=shown(invite.id), uses=wish.uses, approve=wish.approve, lifetime_s=wish.lifetime_s)
    return code, invite


async def make(node: Parts, wish: InviteWish) -> schemas.NewInvite:
    """Make an invite. Raises NotDone or StateDirUnusable."""
    code, invite = await new(node, wish)
    return {
        "code": code.encode(),
        "command": COMMAND,
        "addresses": [f"{a.host}:{a.port}" if ":" not in a.host else f"[{a.host}]:{a.port}" for a in code.addresses],
        "note": _note(node, code),
        **_row(node, invite),
    }


async def revoke(node: Parts, which: str) -> schemas.Invites:
    """Revoke open invites. Raises NotFound, UsageError, NotDone or StateDirUnusable."""
    for invite in await node.newcomers.revoke(which):
        log.info("invite revoked", invite=shown(invite.id))
    return invites(node)


async def approve(node: Parts, peer: str) -> schemas.Decided:
    """Let a newcomer in that waits. Raises NotFound, UsageError, NotDone or StateDirUnusable."""
    waiting = await node.newcomers.approve(peer)
    log.info("newcomer approved", peer=waiting.peer_id, name=waiting.name)
    return {**invites(node), "decided": _newcomer(waiting)}


async def refuse(node: Parts, peer: str) -> schemas.Decided:
    """Turn a newcomer away that waits. Raises as `approve`."""
    waiting = await node.newcomers.refuse(peer)
    log.info("newcomer refused", peer=waiting.peer_id, name=waiting.name)
    return {**invites(node), "decided": _newcomer(waiting)}


def _note(node: Parts, code: InviteCode) -> str:
    """What may keep newcomers from this node. They are no members yet, so no member relays for them."""
    if not code.addresses or all(address.is_loopback for address in code.addresses):
        return "this node listens on this machine alone, so only a node on it can use this invite (--p2p-listen)"
    if node.connectivity.reachability.dialable is False:
        others = [
            record.name or record.peer_id
            for record in node.ledger.online(node.clock.utc_now())
            if record.relays and record.peer_id != node.peer_id
        ]
        elsewhere = f"make the invite on {others[0]}, which others can dial" if others else "forward its p2p port"
        return (
            "machines outside this node's own network cannot dial it, and no relay serves them before they are members: "
            f"for those, {elsewhere}, or give them the token (federation invite)"
        )
    return ""


def _row(node: Parts, invite: Invite) -> schemas.OneInvite:
    return {
        "id": shown(invite.id),
        "state": invite.state(node.newcomers.now_ms),
        "made_at": _time(invite.made_ms),
        "expires_at": _time(invite.expires_ms),
        "uses": invite.uses,
        "used": [
            {"peer_id": peer_id, "name": use.name, "at": _time(use.at_ms), "confirmed": use.confirmed}
            for peer_id, use in invite.used.items()
        ],
        "approve": invite.approve,
    }


def _newcomer(waiting: Waiting) -> schemas.Newcomer:
    return {
        "peer_id": waiting.peer_id,
        "name": waiting.name,
        "address": waiting.address,
        "invite": shown(waiting.invite.id),
        "waits_s": round(trio.current_time() - waiting.at, 1),
    }


def _time(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, timezone.utc).isoformat(timespec="seconds")
