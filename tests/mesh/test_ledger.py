"""The ledger: its merge laws for any records, then each rule by example."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from federation.mesh.ledger import FORGET_AFTER, FULL_FOR, GPU_BYTES, Change, Ledger, Row
from federation.mesh.records import NODE_ONLINE_WINDOW, Gpu, NodeData

if TYPE_CHECKING:
    from collections.abc import Iterable

laws = settings(max_examples=300)

NOW = datetime(2024, 5, 1, 12, 0, tzinfo=timezone.utc)
SECOND = timedelta(seconds=1)
MOMENT = timedelta(microseconds=1)


def node(peer_id: str = "a", seq: int = 0, **fields: Any) -> NodeData:
    """A record that claims to be years old, so that nothing can pass which believes it."""
    return NodeData(**{"peer_id": peer_id, "seq": seq, "last_seen": datetime(1999, 1, 1, tzinfo=timezone.utc)} | fields)


def seen(record: NodeData, at: datetime) -> NodeData:
    return record.model_copy(update={"last_seen": at})


def row(ledger: Ledger, peer_id: str = "a") -> NodeData:
    row = ledger.get(peer_id)
    assert row is not None
    return row.record


# Laws. Few peers, versions and contents, so that everything collides with everything.


class Arrival(NamedTuple):
    record: NodeData
    signed: bytes
    age: timedelta


ages = st.sampled_from(
    [
        timedelta(0),
        SECOND,
        NODE_ONLINE_WINDOW,
        FORGET_AFTER - MOMENT,
        FORGET_AFTER,
    ]
)
records = st.builds(
    node,
    st.sampled_from("ab"),
    st.integers(0, 1),
    incarnation=st.integers(0, 1),
    in_flight=st.integers(0, 1),
    left=st.booleans(),
)
arrivals = st.builds(Arrival, records, st.sampled_from([b"", b"x", b"y"]), ages)
histories = st.lists(arrivals, max_size=6)


def replay(history: Iterable[Arrival], ledger: Ledger | None = None) -> Ledger:
    ledger = Ledger() if ledger is None else ledger
    for record, signed, age in history:
        ledger.merge(record, signed=signed, now=NOW, age=age)
    return ledger


def rows(ledger: Ledger) -> dict[str, Row]:
    return {row.record.peer_id: row for row in ledger.missing({})}


def join(a: Ledger, b: Ledger) -> Ledger:
    """A new ledger that heard all of `a` and then all of `b`."""
    both = [*a.missing({}), *b.missing({})]
    return replay(Arrival(row.record, row.signed, NOW - row.record.last_seen) for row in both)


@laws
@given(histories, histories)
def test_merge_is_commutative(one: list[Arrival], two: list[Arrival]) -> None:
    a, b = replay(one), replay(two)
    assert rows(join(a, b)) == rows(join(b, a))


@laws
@given(histories, histories, histories)
def test_merge_is_associative(one: list[Arrival], two: list[Arrival], three: list[Arrival]) -> None:
    a, b, c = replay(one), replay(two), replay(three)
    assert rows(join(join(a, b), c)) == rows(join(a, join(b, c)))


@laws
@given(histories)
def test_merge_is_idempotent(history: list[Arrival]) -> None:
    once = replay(history)
    before = rows(once)
    changes = [once.merge(record, signed=signed, now=NOW, age=age) for record, signed, age in history]
    assert changes == [None] * len(history)
    assert rows(once) == before


@laws
@given(st.data(), histories)
def test_the_order_of_arrival_does_not_matter(data: st.DataObject, history: list[Arrival]) -> None:
    assert rows(replay(data.draw(st.permutations(history)))) == rows(replay(history))


@laws
@given(histories)
def test_the_newest_version_wins(history: list[Arrival]) -> None:
    """Said a second time without the code's own means: whatever the laws are about, it is this."""
    ledger = replay(history)
    for peer_id in "ab":
        admitted = [(record, age) for record, _, age in history if record.peer_id == peer_id and age < FORGET_AFTER]
        assert (peer_id in ledger) == bool(admitted)
        if admitted:
            newest = max((record.incarnation, record.seq) for record, _ in admitted)
            same = [(record, age) for record, age in admitted if (record.incarnation, record.seq) == newest]
            assert ledger.digest()[peer_id] == newest
            assert row(ledger, peer_id).last_seen == NOW - min(age for _, age in same)
            assert row(ledger, peer_id) in [seen(record, row(ledger, peer_id).last_seen) for record, _ in same]


@laws
@given(histories)
def test_changes_tell_the_whole_story(history: list[Arrival]) -> None:
    """Who follows the changes alone has the same picture, but for last_seen."""
    ledger, picture = Ledger(), {}
    for record, signed, age in history:
        change = ledger.merge(record, signed=signed, now=NOW, age=age)
        if change is not None:
            assert change.after is not None
            assert picture.get(change.peer_id) == (change.before and seen(change.before, NOW))
            picture[change.peer_id] = seen(change.after, NOW)
    assert picture == {record.peer_id: seen(record, NOW) for record in ledger.records()}


@laws
@given(histories, histories)
def test_one_exchange_of_digests_makes_two_ledgers_agree(one: list[Arrival], two: list[Arrival]) -> None:
    a, b = replay(one), replay(two)
    for_a, for_b = b.missing(a.digest()), a.missing(b.digest())
    for ledger, sent in ((a, for_a), (b, for_b)):
        replay([Arrival(row.record, row.signed, NOW - row.record.last_seen) for row in sent], ledger)
    assert a.digest() == b.digest()
    assert a.missing(b.digest()) == b.missing(a.digest()) == []


# Newest wins


def test_newcomer() -> None:
    ledger = Ledger()
    change = ledger.merge(node("a"), signed=b"proof", now=NOW)
    assert change == Change("a", None, seen(node("a"), NOW))
    assert ledger.get("a") == Row(seen(node("a"), NOW), b"proof")
    assert "a" in ledger
    assert len(ledger) == 1


def test_unknown_peer() -> None:
    ledger = Ledger()
    assert ledger.get("a") is None
    assert "a" not in ledger
    assert len(ledger) == 0


def test_higher_seq_replaces_record_and_signature() -> None:
    ledger = Ledger()
    ledger.merge(node(seq=1, in_flight=5), signed=b"one", now=NOW)
    change = ledger.merge(node(seq=2, in_flight=3), signed=b"two", now=NOW + SECOND)
    after = seen(node(seq=2, in_flight=3), NOW + SECOND)
    assert change == Change("a", seen(node(seq=1, in_flight=5), NOW), after)
    assert ledger.get("a") == Row(after, b"two")


def test_lower_seq_is_ignored() -> None:
    ledger = Ledger()
    ledger.merge(node(seq=2), signed=b"two", now=NOW)
    assert ledger.merge(node(seq=1, in_flight=9), signed=b"one", now=NOW + SECOND) is None
    assert ledger.get("a") == Row(seen(node(seq=2), NOW), b"two")


def test_incarnation_outranks_seq() -> None:
    """A restarted node counts from zero again, and is the same row."""
    ledger = Ledger()
    ledger.merge(node(seq=900, incarnation=1), now=NOW)
    assert ledger.merge(node(seq=0, incarnation=2), now=NOW) is not None
    assert ledger.merge(node(seq=901, incarnation=1), now=NOW) is None
    assert ledger.records() == [seen(node(seq=0, incarnation=2), NOW)]


@pytest.mark.parametrize("in_flight", [(1, 2), (2, 1)])
def test_one_version_with_two_contents_is_settled_alike_everywhere(in_flight: tuple[int, int]) -> None:
    ledger = Ledger()
    for number in in_flight:
        ledger.merge(node(in_flight=number), now=NOW)
    assert row(ledger).in_flight == 2


def test_a_signed_copy_replaces_an_unsigned_one_silently() -> None:
    ledger = Ledger()
    ledger.merge(node(), now=NOW)
    assert ledger.merge(node(), signed=b"proof", now=NOW) is None
    assert ledger.merge(node(), now=NOW) is None
    assert ledger.get("a") == Row(seen(node(), NOW), b"proof")


# The receiver's clock


@pytest.mark.parametrize("wrong", [-timedelta(hours=1), timedelta(hours=1), timedelta(days=9999)])
def test_the_senders_clock_does_not_matter(wrong: timedelta) -> None:
    ledger = Ledger()
    ledger.merge(node(last_seen=NOW + wrong), now=NOW)
    assert row(ledger).last_seen == NOW
    assert ledger.online(NOW + NODE_ONLINE_WINDOW - MOMENT) == ledger.records()
    assert ledger.online(NOW + NODE_ONLINE_WINDOW) == []


def test_age_travels() -> None:
    ledger = Ledger()
    ledger.merge(node(), now=NOW, age=timedelta(seconds=39))
    assert row(ledger).last_seen == NOW - timedelta(seconds=39)
    assert len(ledger.online(NOW)) == 1
    assert ledger.online(NOW + SECOND) == []


def test_nobody_was_seen_in_the_future() -> None:
    ledger = Ledger()
    ledger.merge(node(), now=NOW, age=-timedelta(days=1))
    assert row(ledger).last_seen == NOW


def test_a_younger_copy_of_a_known_version_refreshes_it_silently() -> None:
    ledger = Ledger()
    ledger.merge(node(), now=NOW, age=20 * SECOND)
    assert ledger.merge(node(), now=NOW, age=5 * SECOND) is None
    assert row(ledger).last_seen == NOW - 5 * SECOND
    assert ledger.merge(node(), now=NOW, age=10 * SECOND) is None
    assert row(ledger).last_seen == NOW - 5 * SECOND


def test_a_younger_copy_that_brings_the_peer_back_is_a_change() -> None:
    ledger = Ledger()
    ledger.merge(node(), now=NOW)
    later = NOW + NODE_ONLINE_WINDOW
    assert ledger.merge(node(), now=later, age=SECOND) == Change("a", seen(node(), NOW), seen(node(), later - SECOND))


def test_a_younger_copy_that_leaves_the_peer_offline_is_none() -> None:
    ledger = Ledger()
    ledger.merge(node(), now=NOW)
    assert ledger.merge(node(), now=NOW + 2 * NODE_ONLINE_WINDOW, age=NODE_ONLINE_WINDOW) is None
    assert row(ledger).last_seen == NOW + NODE_ONLINE_WINDOW


# Leaving


def test_a_tombstone_takes_the_peer_offline_at_once() -> None:
    ledger = Ledger()
    ledger.merge(node(seq=1), now=NOW)
    change = ledger.merge(node(seq=2, left=True), now=NOW)
    assert change == Change("a", seen(node(seq=1), NOW), seen(node(seq=2, left=True), NOW))
    assert ledger.online(NOW) == []
    assert "a" in ledger


def test_a_late_record_does_not_raise_the_dead() -> None:
    ledger = Ledger()
    ledger.merge(node(seq=2, left=True), now=NOW)
    assert ledger.merge(node(seq=1), now=NOW) is None
    assert ledger.online(NOW) == []


def test_a_restart_does() -> None:
    ledger = Ledger()
    ledger.merge(node(seq=2, left=True), now=NOW)
    assert ledger.merge(node(seq=0, incarnation=1), now=NOW) is not None
    assert ledger.online(NOW) == [seen(node(seq=0, incarnation=1), NOW)]


# Forgetting


@pytest.mark.parametrize(("left", "after"), [(False, timedelta(hours=1)), (True, timedelta(hours=1))])
def test_expire(left: bool, after: timedelta) -> None:
    ledger = Ledger()
    record = node(left=left)
    ledger.merge(record, now=NOW)
    assert ledger.expire(NOW + after - MOMENT) == []
    assert "a" in ledger
    assert ledger.expire(NOW + after) == [Change("a", seen(record, NOW), None)]
    assert "a" not in ledger
    assert ledger.expire(NOW + after) == []


def test_expire_spares_who_was_heard_since() -> None:
    ledger = Ledger()
    ledger.merge(node("a"), now=NOW)
    ledger.merge(node("b"), now=NOW)
    ledger.merge(node("b", seq=1), now=NOW + SECOND)
    assert [change.peer_id for change in ledger.expire(NOW + FORGET_AFTER)] == ["a"]
    assert list(ledger.digest()) == ["b"]


@pytest.mark.parametrize(("left", "age"), [(False, FORGET_AFTER), (True, FORGET_AFTER)])
def test_what_would_be_forgotten_is_not_let_in(left: bool, age: timedelta) -> None:
    """Or two ledgers would hand each other the same stale record for ever."""
    ledger = Ledger()
    assert ledger.merge(node(left=left), now=NOW, age=age) is None
    assert len(ledger) == 0
    assert ledger.merge(node(left=left), now=NOW, age=age - MOMENT) is not None
    assert ledger.expire(NOW) == []


def test_an_absurd_age_is_refused_not_computed() -> None:
    ledger = Ledger()
    assert ledger.merge(node(), now=NOW, age=timedelta.max) is None
    assert ledger.merge(node(), now=NOW, age=timedelta.min) is not None


# Bounded size


def full(*ages: timedelta, **fields: Any) -> Ledger:
    """A full ledger of peers "0", "1", ... seen that long ago."""
    ledger = Ledger(max_rows=len(ages))
    for number, age in enumerate(ages):
        ledger.merge(node(str(number), **fields), now=NOW, age=age)
    assert len(ledger) == len(ages)
    return ledger


def test_nobody_online_gives_way() -> None:
    ledger = full(NODE_ONLINE_WINDOW - MOMENT, SECOND)
    assert ledger.merge(node("new"), now=NOW) is None
    assert set(ledger.digest()) == {"0", "1"}


def test_a_full_ledger_still_takes_updates() -> None:
    ledger = full(SECOND, SECOND)
    assert ledger.merge(node("1", seq=1), now=NOW) is not None
    assert ledger.digest() == {"0": (0, 0), "1": (0, 1)}


def test_the_longest_silent_gives_way() -> None:
    ledger = full(SECOND, 2 * NODE_ONLINE_WINDOW, 3 * NODE_ONLINE_WINDOW, NODE_ONLINE_WINDOW)
    change = ledger.merge(node("new"), now=NOW)
    evicted = seen(node("2"), NOW - 3 * NODE_ONLINE_WINDOW)
    assert change == Change("new", None, seen(node("new"), NOW), evicted)
    assert set(ledger.digest()) == {"0", "1", "3", "new"}


def test_who_left_gives_way() -> None:
    ledger = full(NODE_ONLINE_WINDOW - MOMENT, SECOND)
    ledger.merge(node("1", seq=1, left=True), now=NOW)
    assert ledger.merge(node("new"), now=NOW, age=SECOND) is not None
    assert set(ledger.digest()) == {"0", "new"}


def test_hearsay_does_not_push_out_fresher_rows() -> None:
    ledger = full(NODE_ONLINE_WINDOW, NODE_ONLINE_WINDOW)
    assert ledger.merge(node("new"), now=NOW, age=NODE_ONLINE_WINDOW) is None
    assert ledger.merge(node("new"), now=NOW, age=2 * NODE_ONLINE_WINDOW) is None
    assert set(ledger.digest()) == {"0", "1"}


def test_forgetting_makes_room() -> None:
    ledger = full(SECOND, SECOND)
    assert len(ledger.expire(NOW + FORGET_AFTER)) == 2
    assert ledger.merge(node("new"), now=NOW + FORGET_AFTER) is not None


@laws
@given(
    st.lists(st.builds(Arrival, st.builds(node, st.text("abcdefgh", min_size=1), left=st.booleans()), st.just(b""), ages))
)
def test_size_is_bounded_and_evictions_are_told(history: list[Arrival]) -> None:
    ledger, present = Ledger(max_rows=3), set()
    for record, signed, age in history:
        change = ledger.merge(record, signed=signed, now=NOW, age=age)
        if change is not None:
            present.add(change.peer_id)
            if change.evicted is not None:
                assert not change.evicted.is_online_at(NOW)
                present.remove(change.evicted.peer_id)
        assert set(ledger.digest()) == present
        assert len(ledger) <= 3


def test_the_default_bound() -> None:
    ledger = Ledger()
    for number in range(4097):
        ledger.merge(node(str(number)), now=NOW)
    assert len(ledger) == 4096
    assert "4096" not in ledger


# A flood of invented peers


def test_who_is_linked_takes_the_place_of_any_other_and_gives_way_to_nobody() -> None:
    real = {"0", "new", "newer", "newest"}
    ledger = Ledger(3, is_linked=real.__contains__)
    for name in ("0", "1", "2"):
        ledger.merge(node(name), now=NOW)
    change = ledger.merge(node("new"), now=NOW)
    assert change is not None
    assert change.evicted is not None
    assert change.evicted.peer_id == "1"
    assert ledger.merge(node("newer"), now=NOW, age=2 * SECOND) is not None
    assert set(ledger.digest()) == {"0", "new", "newer"}
    assert ledger.merge(node("newest"), now=NOW) is None
    assert ledger.merge(node("invented"), now=NOW) is None


def test_that_nobody_gives_way_is_remembered_for_a_while_and_not_for_who_is_linked() -> None:
    ledger = Ledger(2, is_linked={"real"}.__contains__)
    ledger.merge(node("0"), now=NOW, age=NODE_ONLINE_WINDOW - MOMENT)
    ledger.merge(node("1"), now=NOW)
    assert ledger.merge(node("new"), now=NOW) is None
    assert ledger.merge(node("new"), now=NOW + FULL_FOR / 2) is None  # "0" is offline by now, but nobody looks
    assert ledger.merge(node("real"), now=NOW + FULL_FOR / 2) is not None
    assert ledger.merge(node("real", seq=1), now=NOW + FULL_FOR / 2) is not None
    later = Ledger(2)
    later.merge(node("0"), now=NOW, age=NODE_ONLINE_WINDOW - MOMENT)
    later.merge(node("1"), now=NOW)
    assert later.merge(node("new"), now=NOW) is None
    assert later.merge(node("new"), now=NOW + FULL_FOR) is not None


def test_bytes_are_bounded_too() -> None:
    ledger = Ledger(max_bytes=100, is_linked={"real"}.__contains__)
    assert ledger.merge(node("0"), signed=bytes(60), now=NOW, age=2 * NODE_ONLINE_WINDOW)
    assert ledger.merge(node("1"), signed=bytes(30), now=NOW)
    change = ledger.merge(node("2"), signed=bytes(60), now=NOW)
    assert change is not None
    assert change.evicted is not None
    assert change.evicted.peer_id == "0"
    assert ledger.merge(node("3"), signed=bytes(20), now=NOW) is None
    assert ledger.merge(node("1", seq=1), signed=bytes(50), now=NOW) is None  # nor does a row outgrow it
    assert ledger.digest() == {"1": (0, 0), "2": (0, 0)}
    assert ledger.merge(node("1", seq=1), signed=bytes(5), now=NOW)
    assert ledger.merge(node("3"), signed=bytes(20), now=NOW)
    assert len(ledger.expire(NOW + FORGET_AFTER)) == 3
    assert ledger.merge(node("4"), signed=bytes(100), now=NOW)


def test_a_row_that_replaces_a_smaller_one_has_to_fit() -> None:
    """Small offline rows in all places would otherwise be exchanged for as many large ones."""
    ledger = Ledger(3, max_bytes=100, is_linked={"real"}.__contains__)
    for n in range(3):
        assert ledger.merge(node(str(n)), signed=bytes(30), now=NOW, age=2 * NODE_ONLINE_WINDOW)
    assert ledger.merge(node("large"), signed=bytes(60), now=NOW) is None
    assert ledger.merge(node("fits"), signed=bytes(40), now=NOW)
    assert ledger.merge(node("real"), signed=bytes(60), now=NOW)


def test_gpus_count_for_what_they_take_in_memory() -> None:
    gpus = (Gpu(name="", total_vram=0, available_vram=0),) * 2
    ledger = Ledger(max_bytes=4 * GPU_BYTES + 100)
    for n in range(2):
        assert ledger.merge(node(str(n), gpus=gpus), signed=bytes(10), now=NOW)
    assert ledger.merge(node("2", gpus=gpus), signed=bytes(10), now=NOW) is None
    assert ledger.merge(node("0", seq=1), signed=bytes(10), now=NOW)  # the row has none any more
    assert ledger.merge(node("2", gpus=gpus), signed=bytes(10), now=NOW)


# Anti-entropy


def test_digest() -> None:
    ledger = Ledger()
    ledger.merge(node("a", seq=7, incarnation=2), now=NOW)
    ledger.merge(node("b", seq=1, left=True), now=NOW)
    assert ledger.digest() == {"a": (2, 7), "b": (0, 1)}


def test_missing_is_what_the_other_lacks_or_has_older() -> None:
    ledger = Ledger()
    for peer_id in ("absent", "older", "same", "newer", "restarted"):
        ledger.merge(node(peer_id, seq=5, incarnation=1), signed=peer_id.encode(), now=NOW)
    other = {"older": (1, 4), "same": (1, 5), "newer": (1, 6), "restarted": (2, 0), "stranger": (9, 9)}
    assert [row.signed for row in ledger.missing(other)] == [b"absent", b"older"]


def test_missing_carries_tombstones() -> None:
    ledger = Ledger()
    ledger.merge(node(seq=2, left=True), signed=b"bye", now=NOW)
    assert [row.signed for row in ledger.missing({"a": (0, 1)})] == [b"bye"]


def test_missing_passes_on_the_bytes_that_were_signed() -> None:
    """And the record's age at that moment, so that a relayed record is no younger than it is."""
    first, second = Ledger(), Ledger()
    first.merge(node(), signed=b"proof", now=NOW)
    later = NOW + 30 * SECOND
    (row,) = first.missing(second.digest())
    hour_off = timedelta(hours=1)
    second.merge(row.record, signed=row.signed, now=later + hour_off, age=later - row.record.last_seen)
    assert second.get("a") == Row(seen(node(), later + hour_off - 30 * SECOND), b"proof")
    assert second.missing(first.digest()) == []


# Reading


def test_online_lists_only_who_is() -> None:
    ledger = Ledger()
    ledger.merge(node("silent"), now=NOW, age=NODE_ONLINE_WINDOW)
    ledger.merge(node("left", left=True), now=NOW)
    ledger.merge(node("draining", draining=True), now=NOW)
    ledger.merge(node("fine"), now=NOW)
    assert [record.peer_id for record in ledger.online(NOW)] == ["draining", "fine"]
    assert [record.peer_id for record in ledger.records()] == ["silent", "left", "draining", "fine"]
