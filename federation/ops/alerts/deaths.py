"""Which machines died, and which returned: once for each, and seldom for a machine that comes and goes.

A death is told when a machine gave no sign of life for `wait_s`, or its server did not answer for so long. Each death of the
last hour that was told doubles that time for the next word about that machine, up to MAX_DOUBLINGS times. A return is told
when the machine was well for so long; and only of a machine whose death was told. A good-bye is no death.

Rule: no I/O and no clock; callers pass `now`.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

FLAPS_WITHIN_S = 3600.0
MAX_DOUBLINGS = 5
MAX_ROWS = 4096  # as a ledger

Trouble = Literal["", "silent", "no server"]


class Sight(NamedTuple):
    """A machine as this node sees it. `since`: when its trouble began. `is_linked`: it is known to be real."""

    name: str
    trouble: Trouble
    since: float
    wait_s: float
    is_linked: bool = True


class News(NamedTuple):
    """To be told. `at`: when the machine's trouble began, or it came back."""

    kind: Literal["died", "returned"]
    peer_id: str
    name: str
    trouble: Trouble
    at: float


@dataclass(slots=True)
class _Row:
    name: str
    trouble: Trouble = ""
    well_since: float | None = None
    is_told: bool = False  # its death was
    deaths: deque[float] = field(default_factory=deque)  # when they were told

    def patience(self, now: float, wait_s: float) -> float:
        while self.deaths and self.deaths[0] <= now - FLAPS_WITHIN_S:
            self.deaths.popleft()
        return wait_s * float(2 ** min(MAX_DOUBLINGS, max(0, len(self.deaths) - self.is_told)))


class Watch:
    """Machines by peer id. Only those that were linked and well once are watched: a member may invent others."""

    def __init__(self) -> None:
        self._rows: dict[str, _Row] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def meet(self, peer_id: str, sight: Sight) -> None:
        """Watch this machine from now on, if it is linked and well. It may be dead before the next look."""
        if peer_id not in self._rows and not sight.trouble and sight.is_linked and len(self._rows) < MAX_ROWS:
            self._rows[peer_id] = _Row(sight.name)

    def look(self, now: float, seen: Mapping[str, Sight], gone: frozenset[str]) -> list[News]:
        """`seen`: all machines that are known; `gone`: those that said good-bye or are banned."""
        news: list[News] = []
        for peer_id in [peer for peer, row in self._rows.items() if peer in gone or (peer not in seen and not row.is_told)]:
            del self._rows[peer_id]
        for peer_id, sight in seen.items():
            if peer_id not in gone:
                self.meet(peer_id, sight)
            row = self._rows.get(peer_id)
            if row is None:
                continue
            told = self._died(row, now, sight) if sight.trouble else self._is_back(row, now, sight)
            row.name = sight.name or row.name
            if told:
                at = sight.since if sight.trouble else (row.well_since or now)
                news.append(News("died" if sight.trouble else "returned", peer_id, row.name, row.trouble, at))
        return news

    def _died(self, row: _Row, now: float, sight: Sight) -> bool:
        row.well_since = None
        if not row.is_told:
            row.trouble = sight.trouble
        if row.is_told or now - sight.since < row.patience(now, sight.wait_s):
            return False
        row.is_told = True
        row.deaths.append(now)
        return True

    def _is_back(self, row: _Row, now: float, sight: Sight) -> bool:
        if row.well_since is None:
            row.well_since = now
        if not row.is_told or now - row.well_since < row.patience(now, sight.wait_s):
            return False
        row.is_told = False
        return True
