"""The exit's side of load: which entries hear of a change, and when.

A LOAD for which something else goes anyway costs nothing, and the mux adds it by itself. Otherwise a change is told

* to the entries that watch, those that pick among a few peers of which this node is one; not to the one whose own request
  began or ended, since it knows that better, and
* to an entry that was refused for want of room, when there is room and the refusal has gone,

after COALESCE_S, all changes until then at once. Together they get FRAMES_A_SECOND at most: where many watch a busy node,
each hears of it more rarely, and a belief that is too old for that costs its request a refusal (see exit.py). Each time
they hear it in another order: where all exits are full, the first to hear of a free place has it. Nobody is to have it
before they hear: the entry whose request ended knows that first, and would keep its places for as long as it has requests.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Protocol

from federation.ratelimit import Bucket

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from federation.net.link.link import Link
    from federation.reactor.loop import Reactor

COALESCE_S = 0.005
# 29 bytes each, 6 kB/s. A node with 3 requests of 0.6 s in flight has ten changes a second, for 8 entries that watch it.
# With many short requests more would not help: of requests of 20 ms a load of 5 ms ago says no more than one of 80 ms ago.
FRAMES_A_SECOND, FRAMES_AT_ONCE = 200.0, 64.0


class Full(Protocol):
    """This node's capacity, as pushing uses it; forward.backends.Backends implements this."""

    refused_as_full: set[str]
    hands_out: bool

    @property
    def is_full(self) -> bool: ...


class Pushing:
    """`link_to(peer_id)`: the present link to a peer, if there is one."""

    def __init__(
        self,
        reactor: Reactor,
        link_to: Callable[[str], Link | None],
        backends: Full,
        rng: random.Random | None = None,
    ) -> None:
        self._reactor = reactor
        self._link_to = link_to
        self._backends = backends
        self._rng = rng or random.Random()
        self._watchers: dict[str, float] = {}  # peer id -> until when
        self._frames = Bucket(FRAMES_A_SECOND, FRAMES_AT_ONCE)
        self._is_queued = False
        self._was_full = False

    def watched(self, link: Link, seconds: int) -> None:
        """The peer wants to hear of each change for so long; and of the load now, whether or not that is news."""
        if not seconds:
            self._watchers.pop(link.peer_id, None)
            return
        self._watchers[link.peer_id] = self._reactor.now() + seconds
        link.mux.tell_load(again=True)

    def changed(self, entry_id: str = "") -> None:
        """The load changed; by a request of that entry, which knows of it."""
        was_full, self._was_full = self._was_full, self._backends.is_full
        if was_full and not self._was_full and len(self._watchers.keys() | self._backends.refused_as_full) > 1:
            self._backends.hands_out = True
        is_news = len(self._watchers) > (entry_id in self._watchers) or self._backends.refused_as_full
        if is_news and not self._is_queued:
            self._is_queued = True
            self._reactor.call_later(COALESCE_S, self._push)

    def ways(self, most_s: float) -> Sequence[float]:
        """The round trips to the entries that watch, of up to `most_s`."""
        now = self._reactor.now()
        links = [self._link_to(peer_id) for peer_id, until in self._watchers.items() if until > now]
        ways = [link.least_rtt_s or 0.0 for link in links if link is not None]
        return [way for way in ways if way <= most_s]

    def peer_down(self, peer_id: str) -> None:
        self._watchers.pop(peer_id, None)
        self._backends.refused_as_full.discard(peer_id)

    def _push(self) -> None:
        now = self._reactor.now()
        self._backends.hands_out = False  # also where that must wait: the place is not to be idle so long
        self._watchers = {peer_id: until for peer_id, until in self._watchers.items() if until > now}
        if self._frames.left(now) < 0:
            self._reactor.call_later(COALESCE_S, self._push)
            return
        self._is_queued = False
        waiting: set[str] = set()
        if not self._backends.is_full:
            refused = self._backends.refused_as_full
            waiting = {peer_id for peer_id in refused if not self._is_answering(peer_id)}
            refused -= waiting
            if refused:
                self._is_queued = True
                self._reactor.call_later(COALESCE_S, self._push)
        told = [*self._watchers, *(waiting - self._watchers.keys())]
        self._rng.shuffle(told)
        self._frames.spend(now, sum(self._tell(peer_id, again=peer_id in waiting) for peer_id in told))

    def _is_answering(self, peer_id: str) -> bool:
        link = self._link_to(peer_id)
        return link is not None and link.mux.is_answering

    def _tell(self, peer_id: str, *, again: bool) -> bool:
        """Whether that is news there, or wanted `again`."""
        link = self._link_to(peer_id)
        return link is not None and link.mux.tell_load(again=again)
