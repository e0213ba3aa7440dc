"""Which tokens admit now: this node's own, and for a while those from before a rotation. Rule: no I/O and no clock; callers
pass `now` (aware, UTC), and every change comes back as a value.

A rotation tells the new token to those who were members before it, but for those it excepts: `members` says whom this
node may tell. Whoever shows up with the former token and is not among them may be an excepted one under another name.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from federation.tokens import Token

MAX_FORMER = 8  # the last ones; who has missed more rotations than these is refused like a stranger
MAX_MEMBERS = 8192  # twice a ledger
MAX_GRACE = timedelta(days=30)


@dataclass(frozen=True, slots=True)
class Former:
    """A key that admits until then, and from then on tells its holder that it is retired."""

    key: bytes = field(repr=False)
    until: datetime


@dataclass(frozen=True, slots=True)
class Keyring:
    token: Token
    former: tuple[Former, ...] = ()  # the last one first
    members: frozenset[str] = frozenset()  # who may be told `token`, as of its rotation

    def valid_keys(self, now: datetime) -> list[bytes]:
        """Admission keys, the newest first."""
        return [self.token.admission_key(), *(former.key for former in self.former if now < former.until)]

    def retired_keys(self, now: datetime) -> list[bytes]:
        return [former.key for former in self.former if now >= former.until]

    def grace_end(self, now: datetime) -> datetime | None:
        """When the last of the former keys stops to admit; None when none does any more."""
        return max((former.until for former in self.former if now < former.until), default=None)

    def next_end(self, now: datetime) -> datetime | None:
        return min((former.until for former in self.former if now < former.until), default=None)

    def take(self, token: Token, *, grace: timedelta, members: Iterable[str], now: datetime) -> Keyring:
        """With `token`, which supersedes the present one. That one admits for `grace`, and no earlier one any longer."""
        until = now + min(max(grace, timedelta(0)), MAX_GRACE)
        earlier = [replace(former, until=min(former.until, until)) for former in self.former]
        former = (Former(self.token.admission_key(), until), *earlier)[:MAX_FORMER]
        return Keyring(token, former, frozenset(members))

    # As kept in the state directory

    def as_saved(self) -> dict[str, Any]:
        return {
            "of": _fingerprint(self.token),
            "former": [{"key": former.key.hex(), "until": former.until.isoformat()} for former in self.former],
            "members": sorted(self.members),
        }

    @classmethod
    def from_saved(cls, token: Token, saved: Mapping[str, Any]) -> Keyring:
        """For `token`. What is damaged, or was saved beside another token (a person gave this one), counts as absent."""
        try:
            former = tuple(Former(bytes.fromhex(row["key"]), _utc(row["until"])) for row in saved.get("former", ()))[
                :MAX_FORMER
            ]
            members = frozenset(map(str, saved.get("members", ())))
        except (LookupError, TypeError, ValueError, AttributeError):
            return cls(token)
        if saved.get("of") != _fingerprint(token):
            return cls(token)
        return cls(token, former, members)


def _utc(text: str) -> datetime:
    time = datetime.fromisoformat(text)
    if time.tzinfo is None:
        raise ValueError("a time without its zone")
    return time


def _fingerprint(token: Token) -> str:
    """Tells which token; admits nobody."""
    return hashlib.sha256(b"federation keyring" + token.admission_key()).hexdigest()[:16]
