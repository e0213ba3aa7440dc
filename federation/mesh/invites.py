"""The invites that this node made: who came by them, and who still may. Rule: no I/O and no clock; a caller passes `now_ms`
(since 1970), and saves what `as_saved` gives.

A use belongs to the peer id that took it, from the moment before the token is sent to it: nobody else gets that use, and the
same machine may come again for COME_AGAIN_MS until it has confirmed that it keeps the token. So the token is never handed
over twice, and a newcomer whose line broke loses nothing. One that never confirms does not get later rotations' tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from federation.errors import NotDone, NotFound, UsageError
from federation.mesh.invite_codes import ID_BYTES, KEY_BYTES, SHORT, shown
from federation.units import is_peer_id, pasted, visible

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_OPEN = 64
MAX_ENDED = 256  # beyond that the one that was made first is forgotten
REMEMBERED_MS = 30 * 86_400_000  # after its end: a late newcomer hears why
COME_AGAIN_MS = 600_000
MAX_USES = 256
MAX_REFUSED = 32  # newcomers of one invite that a person refused
MAX_NAME_CHARS = 64
ALL = "all"

State = Literal["open", "used", "expired", "revoked"]
# What a newcomer hears instead of the token. The words are part of the protocol; a newer node may have more.
Refusal = Literal["used", "used here", "expired", "revoked", "refused", "banned", "left out", "copy", "busy", "disk"]


@dataclass(slots=True)
class Use:
    name: str
    at_ms: int
    confirmed: bool = False  # it keeps the token

    def is_over(self, now_ms: int) -> bool:
        return self.confirmed or now_ms - self.at_ms >= COME_AGAIN_MS


@dataclass(slots=True)
class Invite:
    id: bytes
    key: bytes = field(repr=False)
    made_ms: int
    expires_ms: int
    uses: int = 1
    approve: bool = False  # each newcomer waits for a person's yes
    used: dict[str, Use] = field(default_factory=dict)  # by peer id
    approved: list[str] = field(default_factory=list)  # peer ids
    refused: list[str] = field(default_factory=list)
    revoked_ms: int = 0

    def state(self, now_ms: int) -> State:
        if self.revoked_ms:
            return "revoked"
        if len(self.used) >= self.uses and all(use.is_over(now_ms) for use in self.used.values()):
            return "used"
        return "expired" if now_ms >= self.expires_ms else "open"

    def ended_ms(self, now_ms: int) -> int:
        """When it ended; 0 while it is open."""
        state = self.state(now_ms)
        if state == "used":
            return max(use.at_ms for use in self.used.values())
        return {"open": 0, "revoked": self.revoked_ms, "expired": self.expires_ms}[state]

    def problem(self, peer_id: str, now_ms: int) -> Refusal | None:
        """Why this newcomer does not get the token by it; None if it may."""
        use = self.used.get(peer_id)
        if use is not None and use.is_over(now_ms):
            return "used here"
        if self.revoked_ms:
            return "revoked"
        if peer_id in self.refused:
            return "refused"
        if use is None and len(self.used) >= self.uses:
            return "used"
        return "expired" if now_ms >= self.expires_ms else None

    def needs_yes(self, peer_id: str) -> bool:
        return self.approve and peer_id not in self.approved and peer_id not in self.used


class Invites:
    def __init__(self) -> None:
        self._of: dict[bytes, Invite] = {}  # in the order in which they were made

    def __iter__(self) -> Any:
        return iter(list(self._of.values()))

    def get(self, invite_id: bytes) -> Invite | None:
        return self._of.get(invite_id)

    def add(self, invite: Invite, now_ms: int) -> None:
        """Raises NotDone if too many are open."""
        self._forget(now_ms)
        if sum(other.state(now_ms) == "open" for other in self) >= MAX_OPEN:
            raise NotDone(f"{MAX_OPEN} invites are open here already; revoke some: federation invite --list")
        self._of[invite.id] = invite

    def drop(self, invite: Invite) -> None:
        self._of.pop(invite.id, None)

    def find(self, text: str, now_ms: int) -> list[Invite]:
        """The open invites that a person means: by the beginning of an id, or all. Raises NotFound or UsageError."""
        text = pasted(text).lower()
        open_ = [invite for invite in self if invite.state(now_ms) == "open"]
        if text == ALL:
            return open_
        found = [invite for invite in self if len(text) >= 4 and invite.id.hex().startswith(text)]
        if not found:
            raise NotFound(f"no invite {visible(text[:40])!r} was made here; `federation invite --list` shows the ids")
        if len(found) > 1:
            raise UsageError(f"{len(found)} invites begin with {text!r}; give all {SHORT} digits")
        if found[0] not in open_:
            raise NotDone(f"the invite {shown(found[0].id)} is over already: {found[0].state(now_ms)}")
        return found

    def take(self, invite: Invite, peer_id: str, name: str, now_ms: int) -> bool:
        """Note that this peer takes a use, if it has not done so already. Returns whether it is a new one."""
        if peer_id in invite.used:
            return False
        invite.used[peer_id] = Use(name, now_ms)
        return True

    def unconfirmed(self, peer_id: str) -> list[Invite]:
        return [invite for invite in self if peer_id in invite.used and not invite.used[peer_id].confirmed]

    def _forget(self, now_ms: int) -> None:
        ended = sorted((end, invite.id) for invite in self if (end := invite.ended_ms(now_ms)))
        kept = ended[-MAX_ENDED:]
        for end, invite_id in ended:
            if (end, invite_id) not in kept or now_ms - end > REMEMBERED_MS:
                del self._of[invite_id]

    # As kept in the state directory

    def as_saved(self) -> list[dict[str, Any]]:
        return [
            {
                "id": invite.id.hex(), "key": invite.key.hex(), "made": invite.made_ms, "expires": invite.expires_ms,
                "uses": invite.uses, "approve": invite.approve, "revoked": invite.revoked_ms,
                "approved": list(invite.approved), "refused": list(invite.refused),
                "used": {peer: [use.name, use.at_ms, use.confirmed] for peer, use in invite.used.items()},
            }
            for invite in self
        ]  # fmt: skip

    @classmethod
    def from_saved(cls, rows: object) -> Invites:
        """Raises ValueError where it was not made by `as_saved`."""
        invites = cls()
        try:
            for row in rows:  # type: ignore[attr-defined]
                invite = _read(row)
                invites._of[invite.id] = invite
        except (LookupError, TypeError, AttributeError):
            raise ValueError("not invites") from None
        return invites


def _read(row: Mapping[str, Any]) -> Invite:
    invite = Invite(
        bytes.fromhex(row["id"]), bytes.fromhex(row["key"]), int(row["made"]), int(row["expires"]), int(row["uses"]),
        bool(row["approve"]), {str(peer): Use(str(name), int(at), bool(ok)) for peer, (name, at, ok) in row["used"].items()},
        [str(peer) for peer in row["approved"]], [str(peer) for peer in row["refused"]], int(row["revoked"]),
    )  # fmt: skip
    if len(invite.id) != ID_BYTES or len(invite.key) != KEY_BYTES or not all(map(is_peer_id, invite.used)):
        raise ValueError("not an invite")
    return invite
