"""Which entries hear of a change of load, and when. Reactor, links and time are the test's own."""

from __future__ import annotations

import random
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from federation.forward.pushing import COALESCE_S, FRAMES_A_SECOND, FRAMES_AT_ONCE, Pushing

if TYPE_CHECKING:
    from collections.abc import Callable


class Link:
    """Its `mux`, too. `told`: the loads that went out for their own sake."""

    def __init__(self, peer_id: str, world: World) -> None:
        self.peer_id = peer_id
        self.mux = self
        self.told: list[int] = []
        self.tells_load = True
        self.is_answering = False
        self.least_rtt_s: float | None = None
        self.on_told: Callable[[], None] = lambda: None
        self._world = world

    def tell_load(self, *, again: bool = False) -> bool:
        if not self.tells_load or (not again and self.told[-1:] == [self._world.load]):
            return False
        self.told.append(self._world.load)
        self.on_told()
        return True


class World:
    """The reactor as well, and the backends."""

    def __init__(self) -> None:
        self.load = 0
        self.is_full = False
        self.refused_as_full: set[str] = set()
        self.hands_out = False
        self.clock = 100.0
        self.timers: list[tuple[float, Callable[[], None]]] = []
        self.links: dict[str, Link] = {}
        self.pushing = Pushing(self, self.links.get, self, random.Random(1))  # type: ignore[arg-type]

    def now(self) -> float:
        return self.clock

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Any:
        self.timers.append((self.clock + delay_s, callback))

    def passes(self, seconds: float) -> None:
        until = self.clock + seconds
        while due := [timer for timer in self.timers if timer[0] <= until]:
            first = min(due, key=lambda timer: timer[0])
            self.timers.remove(first)
            self.clock = max(self.clock, first[0])
            first[1]()
        self.clock = until

    def link(self, peer_id: str) -> Link:
        return self.links.setdefault(peer_id, Link(peer_id, self))

    def watches(self, peer_id: str, seconds: int = 30) -> Link:
        link = self.link(peer_id)
        self.pushing.watched(link, seconds)  # type: ignore[arg-type]
        return link

    def changes(self, by: int = 1) -> None:
        self.load += by
        self.pushing.changed()

    def refuses(self, *peer_ids: str) -> list[Link]:
        """It has become full."""
        self.is_full = True
        self.pushing.changed()
        self.refused_as_full.update(peer_ids)
        return [self.link(peer_id) for peer_id in peer_ids]

    def has_room(self) -> None:
        self.is_full = False
        self.changes(-1)


def test_who_watches_hears_the_load_now_and_each_change() -> None:
    world = World()
    world.load = 4
    link = world.watches("a")
    assert link.told == [4]
    world.watches("a")
    assert link.told == [4, 4]  # it may have forgotten, so it hears that though it is no news
    for _ in range(3):
        world.changes()
        world.passes(COALESCE_S)
    assert link.told == [4, 4, 5, 6, 7]


def test_it_knows_the_ways_to_those_who_watch() -> None:
    world = World()
    for peer_id, way_s in (("near", 0.001), ("far", 0.2), ("unknown", None)):
        world.watches(peer_id).least_rtt_s = way_s
    world.watches("gone")
    del world.links["gone"]
    assert sorted(world.pushing.ways(0.05)) == [0.0, 0.001]
    assert sorted(world.pushing.ways(0.2)) == [0.0, 0.001, 0.2]
    world.passes(31.0)
    assert world.pushing.ways(0.2) == []


def test_many_changes_are_told_at_once_and_not_late() -> None:
    world = World()
    link = world.watches("a")
    for _ in range(5):
        world.changes()
        world.passes(COALESCE_S / 10)
    assert link.told == [0]
    world.passes(COALESCE_S / 2)
    assert link.told == [0, 5]
    assert world.timers == []


def test_a_change_that_was_taken_back_is_no_news() -> None:
    world = World()
    link = world.watches("a")
    world.changes(1)
    world.changes(-1)
    world.passes(1.0)
    assert link.told == [0]


def test_a_change_concerns_nobody_who_does_not_watch_and_sets_no_timer() -> None:
    world = World()
    link = world.link("a")
    world.changes()
    assert (world.timers, link.told) == ([], [])


# Room again


def test_who_was_refused_hears_once_that_there_is_room() -> None:
    world = World()
    world.load = 2
    refused, other = *world.refuses("a"), world.link("b")
    refused.told.append(1)  # which it knows, and yet believes that there is none
    world.has_room()
    world.passes(COALESCE_S)
    assert (refused.told, other.told, world.refused_as_full) == ([1, 1], [], set())
    world.changes()
    assert world.timers == []


@pytest.mark.parametrize("refused", [["a", "c"], ["a"], []])
def test_a_place_is_kept_until_those_that_want_to_know_have_heard_of_it(refused: list[str]) -> None:
    """Or else the entry whose request ended would have it each time, as it knows that first."""
    world = World()
    for peer_id in ["b", "d"][: 2 - len(refused)]:
        world.watches(peer_id)  # it sees itself that this node is full, and does not ask
    world.changes()
    world.refuses(*refused)
    world.changes()
    assert not world.hands_out
    world.has_room()
    assert world.hands_out
    world.changes(-1)  # another one
    world.passes(COALESCE_S)
    assert not world.hands_out
    world.changes()
    assert not world.hands_out  # it was not full since


def test_no_place_is_kept_where_nobody_wants_to_know() -> None:
    world = World()
    world.refuses()
    world.has_room()
    assert (world.hands_out, world.timers) == (False, [])


def test_no_place_is_kept_where_only_one_wants_to_know() -> None:
    """It hears with the end of its request, and would be refused if it came at once."""
    world = World()
    world.watches("a")
    world.changes()
    world.refuses("a")
    world.has_room()
    assert not world.hands_out


def test_no_place_is_kept_for_those_that_cannot_hear_of_it_soon() -> None:
    world = World()
    for n in range(300):
        world.watches(f"p{n}", 255)
    world.changes()
    world.passes(COALESCE_S)  # which has used up the frames
    world.refuses("p0")
    world.has_room()
    assert world.hands_out
    world.passes(COALESCE_S)
    assert (world.hands_out, world.refused_as_full) == (False, {"p0"})
    world.passes(10.0)
    assert world.refused_as_full == set()

    world = World()
    (link,) = world.refuses("a")
    link.is_answering = True  # and for long: it does not read
    world.has_room()
    world.passes(COALESCE_S)
    assert not world.hands_out
    world.passes(1.0)
    assert (world.hands_out, world.refused_as_full) == (False, {"a"})


def test_an_entry_is_not_told_of_its_own_requests() -> None:
    world = World()
    link = world.watches("a")
    world.passes(1.0)
    told = list(link.told)
    world.load += 1
    world.pushing.changed("a")
    assert world.timers == []
    world.watches("b")
    world.passes(1.0)
    world.load += 1
    world.pushing.changed("a")  # which is news to b; the link to a knows what it has told
    assert len(world.timers) == 1
    assert link.told[: len(told)] == told


def test_who_was_refused_hears_nothing_while_there_is_no_room() -> None:
    world = World()
    (link,) = world.refuses("a")
    for by in (1, -1):
        world.changes(by)
        world.passes(1.0)
    assert (link.told, world.refused_as_full, world.timers) == ([], {"a"}, [])
    world.is_full = False  # by a larger capacity
    world.pushing.changed()
    world.passes(COALESCE_S)
    assert link.told == [0]


def test_who_watches_and_was_refused_hears_it_once() -> None:
    world = World()
    link = world.watches("a")
    world.refuses("a")
    world.has_room()
    world.passes(1.0)
    assert link.told == [0, -1]


def test_news_of_room_does_not_overtake_the_refusal() -> None:
    """Or else the entry would take this node as full until the next change, which may never come."""
    world = World()
    slow, quick = world.refuses("a", "b")
    slow.is_answering = True
    world.has_room()
    world.passes(1.0)
    assert (slow.told, quick.told, world.refused_as_full) == ([], [-1], {"a"})
    slow.is_answering = False
    world.passes(COALESCE_S)
    assert (slow.told, quick.told, world.refused_as_full) == ([-1], [-1], set())
    world.passes(COALESCE_S)
    assert world.timers == []


@pytest.mark.parametrize("is_gone", [True, False])
def test_of_a_refused_peer_that_went_down_nothing_is_kept(is_gone: bool) -> None:
    world = World()
    (link,) = world.refuses("a")
    if is_gone:
        del world.links["a"]
    else:
        world.pushing.peer_down("a")
    world.has_room()
    world.passes(1.0)
    assert (link.told, world.refused_as_full, world.timers) == ([], set(), [])


# Many


def test_no_entry_is_always_the_first_to_hear() -> None:
    """Where all exits are full, the first to hear of a free place has it: the others would starve."""
    world = World()
    links = [world.watches(f"p{n}") for n in range(4)]
    firsts: Counter[str] = Counter()
    for link in links:
        link.on_told = lambda link=link: order.append(link.peer_id)
    for n in range(400):
        order: list[str] = []
        if n % 2:
            world.refuses(*world.links)
            world.has_room()
        else:
            world.changes()
        world.passes(0.05)
        assert sorted(order) == ["p0", "p1", "p2", "p3"]
        firsts[order[0]] += 1
        if n % 100 == 99:
            order = []
            for link in links:
                world.watches(link.peer_id)
    assert all(60 < times < 140 for times in firsts.values())  # 100, and a standard deviation is 9


def test_who_has_heard_it_by_something_else_costs_no_frame() -> None:
    world = World()
    link = world.watches("a")
    world.changes()
    link.told.append(1)  # it rode on a frame
    world.passes(1.0)
    assert link.told == [0, 1]


def test_a_watch_ends_in_time_unless_it_is_renewed() -> None:
    world = World()
    renewed, ended = world.watches("a", 30), world.watches("b", 30)
    world.passes(20.0)
    world.watches("a", 30)
    world.passes(10.0)
    world.changes()
    world.passes(COALESCE_S)
    assert (renewed.told, ended.told) == ([0, 0, 1], [0])
    world.passes(30.0)
    world.changes()
    world.passes(COALESCE_S)
    assert (renewed.told, world.timers) == ([0, 0, 1], [])
    world.changes()
    assert world.timers == []  # nobody is left to tell


def test_zero_seconds_end_a_watch_at_once() -> None:
    world = World()
    link = world.watches("a")
    world.watches("a", 0)
    world.watches("b", 0)  # which never watched
    world.changes()
    world.passes(1.0)
    assert link.told == [0]


def test_of_a_peer_that_went_down_nothing_is_kept() -> None:
    world = World()
    link = world.watches("a")
    world.changes()
    world.pushing.peer_down("a")
    world.pushing.peer_down("never heard of")
    world.passes(1.0)
    assert link.told == [0]
    world.changes()
    assert world.timers == []


def test_a_peer_whose_link_is_gone_or_does_not_understand_costs_nothing() -> None:
    world = World()
    world.watches("gone")
    world.link("old").tells_load = False
    del world.links["gone"]
    world.refuses("old", "gone")
    world.has_room()
    world.passes(1.0)
    assert world.links["old"].told == []
    assert world.timers == []


@pytest.mark.parametrize("watchers", [8, 1000])
def test_frames_of_a_busy_node_keep_their_pace_and_all_watchers_hear_the_last_change(watchers: int) -> None:
    world = World()
    links = [world.watches(f"p{n}", 255) for n in range(watchers)]
    dice, seconds = random.Random(1), 60
    for _ in range(100 * seconds):
        world.changes(dice.choice([1, 2]))
        world.passes(0.01)
    frames = sum(len(link.told) - 1 for link in links)
    assert frames <= FRAMES_A_SECOND * seconds + FRAMES_AT_ONCE + watchers
    assert frames >= 0.9 * FRAMES_A_SECOND * seconds
    world.passes(10.0)
    assert all(link.told[-1] == world.load for link in links)
    assert world.timers == []
