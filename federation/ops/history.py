"""The last 24 hours as this node saw them, for the dashboard. In memory alone: it begins with the daemon.

Numbers are kept by slots of STEP_S, as plain arrays of 4 bytes a number: 8.6 kB a machine, so 2.2 MB where all MACHINES are
taken, and 17 kB for the node's own traffic.

Rule: no clock; callers pass `at`, seconds of a clock that goes on while the machine sleeps.
"""

from __future__ import annotations

import math
from array import array
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

STEP_S = 120
SLOTS = 24 * 3600 // STEP_S
SAMPLE_EVERY_S = 10.0
MACHINES = 256  # only those with which this node had a link: a member may invent others
MIB = 1024**2
UNKNOWN = math.nan


class Sample(NamedTuple):
    """A machine at one moment. `is_well`: it was there, and its server answered if it offers one."""

    peer_id: str
    name: str
    load: int
    is_well: bool
    available_vram: int


class Ring:
    """The numbers of the last SLOTS slots; NaN where nothing is known. Each is the mean of its samples, or their sum."""

    __slots__ = ("_counts", "_newest", "_values")

    def __init__(self) -> None:
        self._values = array("f", [UNKNOWN]) * SLOTS
        self._newest = -1  # the slot that is being filled
        self._counts = 0  # samples in it

    def mean(self, slot: int, value: float) -> None:
        before = self._enter(slot)
        self._counts += 1
        self._values[slot % SLOTS] = before + (value - before) / self._counts

    def add(self, slot: int, value: float) -> None:
        self._values[slot % SLOTS] = self._enter(slot) + value

    def _enter(self, slot: int) -> float:
        """The number of the slot so far. Slots that were passed over are unknown."""
        if slot > self._newest:
            for passed in range(max(self._newest + 1, slot - SLOTS + 1), slot):
                self._values[passed % SLOTS] = UNKNOWN
            self._newest, self._counts = slot, 0
            return 0.0
        return self._values[slot % SLOTS]

    def read(self, first: int, last: int) -> list[float | None]:
        """The slots from `first` to `last`, both among the last SLOTS ones."""
        found: list[float | None] = []
        for slot in range(first, last + 1):
            value = self._values[slot % SLOTS] if self._newest - SLOTS < slot <= self._newest else UNKNOWN
            found.append(None if math.isnan(value) else value)
        return found

    @property
    def bytes(self) -> int:
        return len(self._values) * self._values.itemsize


class Machine:
    """One machine's slots: connections that its backends served, the part of the time in which it was well, free MiB."""

    __slots__ = ("free_mib", "load", "name", "seen", "well")

    def __init__(self) -> None:
        self.name = ""
        self.seen = 0  # the newest slot
        self.load, self.well, self.free_mib = Ring(), Ring(), Ring()

    def add(self, slot: int, sample: Sample) -> None:
        self.name, self.seen = sample.name, slot
        self.load.mean(slot, sample.load)
        self.well.mean(slot, float(sample.is_well))
        self.free_mib.mean(slot, sample.available_vram // MIB)


class History:
    """`totals`: names of the counters whose growth is kept, as `sample` gets them."""

    def __init__(self, totals: Sequence[str]) -> None:
        self.open = Ring()  # clients of this node's own ports
        self.growth = {name: Ring() for name in totals}
        self.machines: dict[str, Machine] = {}
        self._before: Sequence[float] | None = None
        self.first = self.last = -1  # slots

    def sample(self, at: float, totals: Sequence[float], open_now: int, machines: Iterable[Sample]) -> None:
        """Take a sample, about every SAMPLE_EVERY_S."""
        slot = max(int(at // STEP_S), self.last)
        if self.last < 0:
            self.first = slot
        self.last = slot
        self.first = max(self.first, slot - SLOTS + 1)
        self.open.mean(slot, open_now)
        before = totals if self._before is None else self._before
        for ring, total, old in zip(self.growth.values(), totals, before, strict=True):
            ring.add(slot, max(0, total - old))
        self._before = totals
        for sample in machines:
            machine = self.machines.get(sample.peer_id) or self._newcomer(sample.peer_id, slot)
            if machine is not None:
                machine.add(slot, sample)
        for peer_id in [peer_id for peer_id, machine in self.machines.items() if machine.seen <= slot - SLOTS]:
            del self.machines[peer_id]

    def _newcomer(self, peer_id: str, slot: int) -> Machine | None:
        """A new machine takes the place of the one that was away for longest, if there is no other place."""
        if len(self.machines) >= MACHINES:
            oldest = min(self.machines, key=lambda other: self.machines[other].seen)
            if self.machines[oldest].seen >= slot - 1:
                return None
            del self.machines[oldest]
        self.machines[peer_id] = Machine()
        return self.machines[peer_id]

    def busiest(self, most: int) -> list[str]:
        """The machines with the highest load over all slots, by peer id; the busiest first."""
        sums = {
            peer_id: sum(value or 0.0 for value in machine.load.read(self.first, self.last))
            for peer_id, machine in self.machines.items()
        }
        return sorted(sums, key=lambda peer_id: (-sums[peer_id], peer_id))[:most]

    @property
    def bytes(self) -> int:
        """What the numbers take."""
        rings = [self.open, *self.growth.values()]
        rings += [ring for m in self.machines.values() for ring in (m.load, m.well, m.free_mib)]
        return sum(ring.bytes for ring in rings)
