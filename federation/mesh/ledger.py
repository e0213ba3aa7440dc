"""The ledger: this node's copy of every node's newest record.

Rule 1: no I/O and no clock; callers pass `now`. Rule 2: every change comes back as a value. Rule 3: while there is
room, the outcome does not depend on the order, grouping or repetition of merges, so that all ledgers that heard the
same records agree without asking each other.

The newest (incarnation, seq) wins whole. Of two different records with one version (a copied identity, or a
lying node) the larger in bytes wins everywhere. Time is the receiver's: `last_seen` is `now` less the `age` that the record
had on arrival, and the ledger never uses the sender's clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from federation.mesh.records import NodeData, encode

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

# A rebooting or sleeping machine keeps its row; one that went away does not. Tombstones stay as long as any copy of an
# older record may live, or a leaver would come back.
FORGET_AFTER = timedelta(hours=1)
MAX_BYTES = 16 * 1024 * 1024  # of rows: 4 kB each where all are taken; one with eight GPUs has 5 kB
GPU_BYTES = 512  # an object in memory
MAX_ROWS = 4096  # an order of magnitude above the largest network we are made for; a few MB

FULL_FOR = timedelta(seconds=1)

NO_AGE = timedelta(0)


@dataclass(frozen=True, slots=True)
class Row:
    """A record, and the bytes that its node signed. Anti-entropy passes these bytes on; the ledger does not read them."""

    record: NodeData
    signed: bytes

    @property
    def size(self) -> int:
        """Bytes that it takes here, about: 40 of a record can say one GPU."""
        return len(self.signed) + GPU_BYTES * len(self.record.gpus)

    @property
    def version(self) -> tuple[int, int]:
        return self.record.incarnation, self.record.seq


@dataclass(frozen=True, slots=True)
class Change:
    """A change of one peer's row. `before` is None for a new row, `after` is None for a forgotten one."""

    peer_id: str
    before: NodeData | None
    after: NodeData | None
    evicted: NodeData | None = None  # the row of another peer that made room for this one


class Ledger:
    """A last-writer-wins map of records, bounded in size. If `is_linked(peer_id)`, that peer is known to be real."""

    def __init__(
        self,
        max_rows: int = MAX_ROWS,
        *,
        max_bytes: int = MAX_BYTES,
        is_linked: Callable[[str], bool] = lambda _peer: False,
    ) -> None:
        self._rows: dict[str, Row] = {}
        self._max_rows = max_rows
        self._max_bytes = max_bytes
        self._bytes = 0
        self._is_linked = is_linked
        self._full_until: datetime | None = None  # no row gives way before that

    def merge(self, record: NodeData, *, signed: bytes = b"", now: datetime, age: timedelta = NO_AGE) -> Change | None:
        """Take in a record that was `age` old when it arrived. Returns None if no caller has to act on it.

        A known version moves only `last_seen`, which is a change if it brings the peer back online.
        """
        age = max(age, NO_AGE)  # a remote claims it: no node was seen in the future
        if age >= FORGET_AFTER:
            return None
        incoming = Row(record.model_copy(update={"last_seen": now - age}), signed)
        known = self._rows.get(record.peer_id)
        if known is None:
            return self._admit(incoming, now)
        winner = _join(known, incoming)
        growth = winner.size - known.size
        if growth > 0 and self._bytes + growth > self._max_bytes and not self._is_linked(record.peer_id):
            return None
        self._rows[record.peer_id] = winner
        self._bytes += growth
        before, after = known.record, winner.record
        same = after == before.model_copy(update={"last_seen": after.last_seen})
        if same and after.is_online_at(now) == before.is_online_at(now):
            return None
        return Change(record.peer_id, before, after)

    def expire(self, now: datetime) -> list[Change]:
        """Forget peers that were silent, or gone, for FORGET_AFTER."""
        records = [record for record in self.records() if now - record.last_seen >= FORGET_AFTER]
        for record in records:
            self._bytes -= self._rows.pop(record.peer_id).size
        return [Change(record.peer_id, record, None) for record in records]

    def digest(self) -> dict[str, tuple[int, int]]:
        """Peer id -> the version of its record here."""
        return {peer_id: row.version for peer_id, row in self._rows.items()}

    def missing(self, digest: Mapping[str, tuple[int, int]]) -> list[Row]:
        """The rows that the sender of `digest` lacks or has in an older version."""
        return [row for peer_id, row in self._rows.items() if peer_id not in digest or digest[peer_id] < row.version]

    def get(self, peer_id: str) -> Row | None:
        return self._rows.get(peer_id)

    def records(self) -> list[NodeData]:
        return [row.record for row in self._rows.values()]

    def online(self, now: datetime) -> list[NodeData]:
        return [record for record in self.records() if record.is_online_at(now)]

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, peer_id: object) -> bool:
        return peer_id in self._rows

    def _admit(self, newcomer: Row, now: datetime) -> Change | None:
        """Add a peer. A full ledger adds it only in place of an offline peer that was seen earlier.

        Online peers keep their rows, or a flood of made-up peers could push out real ones. A linked peer is real: all others
        give way to it, and it gives way to none.
        """
        peer_id, evicted = newcomer.record.peer_id, None
        if self._is_full_with(newcomer):
            evicted = self._find_place(newcomer.record, now)
            if evicted is None:
                return None
            size_after = self._bytes + newcomer.size - self._rows[evicted.peer_id].size
            if size_after > self._max_bytes and not self._is_linked(peer_id):
                return None
            self._bytes -= self._rows.pop(evicted.peer_id).size
        self._rows[peer_id] = newcomer
        self._bytes += newcomer.size
        return Change(peer_id, None, newcomer.record, evicted)

    def _is_full_with(self, newcomer: Row) -> bool:
        return len(self._rows) >= self._max_rows or self._bytes + newcomer.size > self._max_bytes

    def _find_place(self, newcomer: NodeData, now: datetime) -> NodeData | None:
        """Choose a row to evict. If none qualifies, cache that answer for FULL_FOR, because a flood asks repeatedly."""
        is_linked = self._is_linked(newcomer.peer_id)
        if not self._rows or (not is_linked and self._full_until is not None and now < self._full_until):
            return None

        def rank(record: NodeData) -> tuple[bool, bool, datetime]:
            return self._is_linked(record.peer_id), record.is_online_at(now), record.last_seen

        worst = min(self.records(), key=rank)
        linked, online, _ = rank(worst)
        if linked or (online and not is_linked):
            self._full_until = now + FULL_FOR
            return None
        return worst if rank(worst) < rank(newcomer) else None


def _join(a: Row, b: Row) -> Row:
    """The least row that is no older than either: the order of the arguments does not matter."""
    if a.version != b.version:
        return max(a, b, key=lambda row: row.version)
    winner = max(a, b, key=lambda row: (encode(row.record), row.signed))
    last_seen = max(a.record.last_seen, b.record.last_seen)
    return Row(winner.record.model_copy(update={"last_seen": last_seen}), winner.signed)
