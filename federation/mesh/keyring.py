"""The tokens that admit now: this node's own, and for a while those from before a rotation. Rule: no I/O and no clock; a
caller passes `now` (aware, UTC), and every change comes back as a value.

A rotation is an order of the network's owner (owner.py). The keyring keeps the order with its token, so that this node can
hand both on, over restarts too: to the order's members, and to no other peer.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

from federation.errors import ProtocolViolation
from federation.mesh.owner import MAX_GRACE, SignedOrder, hash_of

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from federation.mesh.tokens import Token

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
MAX_FORMER = 8  # the last ones; a node that missed more rotations than these is refused like an outsider


@dataclass(frozen=True, slots=True)
class Former:
    """A key that admits until `until`. From then on a peer that shows it hears that the key is retired."""

    key: bytes = field(repr=False)
    until: datetime


@dataclass(frozen=True, slots=True)
class Keyring:
    """This node's token, and the former keys that still admit or are known as retired."""

    token: Token
    former: tuple[Former, ...] = ()  # the last one first
    order: SignedOrder | None = None  # by which `token` came; None where a person gave it
    # The order's members that may be told even if they hold a token from before the former one; None: all of them. The owner
    # may order a rotation at a node that does not know of peers that the rotation before left out.
    older: frozenset[str] | None = None

    @property
    def members(self) -> frozenset[str]:
        """Peer ids that may receive `token`."""
        return self.order.order.members if self.order is not None else frozenset()

    @property
    def insiders(self) -> frozenset[str]:
        """The members that may be told whatever token they hold."""
        return self.members if self.older is None else self.members & self.older

    def may_be_told(self, peer_id: str, key: bytes) -> bool:
        """Whether `peer_id`, which was admitted by `key`, may be told `token`."""
        return peer_id in self.insiders or (peer_id in self.members and bool(self.former) and key == self.former[0].key)

    def valid_keys(self, now: datetime) -> list[bytes]:
        """Admission keys, the newest first."""
        return [self.token.admission_key(), *(former.key for former in self.former if now < former.until)]

    def retired_keys(self, now: datetime) -> list[bytes]:
        return [former.key for former in self.former if now >= former.until]

    def grace_end(self, now: datetime) -> datetime | None:
        """The time when the last of the former keys stops admitting; None if all of them have stopped."""
        return max((former.until for former in self.former if now < former.until), default=None)

    def next_end(self, now: datetime) -> datetime | None:
        return min((former.until for former in self.former if now < former.until), default=None)

    def take(self, token: Token, order: SignedOrder, *, now: datetime, holders: Collection[str] = ()) -> Keyring:
        """A keyring with `token` as its token. The present token admits for the order's grace, and no earlier token longer.

        `holders`: peers that have the present token. A peer that the present order left out is not told the next one either.

        The grace runs from the time of signing; if that lies ahead of our clock, from now.
        """
        grace = timedelta(milliseconds=order.order.grace_ms)
        age = now - _EPOCH - timedelta(milliseconds=order.order.issued_ms)
        until = now + min(grace, max(grace - age, timedelta(0)), MAX_GRACE)
        earlier = [replace(former, until=min(former.until, until)) for former in self.former]
        former = (Former(self.token.admission_key(), until), *earlier)[:MAX_FORMER]
        return Keyring(token, former, order, None if self.order is None else self.insiders.union(holders))

    # As kept in the state directory

    def as_saved(self) -> dict[str, Any]:
        return {
            "of": _fingerprint(self.token),
            "former": [{"key": former.key.hex(), "until": former.until.isoformat()} for former in self.former],
            "order": None
            if self.order is None
            else {"order": self.order.order.encode().hex(), "signature": self.order.signature.hex()},
            "older": None if self.older is None else sorted(self.older),
        }

    @classmethod
    def from_saved(cls, token: Token, saved: Mapping[str, Any]) -> Keyring:
        """The saved keyring of `token`. A damaged one, or one that was saved beside another token, counts as absent."""
        if saved.get("of") != _fingerprint(token):
            return cls(token)
        try:
            former = tuple(Former(bytes.fromhex(row["key"]), _utc(row["until"])) for row in saved.get("former", ()))
            older = None if saved.get("older") is None else frozenset(map(str, saved["older"]))
        except (LookupError, TypeError, ValueError, AttributeError):
            return cls(token)
        return cls(token, former[:MAX_FORMER], _order_of(token, saved.get("order")), older)


def _order_of(token: Token, saved: Any) -> SignedOrder | None:
    """The saved order; None if the owner did not sign it, or if the order is about another secret."""
    with suppress(LookupError, TypeError, ValueError, ProtocolViolation):
        signed = SignedOrder.check(token.owner, bytes.fromhex(saved["order"]), bytes.fromhex(saved["signature"]))
        order = signed.order
        if (order.names, order.number, order.secret_hash) == (token.names, token.rotations, hash_of(token.secret)):
            return signed
    return None


def _utc(text: str) -> datetime:
    time = datetime.fromisoformat(text)
    if time.tzinfo is None:
        raise ValueError("a time without its zone")
    return time


def _fingerprint(token: Token) -> str:
    """Identifies a token, and admits no node."""
    return hashlib.sha256(b"federation keyring" + token.admission_key()).hexdigest()[:16]
