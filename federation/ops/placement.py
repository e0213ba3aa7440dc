"""Where to run a model, or anything that takes VRAM: the nodes in order of preference. No I/O and no clock.

A node fits that takes connections and has the VRAM free. Of these, the first difference wins:

1. it has the model in memory, before it has the model on disk, before the others;
2. least in flight;
3. least recently used by this entry, a node that was never used first: without this tier the fattest GPU wins every tie;
4. its peer id, so that the order is always the same.

VRAM only says who fits: the node with most of it is not the better one. A node that tells no VRAM fits where none is asked
for. A node that has the model in memory needs no more VRAM for it.
"""

from __future__ import annotations

from itertools import zip_longest
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

    from federation.ops.schemas import State

WARM, COLD, NO, UNKNOWN = "warm", "cold", "no", "unknown"
_MODEL_ORDER = {WARM: 0, COLD: 1, NO: 2, UNKNOWN: 2}


class Place(NamedTuple):
    """A node, as a placement sees it. VRAM in bytes; `idle_s`: since this entry used it, None if it did not."""

    peer_id: str
    state: State
    available_vram: int
    total_vram: int
    in_flight: int = 0
    capacity: int = 0
    idle_s: float | None = None
    model: str = UNKNOWN


class Ranked(NamedTuple):
    place: Place
    fits: bool
    why: str


def rank(places: Iterable[Place], needed_vram: int) -> list[Ranked]:
    """All of them: those that fit first, in order, each with the difference that put it before the next one."""
    refusals = {place: _refusal(place, needed_vram) for place in places}
    fit = sorted((place for place, why in refusals.items() if not why), key=_key)
    rest = sorted(
        (place for place, why in refusals.items() if why), key=lambda place: (-place.available_vram, place.peer_id)
    )
    ranked = [Ranked(place, True, _reason(place, after)) for place, after in zip_longest(fit, fit[1:])]
    return ranked + [Ranked(place, False, refusals[place]) for place in rest]


def _key(place: Place) -> tuple[int, int, float, str]:
    used = float("-inf") if place.idle_s is None else -place.idle_s
    return _MODEL_ORDER[place.model], place.in_flight, used, place.peer_id


def _refusal(place: Place, needed_vram: int) -> str:
    """Why it does not fit; empty if it does."""
    if place.state != "online":
        return f"it is {place.state}" if place.state != "no backend" else "it has no backend"
    if 0 < place.capacity <= place.in_flight:
        return f"it is at its capacity of {place.capacity}"
    if not needed_vram or place.model == WARM or place.available_vram >= needed_vram:
        return ""
    return "too little VRAM is free" if place.total_vram else "it tells no VRAM"


def _reason(place: Place, after: Place | None) -> str:
    has = {WARM: "has the model in memory", COLD: "has the model on disk"}.get(place.model, "has room")
    if after is None:
        return has
    ours, theirs = _key(place), _key(after)
    if ours[0] != theirs[0]:
        return has
    if ours[1] != theirs[1]:
        return f"{has}, less in flight than the next"
    if ours[2] != theirs[2]:
        return f"{has}, " + ("not used yet" if place.idle_s is None else "used longer ago than the next")
    return f"{has}, like the next"
