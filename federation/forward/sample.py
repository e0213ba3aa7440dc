"""Which of many candidates an entry looks at: a window that slides over all of them, in an order of the entry's own.

With up to SAMPLE others the entry looks at all. Of more it looks at SAMPLE, and at itself: behind each pick a new peer comes
into the window, and the oldest goes. So entries that know nothing of each other do not all see the one idle peer, a single
entry spreads over all peers, and an exit tells its load to about SAMPLE entries, and not to all. Watching a newcomer costs
three small frames: an entry that picks more often than WATCHES_A_SECOND takes some newcomers in unwatched, with the load
that it believes.

    peers of the service    a b c d e f g h i j k l m n      shuffled
    pick 1 looks at           [       window        ]
    pick 2 looks at             [       window        ]      and so on; at the end those outside are shuffled again

No I/O and no clock: what joins and leaves the window is returned, for the caller to watch.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from federation.ratelimit import Bucket

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

    from federation.forward.selection import Node

# The simulation has 1.35 times the mean load on the busiest of 64 nodes with 8, and 1.23 with all-knowing entries.
SAMPLE = 8
WATCHES_A_SECOND, WATCHES_AT_ONCE = 200.0, 64.0


class Look(NamedTuple):
    """The nodes for one pick; the peer ids that the entry has to watch from now on, and those that it looks at no more."""

    nodes: Sequence[Node]
    joined: Sequence[str] = ()
    left: Sequence[str] = ()


class Sample:
    """The window of one entry over the peers of one service. `nodes`: all candidates, as of the last look."""

    def __init__(self, own_id: str, rng: random.Random) -> None:
        self.nodes: Sequence[Node] | None = None
        self.is_all = False  # the window holds all of them
        self._own_id = own_id
        self._rng = rng
        self._others: dict[str, Node] = {}
        self._own: list[Node] = []
        self._window: deque[str] = deque()
        self._next: list[str] = []  # of the present order, the last one first
        self._watches = Bucket(WATCHES_A_SECOND, WATCHES_AT_ONCE)

    @property
    def peer_ids(self) -> Sequence[str]:
        """Those in the window, but for this node itself."""
        return self._window

    def look(self, nodes: Sequence[Node], now: float) -> Look:
        """`nodes`: the same list until something changed."""
        if nodes is not self.nodes:
            return self._look_anew(nodes, now)
        if self.is_all:
            return Look(nodes)
        seen = self._seen()
        joined, left = self._slide(now)
        return Look(seen, joined, left)

    def _look_anew(self, nodes: Sequence[Node], now: float) -> Look:
        self.nodes = nodes
        self._others = others = {node.peer_id: node for node in nodes if node.peer_id != self._own_id}
        self._own = [node for node in nodes if node.peer_id == self._own_id]
        self.is_all = len(others) <= SAMPLE
        before = set(self._window)
        window = self._window = deque(peer_id for peer_id in self._window if peer_id in others)
        if self.is_all:
            window.extend(peer_id for peer_id in others if peer_id not in before)
        is_complete = len(window) == SAMPLE
        while len(window) < SAMPLE and not self.is_all:
            window.append(self._draw())
        seen = nodes if self.is_all else self._seen()
        after = set(window)
        joined, left = [*(after - before)], [*(before - after)]
        if is_complete and not self.is_all:  # it slides though the list changes often
            slid_in, slid_out = self._slide(now)
            joined += slid_in
            left += slid_out
        return Look(seen, joined, left)

    def _slide(self, now: float) -> tuple[Sequence[str], Sequence[str]]:
        """Let one in and one out. Returns the newcomer, if it may be watched already, and the one that left."""
        joined, left = self._draw(), self._window.popleft()
        self._window.append(joined)
        return (joined,) if self._watches.take(now) else (), (left,)

    def _seen(self) -> list[Node]:
        return [*self._own, *map(self._others.__getitem__, self._window)]

    def _draw(self) -> str:
        """The next one that is outside of the window; there is one."""
        while True:
            if not self._next:
                self._next = self._new_order()
            peer_id = self._next.pop()
            if peer_id in self._others and peer_id not in self._window:
                return peer_id

    def _new_order(self) -> list[str]:
        """Those in the window come last, the longest there first: by then they have left it, and nobody misses a turn."""
        outside = [peer_id for peer_id in self._others if peer_id not in self._window]
        self._rng.shuffle(outside)
        return [*reversed(self._window), *outside]
