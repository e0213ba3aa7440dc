"""The links of this node, and the rule for two with one peer: one stays. This decides; the host closes and tells.

Two nodes that dial each other at once have two links. Both sides keep the one that the lower peer id dialled, and retire
the other: it takes no new tunnels, and ends with those that it carries (N). A direct link goes before a relayed one. If
the link to keep has been silent for STALE_S, the new one wins: the old one leads to a machine that is gone. So it does if
what this node sends on the old one does not arrive.

If a peer dials us while we still have an old link to it, it has lost that link: close the old link and its tunnels at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

    from federation.net.link.link import Link

MAX_SPARES = 4  # duplicates of one peer: both dialled at once, and both once more when a hole was punched
STALE_S = 2.0
# No node dials a peer that it has a link to. A peer that dials us when our link to it is this old, longer than any dial
# takes, has lost that link: its machine moved or was cut off, and nobody hears what we send there.
LOST_S = 30.0


def has_lost(known: Link, new: Link) -> bool:
    """Whether the peer made `new` because it has lost `known`."""
    return not new.is_initiator and new.opened_at - known.opened_at > LOST_S


def goes_before(new: Link, known: Link, *, us: str, now: float) -> bool:
    """Whether `new` takes the place of `known`. `us`: this node's peer id."""
    if known.is_stuck or now - known.liveness.last_heard > STALE_S:
        return True
    if (new.path == "relayed") != (known.path == "relayed"):
        return known.path == "relayed"
    return new.is_initiator == known.is_initiator or new.is_initiator == (us < new.peer_id)


class Settled(NamedTuple):
    """`is_peers`: the new link is the peer's link now. `spare`: the one that is to be retired, if there were two."""

    is_peers: bool
    spare: Link | None


class LinkTable:
    """`current` has the one live link of each connected peer, by peer id; `retired` duplicates that still carry tunnels."""

    def __init__(self, us: str) -> None:
        self._us = us
        self.current: dict[str, Link] = {}
        self.retired: set[Link] = set()

    def __len__(self) -> int:
        return len(self.current) + len(self.retired)

    def __iter__(self) -> Iterator[Link]:
        yield from [*self.current.values(), *self.retired]

    def __contains__(self, link: Link) -> bool:
        return self.current.get(link.peer_id) is link or link in self.retired

    def lost_to(self, new: Link) -> Link | None:
        """The link to close before `settle`, since the peer has lost it: it dialled `new`."""
        known = self.current.get(new.peer_id)
        return known if known is not None and has_lost(known, new) else None

    def settle(self, new: Link, now: float) -> Settled:
        """Take `new` as the peer's link unless a better one is there."""
        known = self.current.get(new.peer_id)
        if known is not None and known.is_closed:
            known = None
        if known is not None and not goes_before(new, known, us=self._us, now=now):
            return Settled(is_peers=False, spare=new)
        self.current[new.peer_id] = new
        return Settled(is_peers=True, spare=known)

    def retire(self, spare: Link) -> Link | None:
        """Keep a duplicate while it carries tunnels. Returns the one of this peer to close, if there are too many."""
        others = [link for link in self.retired if link.peer_id == spare.peer_id]
        self.retired.add(spare)
        return min(others, key=lambda link: link.opened_at) if len(others) >= MAX_SPARES else None

    def ended(self, link: Link) -> tuple[bool, Link | None]:
        """Remove a closed link. Returns whether it was the peer's, and the duplicate that replaces it, if there is one."""
        self.retired.discard(link)
        if self.current.get(link.peer_id) is not link:
            return False, None
        del self.current[link.peer_id]
        spare = next((other for other in self.retired if other.peer_id == link.peer_id), None)
        if spare is not None:
            self.retired.remove(spare)
            spare.retired = False
            self.current[link.peer_id] = spare
        return True, spare
