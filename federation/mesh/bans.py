"""Peers that this node keeps away. The state directory keeps them by id; a ban holds for this node alone, over restarts too.

Standard library only: the command line uses it too, while no daemon runs.
"""

from __future__ import annotations

from datetime import datetime, timezone
from typing import TYPE_CHECKING, NamedTuple

from federation.errors import NotFound, UsageError
from federation.units import is_peer_id, pasted

if TYPE_CHECKING:
    from collections.abc import Mapping

    from federation.state import StateDir

MIN_ID_END = 6  # as many characters of an id as `federation peers` shows
MAX_BANS = 4096  # as many peers as a ledger holds


class Ban(NamedTuple):
    peer_id: str
    name: str  # the peer's name when it was banned; may be empty
    since: str  # ISO 8601, UTC


class Bans:
    """`peer_id in bans`. Changes are on disk before they count. Raises StateDirUnusable where the list cannot be read."""

    def __init__(self, state: StateDir) -> None:
        self._state = state
        self._rows = state.load_bans()

    def __contains__(self, peer_id: object) -> bool:
        return peer_id in self._rows

    @property
    def names(self) -> dict[str, str]:
        """Peer id -> the peer's name at the time of the ban."""
        return {peer_id: row["name"] for peer_id, row in self._rows.items()}

    def rows(self) -> list[Ban]:
        """The bans, in the order in which they were made."""
        return [Ban(peer_id, row["name"], row["since"]) for peer_id, row in self._rows.items()]

    def ban(self, peer_id: str, name: str) -> None:
        if peer_id not in self._rows:
            if len(self._rows) >= MAX_BANS:
                raise UsageError(f"{MAX_BANS} peers are banned already; rotate the token instead: federation token rotate")
            since = datetime.now(timezone.utc).isoformat(timespec="seconds")
            self._set({**self._rows, peer_id: {"name": name, "since": since}})

    def unban(self, peer_id: str) -> None:
        self._set({other: row for other, row in self._rows.items() if other != peer_id})

    def _set(self, rows: dict[str, dict[str, str]]) -> None:
        self._state.save_bans(rows)
        self._rows = rows


def find_peer(text: str, names: Mapping[str, str], *, among: str) -> str:
    """The peer id that a person means: an id, the end of one, or a name, of those in `names` (id -> name).

    A whole id passes even if `names` lacks it. A node chooses its own name, so a name that is also the end of another peer's
    id is ambiguous. Raises NotFound, which names the searched peers (`among`), and UsageError where several peers fit.
    """
    text = pasted(text)
    if text in names or is_peer_id(text):
        return text
    is_end = len(text) >= MIN_ID_END
    found = [peer_id for peer_id, name in names.items() if name == text or (is_end and peer_id.endswith(text))]
    if not found and len(text) > MIN_ID_END and any(peer_id.startswith(text) for peer_id in names):
        raise NotFound(f"{text!r} is the beginning of an id; give the whole id, its end, or the name")
    if not found:
        raise NotFound(f"no peer {text!r} among {among}; give its name or id")
    if len(found) > 1:
        rows = ", ".join(f"{peer_id} (named {names[peer_id]!r})" for peer_id in found[:5])
        raise UsageError(f"{len(found)} peers are called {text!r} or have an id that ends so; give the id of one: {rows}")
    return found[0]
