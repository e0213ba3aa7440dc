"""Whose loads an entry follows: links and time are the test's own."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest

from federation.forward.route import Route
from federation.forward.sample import SAMPLE
from federation.forward.selection import Policy, Selector
from federation.forward.watching import MAX_SAMPLES, Watching

OWN = "own"
FOR_S = 30.0


class Link:
    """As net.link.link.Link: it knows what it asked for, and until when."""

    def __init__(self) -> None:
        self.until = 0.0
        self.asked: list[float] = []
        self.unwatched = 0

    def watch(self, now: float) -> bool:
        was_watching = now < self.until
        self.asked.append(now)
        self.until = now + FOR_S
        return was_watching

    def unwatch(self) -> None:
        self.unwatched += 1
        self.until = 0.0


class World:
    def __init__(self, policy: Policy = Policy.LEAST_LOADED) -> None:
        self.selector = Selector(policy, entry_id=OWN, rng=random.Random(1))
        self.links: dict[str, Link] = {}
        self.watching = Watching(OWN, self.selector, self.links.get, random.Random(1))

    def nodes(self, *names: object) -> list[Any]:
        for name in map(str, names):
            if name != OWN:
                self.links.setdefault(name, Link())
        return [SimpleNamespace(peer_id=str(name), available_vram=0, capacity=0) for name in names]

    def watched(self, now: float) -> set[str]:
        return {peer_id for peer_id, link in self.links.items() if now < link.until}

    def is_fresh(self, peer_id: str) -> bool:
        """Whether what the peer told counts for more than its record."""
        before = self.selector.in_flight(peer_id)
        self.selector.reported(peer_id, 777)
        is_fresh = self.selector.in_flight(peer_id) != 777
        if not is_fresh:
            self.selector.reported(peer_id, before or 0)
        return is_fresh


def test_all_of_a_few_are_followed_and_this_node_needs_no_link() -> None:
    world = World()
    nodes = world.nodes(OWN, "a", "b")
    assert world.watching.look("s", nodes, 0.0) is nodes
    assert world.watched(0.0) == {"a", "b"}


def test_a_pick_with_no_news_asks_for_nothing_and_a_new_list_renews() -> None:
    world = World()
    nodes = world.nodes("a", "b")
    for now in (0.0, 0.3, 0.6):
        world.watching.look("s", nodes, now)
    assert world.links["a"].asked == [0.0]
    world.watching.look("s", list(nodes), 1.0)
    assert world.links["a"].asked == world.links["b"].asked == [0.0, 1.0]


def test_who_is_new_in_the_window_is_followed_and_who_leaves_it_is_not_any_more() -> None:
    world = World()
    nodes = world.nodes(OWN, *range(30))
    world.watching.look("s", nodes, 0.0)
    for n in range(1, 60):
        before = world.watched(n / 10)
        assert len(before) == SAMPLE
        seen = world.watching.look("s", nodes, n / 10)
        assert {node.peer_id for node in seen} - {OWN} == before
        assert len(world.watched(n / 10) - before) == len(before - world.watched(n / 10)) == 1
    assert sum(link.unwatched for link in world.links.values()) == 59


def test_what_a_peer_told_is_fresh_only_while_it_was_followed_all_the_time() -> None:
    world = World()
    nodes = world.nodes("a")
    world.watching.look("s", nodes, 0.0)
    world.selector.told("a", 3)
    world.watching.look("s", list(nodes), 20.0)  # in time
    assert world.is_fresh("a")
    world.watching.look("s", list(nodes), 20.0 + FOR_S)  # nobody picked for that long
    assert not world.is_fresh("a")
    world.selector.told("a", 3)
    world.watching.look("s", world.nodes(), 60.0)  # it serves no more
    assert not world.is_fresh("a")
    assert world.links["a"].unwatched == 1


def test_a_new_link_is_asked_anew() -> None:
    world = World()
    nodes = world.nodes("a")
    world.watching.look("s", nodes, 0.0)
    world.selector.told("a", 3)
    world.links["a"] = Link()
    world.watching.look("s", list(nodes), 1.0)
    assert world.watched(1.0) == {"a"}
    assert not world.is_fresh("a")


def test_a_peer_without_a_link_is_no_error() -> None:
    world = World()
    nodes = world.nodes("a")
    world.selector.told("a", 3)
    del world.links["a"]
    world.watching.look("s", nodes, 0.0)
    assert not world.is_fresh("a")
    world.watching.look("s", [], 1.0)


def test_who_leaves_one_service_is_still_followed_for_another() -> None:
    world = World()
    nodes = world.nodes("a", "b")
    world.watching.look("chat", nodes, 0.0)
    world.watching.look("speech", nodes[:1], 0.0)
    world.selector.told("a", 3)
    world.watching.look("chat", world.nodes("b"), 1.0)
    assert (world.links["a"].unwatched, world.watched(1.0)) == (0, {"a", "b"})
    assert world.is_fresh("a")
    world.watching.look("speech", [], 2.0)
    assert (world.links["a"].unwatched, world.watched(2.0)) == (1, {"b"})


def test_windows_of_several_services_slide_each_for_itself() -> None:
    world = World()
    chat, speech = world.nodes(*range(20)), world.nodes(*range(10, 40))
    for n in range(100):
        for service, nodes in (("chat", chat), ("speech", speech))[: 1 + n % 2]:
            world.watching.look(service, nodes, n / 10)
            windows = [set(sample.peer_ids) for sample in world.watching._samples.values()]
            assert world.watched(n / 10) == set().union(*windows)
            assert all(len(window) == SAMPLE for window in windows)


@pytest.mark.parametrize("policy", [Policy.RANDOM, Policy.LEAST_REQUESTS])
def test_other_policies_look_at_all(policy: Policy) -> None:
    world = World(policy)
    nodes = world.nodes(*range(30))
    for now in (0.0, 1.0):
        assert world.watching.look("s", nodes, now) is nodes


def test_each_model_has_a_sample_of_its_own_and_there_are_not_too_many() -> None:
    """Requests for two models in turn do not make each other's peers be left."""
    world = World()
    first, second = world.nodes(*range(20)), world.nodes(*range(20, 40))
    for _ in range(3):
        world.watching.look(Route("default", "m"), first, 1.0)
        world.watching.look(Route("default", "n"), second, 1.0)
    assert {0, *range(20)} > {int(peer) for peer in world.watched(2.0) if int(peer) < 20} != set()
    before = sum(link.unwatched for link in world.links.values())
    assert before == 4, "each slid twice"
    for n in range(MAX_SAMPLES):
        world.watching.look(Route("default", str(n)), second, 2.0)
    assert len(world.watching._samples) == MAX_SAMPLES
    assert not any(int(peer) < 20 for peer in world.watched(3.0))
