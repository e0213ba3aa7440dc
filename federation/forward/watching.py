"""Whose load this entry follows: the peers that its picks look at (sample.py), by way of their links."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Protocol

from federation.forward.sample import Sample
from federation.forward.selection import Policy

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Sequence

    from federation.forward.route import Route
    from federation.forward.selection import Node, Selector

MAX_SAMPLES = 64  # a network's clients use a handful of models at a time


class WatchableLink(Protocol):
    """A link, as `Watching` uses it; net.link.link.Link implements this."""

    def watch(self, now: float) -> bool: ...
    def unwatch(self) -> None: ...


class Watching:
    """A sample for each service and model. `link_to(peer_id)`: the present link to a peer, if there is one."""

    def __init__(
        self, own_id: str, selector: Selector, link_to: Callable[[str], WatchableLink | None], rng: random.Random
    ) -> None:
        self._own_id = own_id
        self._selector = selector
        self._link_to = link_to
        self._rng = rng
        self._samples: OrderedDict[Route, Sample] = OrderedDict()

    def look(self, route: Route, nodes: Sequence[Node], now: float) -> Sequence[Node]:
        """Those of the candidates `nodes` to pick from; the loads of those that are new among them are on their way.

        The list is a new one once a second at least: then all watches are renewed.
        """
        sample = self._samples.get(route)
        if sample is None:
            sample = self._new_sample(route)
        is_new = nodes is not sample.nodes
        if sample.is_all and not is_new:
            return nodes
        look = sample.look(nodes, now)
        for peer_id in look.left:
            self._leave(peer_id)
        for peer_id in sample.peer_ids if is_new else look.joined:
            self._follow(peer_id, now)
        return look.nodes if self._selector.policy is Policy.LEAST_LOADED else nodes

    def _new_sample(self, route: Route) -> Sample:
        sample = self._samples[route] = Sample(self._own_id, self._rng)
        if len(self._samples) > MAX_SAMPLES:
            _, oldest = self._samples.popitem(last=False)
            for peer_id in oldest.peer_ids:
                self._leave(peer_id)
        return sample

    def _follow(self, peer_id: str, now: float) -> None:
        link = self._link_to(peer_id)
        if link is None or not link.watch(now):
            self._selector.stale(peer_id)

    def _leave(self, peer_id: str) -> None:
        if any(peer_id in sample.peer_ids for sample in self._samples.values()):
            return
        self._selector.stale(peer_id)
        if (link := self._link_to(peer_id)) is not None:
            link.unwatch()
