"""Homes of conversations: the rules one by one, then a network of boxes, entries and chats in simulated time."""

from __future__ import annotations

import heapq
import random
from collections import Counter
from dataclasses import dataclass, replace
from hashlib import blake2b
from itertools import pairwise
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.forward.http import homes
from federation.forward.http.conversation import NO_KEYS, Keys
from federation.forward.http.homes import MAX_CHATS, MAX_HEATS, REMEMBERED_S, SLACK, Homes, rendezvous, within_bound


@dataclass
class Box:
    peer_id: str
    load: int = 0
    weight: float = 1.0


def key(name: object) -> bytes:
    return blake2b(str(name).encode(), digest_size=16).digest()


def boxes(n: int, **what: float) -> list[Box]:
    return [Box(f"box {i}", **what) for i in range(n)]  # type: ignore[arg-type]


def ids(order: object) -> list[str]:
    return [box.peer_id for box in order]  # type: ignore[attr-defined]


def test_a_request_without_a_key_or_without_replicas_has_no_home() -> None:
    assert Homes().choose(NO_KEYS, boxes(3), 0.0) is None
    assert Homes().choose(Keys(key(1), key(2)), [], 0.0) is None


def test_entries_that_know_nothing_of_each_other_agree() -> None:
    rng = random.Random(1)
    one, other, replicas = Homes(), Homes(), boxes(5)
    for n in range(100):
        keys = Keys(key(f"system {n}"), key(f"chat {n}"))
        shuffled = rng.sample(replicas, len(replicas))
        assert one.choose(keys, replicas, 0.0) == other.choose(keys, shuffled, 1000.0)


def test_all_chats_of_a_cold_system_prompt_are_in_one_place() -> None:
    entry = Homes()
    keys = [Keys(key("system"), key(n)) for n in range(3)]
    assert len({entry.choose(k, boxes(5), 0.0) for k in keys}) == 1


def test_with_its_heat_a_system_prompt_has_more_homes_and_they_are_nested() -> None:
    entry, replicas = Homes(), boxes(8)
    seen: list[set[str]] = []
    for n in range(400):
        entry.choose(Keys(key("system"), key(n)), replicas, n / 100)
        m = entry.homes_of(key("system"))
        if len(seen) < m.bit_length():
            firsts = {entry.order(Keys(key("system"), key(k)), replicas)[0] for k in range(400)}
            assert firsts == set(ids(rendezvous(key("system"), replicas)[:m]))
            seen.append(firsts)
    assert [len(firsts) for firsts in seen] == [1, 2, 4, 8]
    assert all(small < large for small, large in pairwise(seen))


@pytest.mark.parametrize("replicas", [2, 3, 8])
def test_a_chat_alone_stays_however_long_it_is(replicas: int) -> None:
    for chat in range(20):
        entry, keys = Homes(), Keys(key(("system", chat)), key(chat))
        places = {entry.choose(keys, boxes(replicas), turn * 5.0) for turn in range(60)}
        assert len(places) == 1


def test_a_system_prompt_that_cools_has_one_home_again() -> None:
    entry, replicas = Homes(), boxes(8)
    for n in range(200):
        entry.choose(Keys(key("system"), key(n)), replicas, 0.0)
    assert entry.homes_of(key("system")) == 8
    entry.choose(Keys(key("system"), key(1)), replicas, 10 * homes.HALF_LIFE_S)
    assert entry.homes_of(key("system")) == 1


def test_fewer_replicas_than_homes() -> None:
    entry = Homes()
    for n in range(200):
        entry.choose(Keys(key("system"), key(n)), boxes(8), 0.0)
    assert entry.choose(Keys(key("system"), key("new")), boxes(1), 0.0) == homes.Home("box 0")
    assert entry.homes_of(key("system")) == 1


def test_a_home_beyond_its_bound_costs_the_next_home_for_every_entry() -> None:
    keys, replicas = Keys(key("system"), key("chat")), boxes(4)
    order = Homes().order(keys, replicas)
    for box in replicas:
        box.load = 10 if box.peer_id == order[0] else 3
    spilled = Homes().choose(keys, replicas, 0.0)
    assert spilled == homes.Home(order[1], 1, is_spilled=True)
    assert Homes().choose(keys, replicas[::-1], 0.0) == spilled


def test_a_spilled_conversation_stays_where_it_went_while_there_is_room() -> None:
    entry, keys = Homes(), Keys(key("system"), key("chat"))
    first, second, third = entry.order(keys, boxes(3))
    loads = {first: 9, second: 0, third: 0}

    def replicas() -> list[Box]:
        return [Box(peer_id, load) for peer_id, load in loads.items()]

    assert entry.choose(keys, replicas(), 0.0).peer_id == second  # type: ignore[union-attr]
    loads[first] = 0
    assert entry.choose(keys, replicas(), REMEMBERED_S - 1) == homes.Home(second, 1, is_spilled=True)
    used = entry.choose(keys, replicas(), 2 * REMEMBERED_S - 2)  # so it is remembered
    assert used == homes.Home(second, 1, is_spilled=True)
    loads[second] = 9
    assert entry.choose(keys, replicas(), 2 * REMEMBERED_S).peer_id == first  # type: ignore[union-attr]
    loads[second] = 0
    assert entry.choose(keys, replicas(), 4 * REMEMBERED_S).peer_id == first  # type: ignore[union-attr]
    del loads[second]
    assert entry.choose(keys, replicas(), 4 * REMEMBERED_S).peer_id == first  # type: ignore[union-attr]


def test_memories_are_bounded() -> None:
    entry = Homes()
    replicas = [Box("a", 9), Box("b", 0)]
    for n in range(2 * MAX_CHATS):
        entry.choose(Keys(key(("s", n)), key(n)), replicas, 0.0)
    assert len(entry._chats) == MAX_CHATS
    assert len(entry._heats) == MAX_HEATS


@given(st.lists(st.tuples(st.integers(0, 50), st.sampled_from([0.5, 1.0, 2.0, 8.0])), min_size=1, max_size=12))
def test_somebody_is_always_within_the_bound(rows: list[tuple[int, float]]) -> None:
    replicas = [Box(str(n), load, weight) for n, (load, weight) in enumerate(rows)]
    fits = within_bound(replicas)
    least = min(box.load for box in replicas)
    assert {box.peer_id for box in replicas if box.load <= least + SLACK} <= fits.keys()
    total, weights = sum(box.load for box in replicas) + 1, sum(box.weight for box in replicas)
    assert all(fits[p].load <= max(least + SLACK, 1.25 * total * fits[p].weight / weights + 1) for p in fits)


def test_twice_the_weight_is_home_to_twice_as_many() -> None:
    replicas = [Box("small", weight=1.0), Box("large", weight=2.0), Box("larger", weight=4.0)]
    counts = Counter(rendezvous(key(n), replicas)[0].peer_id for n in range(7000))
    assert [round(counts[name] / 1000) for name in ("small", "large", "larger")] == [1, 2, 4]


@pytest.mark.parametrize("n", [3, 8, 20])
def test_one_node_more_takes_its_share_and_moves_nothing_else(n: int) -> None:
    """And one node less: the same, read backwards."""
    chats = 4000
    before, after = boxes(n), boxes(n + 1)
    newcomer = after[-1].peer_id
    moved = 0
    for chat in range(chats):
        was, now = rendezvous(key(chat), before)[0].peer_id, rendezvous(key(chat), after)[0].peer_id
        assert was == now or now == newcomer
        moved += was != now
    assert moved / chats == pytest.approx(1 / (n + 1), rel=0.2)


def test_one_node_more_moves_few_chats_of_a_hot_system_prompt() -> None:
    """It may push another node out of the set of homes, so up to two shares move: the newcomer's and the other one's."""
    moves = 0
    for system in range(40):
        entry = Homes()
        for n in range(20):
            entry.choose(Keys(key(system), key(n)), boxes(12), 0.0)
        assert entry.homes_of(key(system)) == 8
        keys = [Keys(key(system), key(n)) for n in range(100)]
        moves += sum(entry.order(k, boxes(12))[0] != entry.order(k, boxes(13))[0] for k in keys)
    assert moves / 4000 < 2.5 / 13


# A network


class Found(NamedTuple):
    cached: float  # of all blocks of prompts
    busiest: float  # times the mean, of the time-averaged load
    most: int  # in flight at one box at any time, above the mean of that time


@dataclass
class Chats:
    """People who chat: each turn says 2 blocks and answers 1, behind a system prompt of 5; six turns, then another chat.

    A box's cache knows how far into a prompt it has come, of each chat and each system prompt. A request takes as long
    as what is not cached, and its answer."""

    policy: str = "home"
    boxes: int = 3
    entries: int = 3
    at_once: int = 36
    total: int = 500
    systems: int = 1
    seed: int = 1

    def run(self) -> Found:
        rng = random.Random(self.seed)
        replicas = [Box(f"box {i} of {self.seed}") for i in range(self.boxes)]
        cached = [Counter[str]() for _ in replicas]
        entries = [Homes() for _ in range(self.entries)]
        events = [(rng.random() * 5, chat, 1, -1) for chat in range(self.at_once)]
        heapq.heapify(events)
        area, last, most = [0.0] * self.boxes, 0.0, 0
        started, found, blocks = self.at_once, 0, 0
        while events:
            now, chat, turn, box = heapq.heappop(events)
            for i, replica in enumerate(replicas):
                area[i] += replica.load * (now - last)
            last = now
            if box >= 0:  # an answer has come
                replicas[box].load -= 1
                chat, turn = (chat, turn + 1) if turn < 6 else (started, 1)
                if turn > 1 or started < self.total:
                    started += turn == 1
                    heapq.heappush(events, (now + rng.expovariate(0.5), chat, turn, -1))
                continue
            system = f"system {chat % self.systems} of {self.seed}"
            name = f"chat {chat} of {self.seed}"
            match self.policy:
                case "home":
                    home = rng.choice(entries).choose(Keys(key(system), key(name)), replicas, now)
                    assert home is not None
                    box = next(i for i, replica in enumerate(replicas) if replica.peer_id == home.peer_id)
                case "random":
                    box = rng.randrange(self.boxes)
                case "one":
                    box = 0
            prompt = 7 + 3 * (turn - 1)
            have = max(cached[box][system], cached[box][name])
            found, blocks = found + have, blocks + prompt
            cached[box][system], cached[box][name] = 5, prompt
            replicas[box].load += 1
            most = max(most, replicas[box].load - sum(r.load for r in replicas) // self.boxes)
            took = 0.2 + 0.1 * (prompt - have) + 0.3 * rng.uniform(0.5, 1.5)
            heapq.heappush(events, (now + took, chat, turn, box))
        return Found(found / blocks, max(area) * self.boxes / sum(area), most)


def mean(chats: Chats, seeds: int = 5) -> Found:
    found = [replace(chats, seed=seed).run() for seed in range(seeds)]
    return Found(sum(f.cached for f in found) / seeds, max(f.busiest for f in found), max(f.most for f in found))


def test_chats_of_one_system_prompt_find_their_prompts_and_no_box_melts() -> None:
    """36 chats, 3 boxes, 3 entries, each turn through a random entry: what issue 14 promises."""
    assert mean(Chats("one")).cached == pytest.approx(0.80, abs=0.01)
    assert mean(Chats("random")).cached == pytest.approx(0.59, abs=0.015)
    at_home = mean(Chats())
    assert at_home.cached >= 0.75
    assert at_home.busiest <= 1.35
    assert at_home.most <= 8


@pytest.mark.parametrize("systems", [4, 12, 200])
def test_many_system_prompts(systems: int) -> None:
    at_home = mean(Chats(systems=systems))
    assert at_home.cached >= mean(Chats("random", systems=systems)).cached + 0.12
    assert at_home.busiest <= 1.35


def test_many_boxes_and_entries() -> None:
    at_home = mean(Chats(boxes=8, entries=8, at_once=96, total=800), seeds=2)
    assert at_home.cached >= 0.73
    assert at_home.busiest <= 1.35


def test_rare_system_prompts_are_kept_together() -> None:
    """Of 200 that have three chats each, k0 finds more than k1 alone would."""
    with pytest.MonkeyPatch.context() as patch:
        together = mean(Chats(systems=200, total=600)).cached
        patch.setattr(homes, "LARGEST_PIECE", 1e-9)
        patch.setattr(homes, "CHATS_A_HOME", 1e-9)
        apart = mean(Chats(systems=200, total=600)).cached
    assert together > apart + 0.01
