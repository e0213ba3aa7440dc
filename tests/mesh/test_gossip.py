"""Gossip without a network (a topic and streams in memory, trio's clock jumps), then over real hosts."""

from __future__ import annotations

import struct
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import datetime, timedelta
from itertools import pairwise
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import msgpack
import pytest
import trio

from federation.errors import PeerUnavailable
from federation.mesh import gossip as gossip_module
from federation.mesh.gossip import (
    FASTEST_S,
    HEAR_AGAIN_S,
    JITTER,
    LOAD_EVERY_S,
    PAGE,
    SLOWEST_S,
    SYNC_TIMEOUT_S,
    SYNCED_LINKS,
    Gossip,
    announce_interval,
    is_urgent,
    load_interval,
    matters,
)
from federation.mesh.ledger import FORGET_AFTER, MAX_ROWS, Ledger
from federation.mesh.records import Gpu, NodeData, encode
from federation.metrics import Metrics
from tests.support.gossip import BASE, START, TOKEN, FakeHost, FakeTopic, Member, record, sign
from tests.support.hosts import HostEvents, Peer, new_peer, reactor_running
from tests.support.links import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from federation.net.link.link import Link


@pytest.mark.parametrize(
    ("base", "nodes", "seconds"),
    [
        (5.0, 0, 5.0),
        (5.0, 1, 5.0),
        (5.0, 3, 5.0),
        (5.0, 6, 10.0),
        (5.0, 24, 40.0),
        (5.0, 600, 1000.0),
        (5.0, 840, SLOWEST_S),
        (5.0, 4096, SLOWEST_S),
        (3.0, 100, 100.0),
        (0.1, 3, 0.1),
        (SLOWEST_S, 1, SLOWEST_S),
        (2 * SLOWEST_S, 1000, 2 * SLOWEST_S),  # a person's word
    ],
)
def test_announce_interval(base: float, nodes: int, seconds: float) -> None:
    assert announce_interval(base, nodes) == pytest.approx(seconds)


def test_a_record_is_good_for_more_than_two_of_the_slowest_announcements_and_then_forgotten() -> None:
    slowest = BASE.model_copy(update={"announce_every_s": 2**40})
    assert 2 * SLOWEST_S < slowest.online_window.total_seconds() < FORGET_AFTER.total_seconds()


@pytest.mark.parametrize(
    ("nodes", "all_hear", "some_do_not"), [(0, 2.0, 0.25), (16, 2.0, 0.25), (32, 4.0, 0.5), (1000, 125.0, 15.625)]
)
def test_load_interval(nodes: int, all_hear: float, some_do_not: float) -> None:
    assert load_interval(nodes) == load_interval(nodes, all_hear=True) == all_hear
    assert load_interval(nodes, all_hear=False) == some_do_not


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, False),
        ({"seq": 9}, False),
        ({"last_seen": START + timedelta(hours=1)}, False),
        ({"gpus": (Gpu(name="x", total_vram=1, available_vram=1),)}, False),
        ({"available_vram": 9_900}, False),
        ({"available_vram": 9_899}, True),
        ({"available_vram": 10_101}, False),
        ({"available_vram": 10_102}, True),
        ({"available_vram": 0}, True),
        ({"in_flight": 4}, True),
        ({"in_flight": 2}, True),
        ({"services": {"default": False}}, True),
        ({"services": {}}, True),
        ({"draining": True}, True),
        ({"left": True}, True),
        ({"capacity": 1}, True),
        ({"total_vram": 1}, True),
        ({"addresses": ("/ip4/192.0.2.1/tcp/4484",)}, True),
        ({"name": "other"}, True),
        ({"incarnation": 1}, True),
        ({"announce_every_s": 60}, False),
    ],
)
def test_matters(change: dict[str, Any], expected: bool) -> None:
    assert matters(BASE, BASE.model_copy(update=change)) is expected


def test_all_that_matters_is_urgent_but_for_load() -> None:
    for change in ({"in_flight": 4}, {"available_vram": 0}, {"seq": 9}):
        assert not is_urgent(BASE, BASE.model_copy(update=change))
    for change in ({"draining": True}, {"left": True}, {"services": {"default": False}}, {"capacity": 1}, {"models": b"x"}):
        assert is_urgent(BASE, BASE.model_copy(update=change))
    assert is_urgent(None, BASE)


def test_the_first_record_and_vram_out_of_nothing_matter() -> None:
    assert matters(None, BASE)
    none = BASE.model_copy(update={"available_vram": 0})
    assert matters(none, BASE)
    assert not matters(none, none)


# Without a network


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock) -> trio.testing.MockClock:
    """To be taken as an argument: pytest-trio looks for clocks there."""
    monkeypatch.setattr(gossip_module, "Topic", FakeTopic)
    return autojump_clock


@asynccontextmanager
async def running(member: Member) -> AsyncIterator[Member]:
    async with trio.open_nursery() as nursery:
        await nursery.start(member.gossip.run)
        yield member
        nursery.cancel_scope.cancel()


class TestAnnouncing:
    async def test_at_the_start_and_at_every_interval(self, offline: Any) -> None:
        async with running(Member("me")) as me:
            await trio.sleep(20.1)
            assert me.topic.times == [0, 5, 10, 15, 20]
            assert [r.seq for _, r in me.topic.published] == [1, 2, 3, 4, 5]
            row = me.ledger.get("me")
            assert row is not None
            assert row.record.seq == 5
            assert me.topic.open_signed(row.signed)[0] == "me"  # so that others can be given it

    async def test_idle_it_does_nothing_else(self, offline: Any) -> None:
        async with running(Member("me")) as me:
            await trio.sleep(60.1)
            assert me.described == len(me.topic.published) == 13

    async def test_a_large_network_announces_more_slowly(self, offline: Any) -> None:
        async with running(Member("me")) as me:
            for n in range(23):
                me.knows(record(f"p{n}"))
            await trio.sleep(100)
            first, second, *others = me.topic.times
            assert (first, second) == (0, 5)  # as the first had promised when nobody was known
            assert others
            assert all(40 * (1 - JITTER) <= b - a <= 40 for a, b in pairwise([second, *others]))
            assert [r.announce_every_s for _, r in me.topic.published] == [0, *[40] * (len(others) + 1)]

    async def test_what_it_promised_holds_though_the_network_grows(self, offline: Any) -> None:
        async with running(Member("me")) as me:
            await trio.sleep(6)
            for n in range(999):
                me.knows(record(f"p{n}"))
            await trio.sleep(5)
            assert me.topic.times == [0, 5, 10]
            assert [r.announce_every_s for _, r in me.topic.published] == [0, 0, 1400]

    async def test_a_shrunken_network_announces_as_a_small_one(self, offline: Any) -> None:
        async with running(Member("me")) as me:
            for n in range(999):
                me.knows(record(f"p{n}"), age=timedelta(minutes=59))
            await trio.sleep(300)  # they are forgotten after a minute
            assert len(me.ledger) == 1
            assert me.topic.times[:2] == [0, 5]
            assert me.topic.times[2] < 100

    @pytest.mark.parametrize("former", [False, True], ids=["", "beside a node of a former version"])
    async def test_load_of_a_large_network_is_told_more_rarely_but_not_lost(self, offline: Any, former: bool) -> None:
        async with running(Member("me")) as me:
            me.has_link("new")
            if former:
                me.has_link("old", tells_load=False)
            for n in range(127):
                me.knows(record(f"p{n}"))
            await trio.sleep(10)
            assert me.topic.times == [0, 5]
            for n in range(40):
                me.becomes(in_flight=100 + n)
                await trio.sleep(0.1)
            await trio.sleep(0.1 if former else 7.3)
            assert me.topic.times == pytest.approx([0, 5, 10, 12, 14] if former else [0, 5, 21])
            assert me.topic.published[-1][1].in_flight == 139
            told = len(me.topic.times)
            me.becomes(in_flight=1)
            await trio.sleep(0.3)
            me.becomes(draining=True)  # is news at once
            await trio.sleep(0.3)
            assert len(me.topic.times) == told + 1
            assert me.topic.published[-1][1].draining

    async def test_what_matters_goes_out_at_once(self, offline: Any) -> None:
        async with running(Member("me")) as me:
            await trio.sleep(1)
            me.becomes(capacity=7)
            await trio.sleep(0.01)
            assert me.topic.times == [0, 1]
            assert me.topic.published[-1][1].capacity == 7
            await trio.sleep(5)
            assert me.topic.times == [0, 1, 6]  # the interval counts from the last one

    async def test_load_that_all_hear_by_their_links_goes_out_now_and_then(self, offline: Any) -> None:
        async with running(Member("me")) as me:
            me.has_link("new")
            for n in range(40):
                await trio.sleep(0.1)
                me.becomes(in_flight=100 + n)
            await trio.sleep(LOAD_EVERY_S)
            assert me.topic.times == pytest.approx([0, LOAD_EVERY_S, 2 * LOAD_EVERY_S, 3 * LOAD_EVERY_S], abs=0.2)
            assert me.topic.published[-1][1].in_flight == 139

    async def test_load_goes_out_at_once_where_a_node_of_a_former_version_hears_it_by_gossip_alone(
        self, offline: Any
    ) -> None:
        async with running(Member("me")) as me:
            me.has_link("new")
            me.has_link("old", tells_load=False)
            await trio.sleep(1)
            me.becomes(in_flight=7)
            await trio.sleep(0.01)
            assert me.topic.times == [0, 1]
            me.host.others.clear()
            await trio.sleep(1)
            me.becomes(in_flight=8)
            await trio.sleep(0.5)
            assert me.topic.times == [0, 1]

    async def test_what_does_not_matter_waits(self, offline: Any) -> None:
        async with running(Member("me")) as me:
            await trio.sleep(1)
            me.becomes(available_vram=9_950)
            await trio.sleep(3.9)
            assert me.topic.times == [0]
            await trio.sleep(0.2)
            assert me.topic.published[-1][1].available_vram == 9_950

    async def test_small_changes_add_up(self, offline: Any) -> None:
        """They are measured from what others know, not from the last look."""
        async with running(Member("me")) as me:
            for step in range(1, 4):
                await trio.sleep(0.5)
                me.becomes(available_vram=10_000 - 60 * step)
            await trio.sleep(0.6)
            assert me.topic.times == [0, LOAD_EVERY_S]

    async def test_at_most_four_times_a_second_and_the_last_change_is_not_lost(self, offline: Any) -> None:
        async with running(Member("me")) as me:
            await trio.sleep(1)
            for n in range(100):
                me.becomes(capacity=100 + n)
                await trio.sleep(0.01)
            await trio.sleep(FASTEST_S)
            times = me.topic.times[1:]
            assert len(times) <= 6
            assert min(b - a for a, b in pairwise(times)) >= FASTEST_S - 1e-9
            assert me.topic.published[-1][1].capacity == 199

    async def test_a_change_right_after_an_announcement_waits_its_turn(self, offline: Any) -> None:
        async with running(Member("me")) as me:
            await trio.sleep(1)
            me.becomes(capacity=7)
            await trio.sleep(0.05)
            me.becomes(capacity=8)
            await trio.sleep(0.3)
            assert me.topic.times == [0, 1, 1.25]

    async def test_a_stir_from_within_describe_looks_again(self, offline: Any) -> None:
        """node.py does so while the load it announced is not what is in flight."""
        member = Member("me")
        describe, left = member.describe, [3]

        def stirring() -> NodeData:
            if left[0]:
                left[0] -= 1
                member.gossip.stir()
            return describe()

        member.gossip._describe = stirring
        async with running(member) as me:
            await trio.sleep(1.1)
            assert me.described == 4
            await trio.sleep(3)
            assert me.described == 4

    async def test_leaving_is_the_last_word(self, offline: Any) -> None:
        async with running(Member("me")) as me:
            await trio.sleep(1)
            await me.gossip.leave()
            tombstone = me.topic.published[-1][1]
            assert tombstone.left
            assert tombstone.draining
            assert tombstone.seq == 2
            for n in range(100):  # connections that end while it drains, and intervals that pass
                me.becomes(in_flight=n)
                await trio.sleep(0.2)
            assert me.topic.published[-1][1] == tombstone
            row = me.ledger.get("me")
            assert row is not None
            assert row.record.left

    async def test_leaving_in_the_middle_of_an_announcement(self, offline: Any) -> None:
        async with running(Member("me")) as me:
            await trio.sleep(1)
            me.becomes(in_flight=7)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(me.gossip.leave)
            await trio.sleep(10)
            newest = max((r for _, r in me.topic.published), key=lambda r: r.seq)
            assert newest.left
            assert len({r.seq for _, r in me.topic.published}) == len(me.topic.published)

    async def test_the_silent_are_forgotten_and_it_is_told(self, offline: Any) -> None:
        async with running(Member("me")) as me:
            me.knows(record("gone"), age=timedelta(minutes=59))
            await trio.sleep(59)
            assert "gone" in me.ledger
            await trio.sleep(10)
            assert "gone" not in me.ledger
            assert [(c.peer_id, c.after) for c in me.changes] == [("gone", None)]

    async def test_after_a_sleep_of_this_machine_nodes_are_offline_at_once_and_forgotten_if_they_are_not_heard(
        self, offline: Any
    ) -> None:
        async with running(Member("me")) as me:
            me.knows(record("here"))
            me.knows(record("gone"))
            await trio.sleep(20)
            me.ahead += timedelta(hours=8)
            assert not {r.peer_id for r in me.ledger.online(me.now())} & {"here", "gone"}
            await trio.sleep(HEAR_AGAIN_S - 20)
            assert {"here", "gone"} < set(me.ledger.digest())
            assert me.age_of("gone") > 8 * 3600
            assert me.hears(record("here", seq=2))
            await trio.sleep(60)
            assert "gone" not in me.ledger
            assert me.age_of("here") == 60


class TestHearing:
    async def test_news_is_taken_and_goes_on(self, offline: Any) -> None:
        me = Member("me")
        assert me.hears(record("bob", in_flight=4))
        assert [(c.before, c.after.in_flight) for c in me.changes if c.after] == [(None, 4)]
        assert me.age_of("bob") == 0

    async def test_nobody_speaks_for_another(self, offline: Any) -> None:
        me = Member("me")
        assert not me.hears(record("bob"), signer="eve")
        assert len(me.ledger) == 0
        assert me.changes == []
        assert me.host.offences == [("eve", "it signs a record that is not its own (it speaks for somebody else)")]

    @pytest.mark.parametrize(
        "data", [b"", b"\xc1", b"\xff" * 100, b"\x80", msgpack.packb([1]), msgpack.packb({"peer_id": 7}), bytes(20_000)]
    )
    async def test_nonsense_is_refused_and_no_offence(self, offline: Any, data: bytes) -> None:
        """A newer version may say what this one does not understand."""
        me = Member("me")
        assert not me.topic.accept("bob", data, sign("bob", data))
        assert len(me.ledger) == 0
        assert me.host.warnings == [("a node's record is refused", "bob")]
        assert me.host.offences == []

    async def test_what_is_older_goes_no_further(self, offline: Any) -> None:
        me = Member("me")
        assert me.hears(record("bob", seq=5))
        assert not me.hears(record("bob", seq=4, in_flight=9))
        assert not me.hears(record("bob", incarnation=0, seq=99))
        assert me.hears(record("bob", incarnation=2, seq=1))
        assert len(me.changes) == 2

    async def test_a_repetition_proves_no_life(self, offline: Any) -> None:
        """Anybody can repeat the words of a node that is gone."""
        me = Member("me")
        me.hears(record("bob"))
        await trio.sleep(50)
        assert me.ledger.online(me.now()) == []
        me.hears(record("bob"))
        assert me.ledger.online(me.now()) == []
        assert me.age_of("bob") == 50
        assert me.hears(record("bob", seq=2))
        assert me.age_of("bob") == 0

    async def test_a_tombstone_stays(self, offline: Any) -> None:
        me = Member("me")
        me.hears(record("bob", seq=5, left=True))
        assert not me.hears(record("bob", seq=4))
        assert me.ledger.online(me.now()) == []
        assert me.hears(record("bob", incarnation=2, seq=1))  # it is back
        assert [r.peer_id for r in me.ledger.online(me.now())] == ["bob"]

    async def test_a_copied_identity_is_noticed(self, offline: Any) -> None:
        async with running(Member("me", record=BASE.model_copy(update={"incarnation": 10}))) as me:
            assert not me.hears(record("me", incarnation=9, seq=99))  # our former life, still going round
            assert not me.hears(record("me", incarnation=10, seq=1))
            assert me.host.warnings == []
            assert not me.hears(record("me", incarnation=11, seq=1, in_flight=77))
            assert me.host.warnings == [("copied", "me")]
            row = me.ledger.get("me")
            assert row is not None
            assert row.record.in_flight == BASE.in_flight  # it does not believe it either


async def sync(dialler: Member, listener: Member) -> None:
    dialler.host.others[listener.name] = listener.host
    async with trio.open_nursery() as nursery:
        dialler.host.nursery = nursery
        await dialler.gossip.sync(link_to(listener))


def link_to(member: Member) -> Link:
    return SimpleNamespace(peer_id=member.name)  # type: ignore[return-value]


class TestSync:
    async def test_both_know_all_after_it(self, offline: Any) -> None:
        a, b = Member("a"), Member("b")
        a.knows(record("x", seq=5))
        a.knows(record("y"))
        b.knows(record("x", seq=4, in_flight=9))
        b.knows(record("z"))
        await sync(a, b)
        assert a.ledger.digest() == b.ledger.digest() == {"x": (1, 5), "y": (1, 1), "z": (1, 1)}
        assert a.topic.forwarded == [("b", sign("z", encode(record("z"))))]
        assert b.topic.forwarded == [("a", sign("y", encode(record("y"))))]  # of x it knew
        await sync(b, a)
        assert len(a.topic.forwarded) == len(b.topic.forwarded) == 1  # nothing new, nothing said

    async def test_ages_travel_and_wall_clocks_do_not_matter(self, offline: Any) -> None:
        a, b = Member("a"), Member("b", ahead=timedelta(hours=1))
        a.knows(record("x"), age=timedelta(seconds=30))
        b.knows(record("y"), age=timedelta(seconds=10))
        await sync(a, b)
        assert b.age_of("x") == pytest.approx(30, abs=0.01)
        assert a.age_of("y") == pytest.approx(10, abs=0.01)
        assert {r.peer_id for r in a.ledger.online(a.now())} == {r.peer_id for r in b.ledger.online(b.now())} == {"x", "y"}

    async def test_who_is_offline_does_not_come_back_by_it(self, offline: Any) -> None:
        """Neither here nor, by the topic, which carries no ages, at others."""
        a, newcomer = Member("a"), Member("newcomer")
        a.knows(record("gone"), age=timedelta(minutes=30))
        a.knows(record("left", left=True))
        a.knows(record("x"), age=timedelta(seconds=39))
        await sync(newcomer, a)
        assert set(newcomer.ledger.digest()) == {"gone", "left", "x"}
        assert newcomer.age_of("gone") == pytest.approx(1800, abs=0.01)
        assert newcomer.age_of("x") == pytest.approx(39, abs=0.01)
        assert [r.peer_id for r in newcomer.ledger.online(newcomer.now())] == ["x"]
        assert [newcomer.topic.open_signed(signed)[0] for _, signed in newcomer.topic.forwarded] == ["x"]

    async def test_the_younger_of_two_sightings_counts(self, offline: Any) -> None:
        a, b = Member("a"), Member("b")
        a.knows(record("x", seq=2), age=timedelta(seconds=5))
        b.knows(record("x", seq=1), age=timedelta(seconds=1))
        await sync(a, b)
        assert b.age_of("x") == pytest.approx(5, abs=0.01)  # of the newer record

    async def test_nobody_makes_a_record_younger_that_is_here_already(self, offline: Any) -> None:
        """A member that says it has just heard the last words of a node that is gone."""
        me = Member("me")
        me.knows(record("gone", seq=5))
        await trio.sleep(50)
        me.changes.clear()
        await me.gossip._take_row([sign("gone", encode(record("gone", seq=5))), 0], "liar")
        assert me.age_of("gone") == 50
        assert me.ledger.online(me.now()) == []
        assert me.changes == []
        await me.gossip._take_row([sign("gone", encode(record("gone", seq=6))), 0], "liar")  # its own word: it is back
        assert me.age_of("gone") == 0

    async def test_nor_older(self, offline: Any) -> None:
        me = Member("me")
        me.hears(record("bob", seq=5))
        await me.gossip._take_row([sign("bob", encode(record("bob", seq=5))), 3_000_000], "liar")
        assert me.age_of("bob") == 0

    @pytest.mark.parametrize("count", [PAGE - 1, PAGE, PAGE + 1, 3 * PAGE])
    async def test_many_pages(self, offline: Any, count: int) -> None:
        a, b = Member("a"), Member("b")
        for n in range(count):
            (a if n % 2 else b).knows(record(f"p{n}"))
        for n in range(count):
            a.knows(record(f"q{n}"))
        await sync(b, a)
        assert a.ledger.digest() == b.ledger.digest()
        assert len(a.ledger) == 2 * count

    async def test_a_full_ledger(self, offline: Any) -> None:
        a, b = Member("a"), Member("b")
        for n in range(MAX_ROWS):
            a.knows(record(f"p{n}"))
        await sync(b, a)
        assert len(b.ledger) == MAX_ROWS

    @pytest.mark.parametrize("forged", [b"forged", sign("eve", encode(record("vic")))])
    @pytest.mark.parametrize("asks", ["victim", "liar"])
    async def test_who_hands_over_a_forged_record_is_an_offender(self, offline: Any, forged: bytes, asks: str) -> None:
        a, b = Member("a"), Member("b")
        a.knows(record("good"))
        a.ledger.merge(record("vic"), signed=forged, now=a.now())
        a.knows(record("late"))
        await (sync(b, a) if asks == "victim" else sync(a, b))
        assert set(b.ledger.digest()) == {"good"}
        assert [peer for peer, _ in b.host.offences] == ["a"]
        assert a.host.offences == []

    async def test_one_that_is_not_understood_costs_the_others_nothing(self, offline: Any) -> None:
        a, b = Member("a"), Member("b")
        a.ledger.merge(record("new"), signed=sign("new", b"\x80"), now=a.now())
        a.knows(record("good"))
        await sync(b, a)
        assert set(b.ledger.digest()) == {"good"}
        assert b.host.warnings == [("a node's record is refused", "a")]
        assert b.host.offences == []

    async def test_again_and_again_is_answered_at_a_pace(self, offline: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(gossip_module, "SYNCS_AT_ONCE", 2.0)
        a, b = Member("a"), Member("b")
        for n in range(4):
            b.knows(record(f"n{n}"))
            await sync(a, b)
        assert set(a.ledger.digest()) == {"n0", "n1"}
        assert b.host.warnings == [("a peer asks for the whole ledger again and again; it has to wait", "a")] * 2
        await trio.sleep(1 / gossip_module.SYNCS_A_SECOND)
        await sync(a, b)
        assert set(a.ledger.digest()) == {"n0", "n1", "n2", "n3"}

    async def test_records_without_end_are_not_read(self, offline: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(gossip_module, "ROWS_AT_ONCE", 100.0)
        a, b = Member("a"), Member("b")
        for n in range(3 * PAGE):
            a.knows(record(f"n{n}"))
        await sync(b, a)
        assert len(b.ledger) == PAGE
        assert b.host.warnings == [("a peer hands over records without end; it has to wait", "a")]

    async def test_what_nobody_signed_stays_here(self, offline: Any) -> None:
        a, b = Member("a"), Member("b")
        a.ledger.merge(record("own"), signed=b"", now=a.now())
        await sync(b, a)
        assert len(b.ledger) == 0

    async def test_with_nobody(self, offline: Any) -> None:
        await Member("a").gossip.sync(link_to(Member("b")))

    async def test_our_own_former_record_is_not_taken(self, offline: Any) -> None:
        a, b = Member("a"), Member("b")
        b.knows(record("a", in_flight=50))
        await sync(a, b)
        assert "a" not in a.ledger


def packed(message: object) -> bytes:
    data = msgpack.packb(message)
    return struct.pack(">I", len(data)) + data


GOOD_ROW = [sign("x", encode(record("x"))), 0]
NONSENSE = {
    "nothing": b"",
    "half a length": b"\x00\x00",
    "half a message": b"\x00\x00\x00\x10abc",
    "4 GiB": b"\xff\xff\xff\xff",
    "empty": b"\x00\x00\x00\x00",
    "no msgpack": b"\x00\x00\x00\x01\xc1",
    "two values": b"\x00\x00\x00\x02\x01\x02",
    "no list": packed({"a": 1}),
    "nil": packed(None),
    "a row that is none": packed(["x"]),
    "a row too short": packed([["x", 1]]),
    "numbers that are none": packed([["x", "1", 1]]),
    "bytes for an id": packed([[b"x", 1, 1]]),
    "too many rows": packed([["x", 1, 1]] * (MAX_ROWS + 1)),
    "deep": b"\x00\x00\x08\x00" + b"\x91" * 2048,
}
PAGES = {
    "no list": packed(7),
    "a row that is none": packed([7]),
    "a row too short": packed([[b"x"]]),
    "text": packed([["x", 0]]),
    "age below nought": packed([[GOOD_ROW[0], -1]]),
    "age without end": packed([[GOOD_ROW[0], 2**63]]),
    "age of a part": packed([[GOOD_ROW[0], 0.5]]),
    "cut off": packed([GOOD_ROW])[:-2],
    "for ever": packed([GOOD_ROW]) * (MAX_ROWS // PAGE + 2),
}


class TestSyncOfManyLinks:
    """A digest has 65 bytes a node: each with each would be 130 MB for one newcomer among a thousand."""

    @pytest.mark.parametrize(("links", "least", "most"), [(1, 300, 300), (SYNCED_LINKS, 300, 300), (240, 10, 60)])
    async def test_is_a_sample(self, offline: Any, links: int, least: int, most: int) -> None:
        me = Member("me")
        me.gossip._rng.seed(1)
        me.host.others = {f"p{n}": FakeHost(f"p{n}") for n in range(links)}
        opened = []

        async def open_stream(peer: str, protocol: str) -> Any:
            await trio.lowlevel.checkpoint()
            opened.append(peer)
            raise PeerUnavailable("that was all we wanted to know")

        me.host.open_stream = open_stream  # type: ignore[method-assign]
        for _ in range(300):
            await me.gossip.sync(SimpleNamespace(peer_id="p0"))  # type: ignore[arg-type]
        assert least <= len(opened) <= most


async def test_who_is_left_out_of_a_full_ledger_is_told_of(offline: Any) -> None:
    me = Member("me")
    for n in range(MAX_ROWS):
        me.knows(record(f"p{n}"))
    assert not me.hears(record("late"))
    assert [where for _, where in me.host.warnings] == ["ledger"]
    assert "late" not in me.ledger


class TestSyncOfNonsense:
    """A member's bytes: they cost the sync, and nobody anything else."""

    async def answer(self, me: Member, data: bytes, *, eof: bool = True) -> bytes:
        """`me` listens, and hears `data`; what it said is returned."""
        ours, theirs = trio.testing.memory_stream_pair()
        said = bytearray()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(me.host.handlers[TOKEN.ledger_protocol()], SimpleNamespace(peer_id="eve"), theirs)
            await ours.send_all(data)
            if eof:
                await ours.send_eof()
            try:
                while chunk := await ours.receive_some():
                    said += chunk
            except trio.BrokenResourceError:
                pass
        return bytes(said)

    @pytest.mark.parametrize("data", NONSENSE.values(), ids=NONSENSE)
    async def test_for_a_digest(self, offline: Any, data: bytes) -> None:
        me = Member("me")
        me.knows(record("x"))
        assert await self.answer(me, data) == b""
        await sync(Member("friend"), me)

    @pytest.mark.parametrize("data", PAGES.values(), ids=PAGES)
    async def test_for_pages(self, offline: Any, data: bytes) -> None:
        me = Member("me")
        await self.answer(me, packed([]) + data)
        assert len(me.ledger) <= 1

    @pytest.mark.parametrize("data", [b"\xff" * 4 + b"x", packed([]) + packed([GOOD_ROW]) * 2 * MAX_ROWS])
    async def test_without_end_is_hung_up_on(self, offline: Any, data: bytes) -> None:
        """A length, or a number of pages, that no ledger has: nobody waits for the rest."""
        me = Member("me")
        start = trio.current_time()
        await self.answer(me, data, eof=False)
        assert trio.current_time() - start < 1

    async def test_bool_is_no_number(self, offline: Any) -> None:
        me = Member("me")
        await self.answer(me, packed([]) + packed([[GOOD_ROW[0], True]]) + packed([]))
        assert len(me.ledger) <= 1

    @pytest.mark.parametrize("so_far", [b"", packed([])], ids=["digest", "pages"])
    async def test_silence_is_not_waited_out(self, offline: Any, so_far: bytes) -> None:
        me = Member("me")
        with trio.fail_after(SYNC_TIMEOUT_S + 1):
            await self.answer(me, so_far, eof=False)

    @pytest.mark.parametrize("data", NONSENSE.values(), ids=NONSENSE)
    async def test_as_an_answer(self, offline: Any, data: bytes) -> None:
        me, eve = Member("me"), Member("eve")

        async def answer(_link: object, stream: trio.StapledStream) -> None:  # type: ignore[type-arg]
            await stream.send_all(data)
            await stream.send_eof()
            with trio.move_on_after(1):
                await stream.receive_some()

        eve.host.handlers[TOKEN.ledger_protocol()] = answer
        with trio.fail_after(SYNC_TIMEOUT_S + 1):
            await sync(me, eve)
        assert len(me.ledger) == 0

    async def test_silence_as_an_answer(self, offline: Any) -> None:
        me, eve = Member("me"), Member("eve")

        async def answer(_link: object, stream: object) -> None:
            await trio.sleep(SYNC_TIMEOUT_S + 0.5)

        eve.host.handlers[TOKEN.ledger_protocol()] = answer
        start = trio.current_time()
        await sync(me, eve)
        assert trio.current_time() - start <= SYNC_TIMEOUT_S + 1


# Over real hosts


class Live(HostEvents):
    """A node's gossip on a host of its own; it syncs as node.py does."""

    nursery: trio.Nursery
    gossip: Gossip

    def peer_up(self, link: Link) -> None:
        super().peer_up(link)
        if link.is_initiator:
            self.nursery.start_soon(self.gossip.sync, link)


class Network:
    """Real hosts and gossip, a minute between announcements: what is known sooner came by sync or a stir."""

    def __init__(self) -> None:
        self.stack = AsyncExitStack()

    async def __aenter__(self) -> Network:
        self.reactor = await self.stack.enter_async_context(reactor_running())
        self.nursery = await self.stack.enter_async_context(trio.open_nursery())
        return self

    async def __aexit__(self, *error: Any) -> None:
        self.nursery.cancel_scope.cancel()
        await self.stack.__aexit__(*error)

    async def join(self, n: int, **fields: Any) -> tuple[Peer, SimpleNamespace]:
        started = trio.Event()
        found: list[tuple[Peer, SimpleNamespace]] = []

        async def run() -> None:
            peer = await new_peer(n, self.reactor)
            events = Live()
            peer.host._events = peer.events = events
            node = SimpleNamespace(
                record=NodeData(peer_id=peer.id, last_seen=START, incarnation=1, name=f"n{n}", **fields), ledger=Ledger()
            )
            begin = trio.current_time()

            def now() -> datetime:
                return START + timedelta(seconds=trio.current_time() - begin)

            node.now = now
            node.gossip = events.gossip = Gossip(
                host=peer.host, token=TOKEN, ledger=node.ledger, describe=lambda: node.record, utc_now=now,
                on_change=lambda _: None, interval_s=60.0, metrics=Metrics(),
            )  # fmt: skip
            node.scope = trio.CancelScope()
            with node.scope:
                async with peer.host.running(), trio.open_nursery() as nursery:
                    events.nursery = nursery
                    await nursery.start(node.gossip.run)
                    found.append((peer, node))
                    started.set()

        self.nursery.start_soon(run)
        with trio.fail_after(20):
            await started.wait()
        return found[0]


def names(node: SimpleNamespace) -> set[str]:
    return {r.name for r in node.ledger.online(node.now())}


class TestLive:
    async def test_a_newcomer_knows_everybody_at_once_and_is_known(self) -> None:
        async with Network() as network:
            a, node_a = await network.join(1)
            b, node_b = await network.join(2)
            b.knows(a)
            await until(lambda: names(node_a) == names(node_b) == {"n1", "n2"})
            c, node_c = await network.join(3)
            c.knows(b)
            await until(lambda: names(node_a) == names(node_b) == names(node_c) == {"n1", "n2", "n3"}, seconds=2)

    async def test_a_change_is_heard_two_hops_away_at_once(self) -> None:
        async with Network() as network:
            (a, node_a), (b, _), (c, node_c) = [await network.join(n) for n in (1, 2, 3)]
            b.knows(a)
            c.knows(b)
            await until(lambda: names(node_c) == {"n1", "n2", "n3"})
            for load in (5, 6, 7):
                node_a.record = node_a.record.model_copy(update={"in_flight": load})
                node_a.gossip.stir()
                await until(lambda load=load: node_c.ledger.get(a.id).record.in_flight == load, seconds=2)

    async def test_two_networks_become_one(self) -> None:
        async with Network() as network:
            hosts = [await network.join(n) for n in range(1, 5)]
            (a, node_a), (b, _), (c, _), (d, node_d) = hosts
            a.knows(b)
            d.knows(c)
            await until(lambda: names(node_a) == {"n1", "n2"} and names(node_d) == {"n3", "n4"})
            b.knows(c)
            await until(lambda: all(len(names(node)) == 4 for _, node in hosts), seconds=3)

    async def test_good_bye_is_heard_by_all_and_stays(self) -> None:
        async with Network() as network:
            (a, node_a), (b, node_b), (c, node_c) = [await network.join(n) for n in (1, 2, 3)]
            b.knows(a)
            c.knows(b)
            await until(lambda: len(names(node_a)) == len(names(node_b)) == len(names(node_c)) == 3)
            await node_c.gossip.leave()
            node_c.gossip.stir()
            await until(lambda: names(node_a) == names(node_b) == {"n1", "n2"})
            node_c.scope.cancel()
            late, node_late = await network.join(4)
            late.knows(a)
            await until(lambda: len(node_late.ledger) == 4)  # the tombstone too, or an old copy could come back
            assert names(node_late) == {"n1", "n2", "n4"}

    async def test_good_bye_of_a_node_without_neighbours_on_the_topic(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """It has just come. One peer that hears of it by a sync tells the others."""
        monkeypatch.setattr(gossip_module, "TOLD_BY_SYNC", 1)
        async with Network() as network:
            a, node_a = await network.join(1)
            hosts = [(a, node_a)]
            for n in (2, 3, 4):
                peer, node = await network.join(n)
                hosts.append((peer, node))
                peer.knows(a)
                await until(lambda: all(len(names(node)) == len(hosts) for _, node in hosts), seconds=3)
            topic = node.gossip._topic

            async def sign_only(data: bytes) -> bytes:
                await trio.lowlevel.checkpoint()
                return topic.sign(data).SerializeToString()

            monkeypatch.setattr(topic, "publish", sign_only)
            await node.gossip.leave()
            await until(lambda: all(names(other) == {"n1", "n2", "n3"} for _, other in hosts[:3]), seconds=3)

    async def test_the_dead_stay_dead_when_somebody_joins(self) -> None:
        async with Network() as network:
            (a, node_a), (b, node_b) = [await network.join(n) for n in (1, 2)]
            absent = await signed_by_somebody_else()
            for node in (node_a, node_b):
                signer, data, _ = node.gossip._topic.open_signed(absent)
                node.gossip._merge(signer, data, absent, timedelta(minutes=30))
                assert len(node.ledger) == 2
            c, node_c = await network.join(3)
            c.knows(a)
            c.knows(b)
            for node in (node_a, node_b, node_c):
                await until(lambda node=node: names(node) == {"n1", "n2", "n3"} and len(node.ledger) == 4)
            before = len(node_c.ledger)
            node_c.record = node_c.record.model_copy(update={"in_flight": 1})
            node_c.gossip.stir()  # arrives behind whatever the sync passed on
            await until(lambda: node_a.ledger.get(c.id).record.in_flight == node_b.ledger.get(c.id).record.in_flight == 1)
            assert len(node_c.ledger) == before
            for node in (node_a, node_b, node_c):
                assert names(node) == {"n1", "n2", "n3"}


async def signed_by_somebody_else() -> bytes:
    """A record of a node that is not here any more."""
    from federation.net.pubsub import Topic

    async with reactor_running() as reactor:
        absent = await new_peer(9, reactor)
        await absent.host.stop_listening()
        gone = NodeData(peer_id=absent.id, last_seen=START, incarnation=1, seq=7, name="gone")
        return Topic(absent.host, TOKEN.topic(), lambda *_: True).sign(encode(gone)).SerializeToString()


@pytest.fixture(autouse=True)
def no_shout(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("WARNING", "libp2p")
