"""Members that this node has no way to, though they are alive: their announcements come by way of others. A member that has
links with both sides can relay, so the node takes a place at one (net/nat/reachability.py). No I/O and no clock.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

AFTER_S = 10.0  # without a link; each address has been dialled by then
ANNOUNCEMENTS = 2  # meanwhile: the last words of a machine that died may come late

Version = tuple[int, int]  # a record's incarnation and its number in it


class Gaps:
    def __init__(self) -> None:
        self._missing: dict[str, tuple[float, Version]] = {}  # peer id: since when, and its record's version then

    def look(self, now: float, missing: Mapping[str, Version]) -> bool:
        """`missing`: the members that are online and without a link here. Returns whether one of them is so for long."""
        self._missing = {peer: self._missing.get(peer, (now, version)) for peer, version in missing.items()}
        return any(now - since >= AFTER_S and _later(first, missing[peer]) for peer, (since, first) in self._missing.items())

    def forget(self) -> None:
        """This machine's addresses changed."""
        self._missing.clear()


def _later(first: Version, now: Version) -> bool:
    return now[0] > first[0] or now[1] >= first[1] + ANNOUNCEMENTS
