from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from federation.net.dial.address import PeerAddress
from federation.net.dial.book import (
    BACKOFF_FIRST_S,
    BACKOFF_JITTER,
    BACKOFF_MAX_S,
    DROP_AFTER_S,
    MAX_ADDRESSES,
    MAX_OURS,
    MAX_PEERS,
    STABLE_S,
    TOGETHER_S,
    AddressBook,
    Source,
    Target,
    backoff,
)

ME, ALICE, BOB = (f"12D3KooW{letter * 44}" for letter in "MAB")
LAN = PeerAddress("192.168.1.5", 4484, ALICE)
WAN = PeerAddress("198.51.100.7", 4484, ALICE)
NAME = PeerAddress("alice.example", 4484, ALICE)
TYPED = PeerAddress("boot.example", 4484)  # by a person, who does not know the peer id


@pytest.mark.parametrize(
    ("failures", "seconds"),
    [(1, 0.25), (2, 0.5), (3, 1.0), (4, 2.0), (5, 4.0), (6, 8.0), (7, 16.0), (8, 30.0), (9, 30.0), (10**6, 30.0)],
)
def test_backoff_doubles_up_to_the_cap(failures: int, seconds: float) -> None:
    assert backoff(failures, 0.0) == seconds
    assert backoff(failures, 0.5) == seconds * (1 - BACKOFF_JITTER / 2)
    assert backoff(failures, 1.0) == seconds * (1 - BACKOFF_JITTER)


class NoJitter(random.Random):
    def random(self) -> float:
        return 0.0


@pytest.fixture
def book() -> AddressBook:
    return AddressBook(rng=NoJitter())


def due(book: AddressBook, now: float, *connected: str) -> list[Target]:
    return list(book.due(now, connected=connected, self_id=ME))


def dial_in_vain(book: AddressBook, now: float, *, permanent: bool = False) -> None:
    [target] = due(book, now)
    book.started(target)
    book.failed(target, now, permanent=permanent)


class TestWhatIsDue:
    def test_a_peer_is_one_target_with_all_its_addresses(self, book: AddressBook) -> None:
        book.add(LAN, source="record")
        book.add(WAN, source="record")
        assert due(book, 0.0) == [Target(ALICE, (LAN, WAN))]

    def test_an_address_without_a_peer_is_a_target_of_its_own(self, book: AddressBook) -> None:
        book.add(TYPED, source="peer")
        assert due(book, 0.0) == [Target(None, (TYPED,))]

    def test_not_who_is_connected_nor_ourselves(self, book: AddressBook) -> None:
        book.add(LAN, source="token")
        book.add(replace(LAN, peer_id=ME), source="token")
        assert due(book, 0.0, ALICE) == []

    def test_not_while_dialling(self, book: AddressBook) -> None:
        book.add(LAN, source="token")
        [target] = due(book, 0.0)
        book.started(target)
        assert due(book, 1e9) == []
        assert book.next_due(0.0) is None

    def test_not_in_backoff_and_next_due_says_until_when(self, book: AddressBook) -> None:
        book.add(LAN, source="token")
        now = 100.0
        for wait in (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0):
            dial_in_vain(book, now)
            assert due(book, now + wait - 0.001) == []
            assert book.next_due(now) == now + wait
            now += wait
        assert due(book, now) != []
        assert book.next_due(now) is None

    def test_another_network_waits_for_the_whole_cap_at_once(self, book: AddressBook) -> None:
        book.add(LAN, source="token")
        dial_in_vain(book, 0.0, permanent=True)
        assert book.next_due(0.0) == BACKOFF_MAX_S

    def test_the_most_promising_first(self, book: AddressBook) -> None:
        book.add(LAN, source="token")
        dial_in_vain(book, 0.0)
        book.add(replace(LAN, peer_id=BOB), source="token")
        assert [target.peer_id for target in due(book, 1.0)] == [BOB, ALICE]

    def test_jitter_is_drawn_from_the_generator_given(self) -> None:
        waits = set()
        for seed in range(20):
            book = AddressBook(rng=random.Random(seed))
            book.add(LAN, source="token")
            dial_in_vain(book, 0.0)
            waits.add(book.next_due(0.0))
        assert len(waits) == 20
        assert all(wait and BACKOFF_FIRST_S * (1 - BACKOFF_JITTER) <= wait <= BACKOFF_FIRST_S for wait in waits)


class TestSuccess:
    def test_ends_the_backoff(self, book: AddressBook) -> None:
        book.add(LAN, source="token")
        for now in (0.0, 10.0, 20.0):
            dial_in_vain(book, now)
        book.succeeded(LAN, ALICE, 40.0)
        assert due(book, 100.0) != []  # it went away
        dial_in_vain(book, 100.0)
        assert book.next_due(100.0) == 100.0 + BACKOFF_FIRST_S

    @pytest.mark.parametrize("by_us", [True, False])
    def test_what_was_lost_together_is_tried_at_once_when_one_is_back(self, book: AddressBook, by_us: bool) -> None:
        bobs = replace(WAN, peer_id=BOB)
        for address in (LAN, bobs):
            book.add(address, source="record")
        now = 0.0
        while now < 100.0:
            for target in due(book, now):
                book.started(target)
                book.failed(target, now)
            now = book.next_due(now) or now
        if by_us:
            book.succeeded(LAN, ALICE, now - 1.0)
        else:
            book.dialled_us(ALICE, now - 1.0)
        assert [target.peer_id for target in due(book, now - 1.0, ALICE)] == [BOB]

    def test_what_was_lost_for_another_reason_is_not(self, book: AddressBook) -> None:
        book.add(LAN, source="record")
        dial_in_vain(book, 0.0)
        book.add(replace(WAN, peer_id=BOB), source="record")
        for target in due(book, TOGETHER_S + 0.1):
            book.started(target)
            book.failed(target, TOGETHER_S + 0.1, permanent=True)
        book.dialled_us(ALICE, TOGETHER_S + 0.1)
        assert due(book, TOGETHER_S + BACKOFF_MAX_S, ALICE) == []

    def test_a_peer_that_dialled_us_is_dialled_soon_when_it_is_gone(self, book: AddressBook) -> None:
        book.add(LAN, source="record")
        for now in (0.0, 10.0, 20.0):
            dial_in_vain(book, now)
        book.dialled_us(ALICE, 20.1)
        book.dialled_us(BOB, 20.1)  # of whom nothing is known
        assert due(book, 20.1 + BACKOFF_FIRST_S) != []

    def test_the_address_that_worked_is_tried_first(self, book: AddressBook) -> None:
        book.add(LAN, source="record")
        book.add(WAN, source="record")
        book.succeeded(WAN, ALICE, 1.0)
        assert book.addresses(ALICE) == [WAN, LAN]
        book.succeeded(LAN, ALICE, 2.0)
        assert book.addresses(ALICE) == [LAN, WAN]

    def test_who_accepts_and_closes_at_once_is_not_redialled_in_a_busy_loop(self, book: AddressBook) -> None:
        book.add(LAN, source="token")
        now, dials = 0.0, 0
        while now < 60.0:
            for target in due(book, now):
                book.started(target)
                book.succeeded(LAN, ALICE, now)
                dials += 1
            now = book.next_due(now) or now + 0.01
        assert dials < 40

    def test_nor_is_it_when_it_keeps_announcing_itself(self, book: AddressBook) -> None:
        dials = 0
        for step in range(1000):  # over ten seconds
            book.add(LAN, source="mdns")
            for target in due(book, step / 100):
                book.started(target)
                book.succeeded(LAN, ALICE, step / 100)
                dials += 1
        assert dials <= 10 / BACKOFF_FIRST_S + 1

    def test_a_connection_that_lasted_costs_nothing_when_it_ends(self, book: AddressBook) -> None:
        book.add(LAN, source="token")
        for now in (0.0, STABLE_S, 2 * STABLE_S):
            [target] = due(book, now)
            book.started(target)
            book.succeeded(LAN, ALICE, now)
            assert book.next_due(now) == now + BACKOFF_FIRST_S


class TestSightings:
    def test_mdns_ends_the_backoff(self, book: AddressBook) -> None:
        book.add(LAN, source="mdns")
        for now in (0.0, 10.0, 20.0):
            dial_in_vain(book, now)
        assert book.add(LAN, source="mdns")
        assert due(book, 20.0 + BACKOFF_FIRST_S) != []

    def test_a_new_address_ends_the_backoff_a_repeated_one_does_not(self, book: AddressBook) -> None:
        book.add(LAN, source="record")
        dial_in_vain(book, 0.0, permanent=True)
        assert not book.add(LAN, source="record")
        assert due(book, BACKOFF_FIRST_S) == []
        assert book.add(WAN, source="record")
        assert due(book, BACKOFF_FIRST_S) != []

    def test_so_does_a_new_incarnation(self, book: AddressBook) -> None:
        book.add(LAN, source="record")
        dial_in_vain(book, 0.0, permanent=True)
        book.refresh(ALICE)
        book.refresh(BOB)  # unknown: nothing to refresh
        assert due(book, BACKOFF_FIRST_S) != []

    def test_a_flood_of_them_is_no_flood_of_dials(self, book: AddressBook) -> None:
        book.add(LAN, source="mdns")
        dials = 0
        for step in range(1000):  # over ten seconds
            now = step / 100
            book.add(LAN, source="mdns")
            for target in due(book, now):
                book.started(target)
                book.failed(target, now)
                dials += 1
        assert dials <= 10 / BACKOFF_FIRST_S + 1

    def test_they_do_not_touch_a_running_dial(self, book: AddressBook) -> None:
        book.add(LAN, source="mdns")
        [target] = due(book, 0.0)
        book.started(target)
        book.add(WAN, source="mdns")
        assert due(book, 1.0) == []

    def test_addresses_go_by_source_then_as_announced(self, book: AddressBook) -> None:
        sources = ("dht", "saved", "record", "record", "mdns", "token")
        told = [replace(LAN, port=port) for port in range(1, 7)]
        for address, source in zip(told, sources, strict=True):
            book.add(address, source=source)  # type: ignore[arg-type]
        assert [address.port for address in book.addresses(ALICE)] == [6, 5, 3, 4, 2, 1]
        book.add(told[0], source="peer")  # a person names what was hearsay
        assert book.addresses(ALICE)[0] == told[0]
        book.add(told[0], source="record")  # which does not make it hearsay again
        assert book.addresses(ALICE)[0] == told[0]
        assert book.addresses(BOB) == []

    def test_update_forgets_what_the_source_no_longer_names(self, book: AddressBook) -> None:
        typed, heard, moved = (replace(LAN, port=port) for port in (1, 2, 3))
        book.add(typed, source="token")
        book.add(heard, source="mdns")
        assert book.update(ALICE, [replace(LAN, peer_id=None), WAN], source="record")
        assert book.update(ALICE, [moved], source="record")
        assert book.addresses(ALICE) == [typed, heard, moved]
        assert not book.update(ALICE, [moved], source="record")
        assert not book.update(ALICE, [], source="record")
        assert book.addresses(ALICE) == [typed, heard]

    def test_update_to_nothing_forgets_the_peer(self, book: AddressBook) -> None:
        book.update(ALICE, [LAN], source="record")
        book.update(ALICE, [], source="record")
        assert ALICE not in book
        assert len(book) == 0

    def test_update_keeps_the_backoff_of_a_peer_whose_addresses_all_changed(self, book: AddressBook) -> None:
        book.update(ALICE, [LAN], source="record")
        [target] = due(book, 0.0)
        book.started(target)
        book.update(ALICE, [WAN], source="record")
        assert due(book, 0.0) == []  # still dialling


class TestHearsay:
    """Anybody may announce peers that do not exist, by the thousand."""

    def test_what_answered_before_or_a_person_said_goes_first(self) -> None:
        book = AddressBook()
        book.add(PeerAddress("192.0.2.1", 1, "12D3KooW" + "A" * 44), source="record")
        book.add(PeerAddress("192.0.2.2", 1, "12D3KooW" + "B" * 44), source="record")
        book.add(PeerAddress("192.0.2.3", 1, "12D3KooW" + "C" * 44), source="token")
        book.add(PeerAddress("192.0.2.4", 1), source="mdns")
        book.succeeded(PeerAddress("192.0.2.2", 1, "12D3KooW" + "B" * 44), "12D3KooW" + "B" * 44, 0.0)
        for target in book.due(100.0, connected=(), self_id="me"):
            if target.peer_id in ("12D3KooW" + "B" * 44, "12D3KooW" + "C" * 44):
                book.failed(target, 100.0)
        due = list(book.due(1000.0, connected=(), self_id="me"))
        hosts = [target.addresses[0].host for target in due]
        assert hosts[0] == "192.0.2.4"  # it never failed
        assert set(hosts[1:3]) == {"192.0.2.2", "192.0.2.3"}
        assert hosts[3] == "192.0.2.1"
        assert [target.proven for target in due] == [True, True, True, False]


class TestWhatIsForgotten:
    def test_what_the_network_told_after_an_hour_of_failures(self, book: AddressBook) -> None:
        for index, source in enumerate(("record", "mdns", "saved", "dht")):
            book.add(PeerAddress("192.168.1.5", 4484, f"12D3KooW{str(index + 1) * 44}"), source=source)  # type: ignore[arg-type]
        for now in (0.0, DROP_AFTER_S - 1.0):
            for target in due(book, now):
                book.failed(target, now)
        assert len(book) == 4
        for target in due(book, 2 * DROP_AFTER_S):
            book.failed(target, 2 * DROP_AFTER_S)
        assert len(book) == 0

    def test_what_a_person_gave_never(self, book: AddressBook) -> None:
        book.add(LAN, source="token")
        book.add(WAN, source="record")
        book.add(TYPED, source="peer")
        for day in range(10):
            for target in due(book, day * 86400.0):
                book.failed(target, day * 86400.0)
        book.forget(ALICE)
        assert due(book, 1e9) == [Target(ALICE, (LAN,)), Target(None, (TYPED,))]

    def test_a_connection_starts_the_hour_anew(self, book: AddressBook) -> None:
        book.add(LAN, source="record")
        dial_in_vain(book, 0.0)
        book.succeeded(LAN, ALICE, 60.0)
        dial_in_vain(book, DROP_AFTER_S + 1.0)
        assert ALICE in book

    def test_a_sighting_starts_the_hour_anew(self, book: AddressBook) -> None:
        book.add(LAN, source="mdns")
        dial_in_vain(book, 0.0)
        book.add(LAN, source="mdns")
        dial_in_vain(book, DROP_AFTER_S + 1.0)
        assert ALICE in book

    def test_a_peer_that_left(self, book: AddressBook) -> None:
        book.add(LAN, source="mdns")
        [target] = due(book, 0.0)
        book.forget(ALICE)
        book.forget(BOB)
        assert due(book, 0.0) == []
        book.started(target)  # a dial that was on its way does no harm
        book.failed(target, 0.0)
        assert len(book) == 0

    def test_an_address_that_turned_out_to_be_our_own(self, book: AddressBook) -> None:
        bridge = PeerAddress("172.17.0.1", 4484, ALICE)
        book.add(bridge, source="record")
        book.add(LAN, source="record")
        book.add(PeerAddress("172.17.0.1", 4484), source="peer")
        book.ourselves(replace(bridge, peer_id=None))
        assert due(book, 0.0) == [Target(ALICE, (LAN,))]
        assert not book.add(bridge, source="record")  # it announces it every five seconds
        assert book.addresses(ALICE) == [LAN]
        assert book.add(replace(bridge, peer_id=BOB), source="peer")  # a person insists

    def test_our_own_are_bounded_too(self, book: AddressBook) -> None:
        for port in range(1, MAX_OURS + 2):
            book.ourselves(replace(LAN, port=port))
        assert book.add(replace(LAN, port=1), source="record")
        assert not book.add(replace(LAN, port=2), source="record")


class TestAddressWithoutPeer:
    def test_its_peer_goes_first_once_it_is_known(self, book: AddressBook) -> None:
        book.add(TYPED, source="peer")
        book.succeeded(TYPED, ALICE, 0.0)
        known = replace(TYPED, peer_id=ALICE)
        assert book.addresses(ALICE) == [known]
        assert list(book) == [ALICE]
        assert due(book, 100.0, ALICE) == []
        [target] = due(book, 100.0)
        assert target == Target(ALICE, (known,))
        book.started(target)
        assert due(book, 100.0) == []

    def test_it_is_tried_again_when_its_peer_does_not_answer(self, book: AddressBook) -> None:
        book.add(TYPED, source="peer")
        book.succeeded(TYPED, ALICE, 0.0)
        dial_in_vain(book, 100.0)
        assert due(book, 100.0) == [Target(None, (TYPED,))]

    def test_nor_while_its_peer_is_dialled_once_more(self, book: AddressBook) -> None:
        book.add(TYPED, source="peer")
        book.succeeded(TYPED, ALICE, 0.0)
        dial_in_vain(book, 100.0)
        [known] = book.addresses(ALICE)
        book.started(Target(ALICE, (known,)))
        assert due(book, 200.0) == []

    def test_nor_while_its_peer_is_connected_though_forgotten(self, book: AddressBook) -> None:
        book.add(TYPED, source="peer")
        book.succeeded(TYPED, ALICE, 0.0)
        book.forget(ALICE)
        assert due(book, 100.0, ALICE) == []
        assert due(book, 100.0) == [Target(None, (TYPED,))]

    def test_who_was_found_there_is_forgotten_like_any_other(self, book: AddressBook) -> None:
        book.add(TYPED, source="peer")
        book.succeeded(TYPED, ALICE, 0.0)
        dial_in_vain(book, 100.0)
        book.failed(Target(ALICE, tuple(book.addresses(ALICE))), 200.0 + DROP_AFTER_S)
        assert due(book, 1e9) == [Target(None, (TYPED,))]

    def test_a_machine_with_a_new_identity_is_found_again(self, book: AddressBook) -> None:
        book.add(LAN, source="token")
        book.failed(Target(ALICE, (LAN,)), 0.0)
        book.taken_over(LAN)
        anybody = replace(LAN, peer_id=None)
        assert due(book, 0.0) == [Target(None, (anybody,))]
        book.succeeded(anybody, BOB, 0.0)
        assert book.addresses(BOB) == [replace(LAN, peer_id=BOB)]
        assert due(book, BACKOFF_MAX_S, BOB) == [Target(ALICE, (LAN,))]  # a person's word is not forgotten

    def test_but_not_where_only_the_network_said_so(self, book: AddressBook) -> None:
        """Each machine's container bridge has the same address."""
        book.add(LAN, source="record")
        book.taken_over(LAN)
        book.taken_over(WAN)
        assert due(book, 0.0) == [Target(ALICE, (LAN,))]


class TestBounds:
    def test_addresses_of_a_peer_the_one_seen_longest_ago_goes(self, book: AddressBook) -> None:
        typed, worked = replace(LAN, port=1000), replace(LAN, port=1001)
        book.add(typed, source="token")
        book.succeeded(worked, ALICE, 1.0)
        for port in range(1, 3 * MAX_ADDRESSES):
            book.add(replace(LAN, port=port), source="record")
        kept = book.addresses(ALICE)
        assert len(kept) == MAX_ADDRESSES
        assert {typed, worked} < set(kept)
        assert replace(LAN, port=3 * MAX_ADDRESSES - 1) in kept

    def test_addresses_that_are_seen_again_stay(self, book: AddressBook) -> None:
        for port in range(1, MAX_ADDRESSES + 1):
            book.add(replace(LAN, port=port), source="record")
        book.add(replace(LAN, port=1), source="record")
        book.add(WAN, source="record")
        assert replace(LAN, port=1) in book.addresses(ALICE)
        assert replace(LAN, port=2) not in book.addresses(ALICE)

    def test_of_too_many_at_once_the_best_are_kept(self, book: AddressBook) -> None:
        named = [replace(LAN, port=port) for port in range(1, 2 * MAX_ADDRESSES)]
        book.update(ALICE, named, source="record")
        assert book.addresses(ALICE) == named[:MAX_ADDRESSES]

    def test_what_a_person_gave_is_not_pushed_out(self, book: AddressBook) -> None:
        given = [replace(LAN, port=port) for port in range(1, MAX_ADDRESSES + 1)]
        for address in given:
            book.add(address, source="token")
        assert not book.add(WAN, source="mdns")
        assert set(book.addresses(ALICE)) == set(given)

    def test_peers_the_one_that_failed_most_goes_first(self, book: AddressBook) -> None:
        def peer(number: int) -> PeerAddress:
            return PeerAddress("192.0.2.1", number, f"12D3KooW{number:044d}")

        book.add(peer(1), source="token")
        book.failed(Target(peer(1).peer_id, (peer(1),)), -1e6, permanent=True)
        for number in range(2, MAX_PEERS + 1):
            book.add(peer(number), source="record")
        assert not book.add(LAN, source="record")  # all may be fine, so the newcomer waits
        assert len(book) == MAX_PEERS
        assert book.add(replace(TYPED), source="peer")  # but not a person
        assert len(book) == MAX_PEERS
        [target] = [target for target in due(book, 0.0) if target.peer_id == peer(7).peer_id]
        book.failed(target, 0.0)
        assert book.add(LAN, source="record")
        assert len(book) == MAX_PEERS
        assert target.peer_id not in book
        assert peer(1).peer_id in book  # though it failed more often


class BookMachine(RuleBasedStateMachine):
    """Whatever happens in whatever order, these hold."""

    told = st.builds(PeerAddress, st.just("192.0.2.1"), st.integers(1, 2), st.sampled_from([ALICE, BOB, ME, None]))
    peer_ids = st.sampled_from([ALICE, BOB])

    def __init__(self) -> None:
        super().__init__()
        self.book = AddressBook(rng=random.Random(0))
        self.book.add(TYPED, source="peer")
        self.now = 0.0
        self.dialling: list[Target] = []

    @rule(address=told, source=st.sampled_from(["mdns", "record", "saved", "dht"]))
    def add(self, address: PeerAddress, source: Source) -> None:
        self.book.add(address, source=source)

    @rule(peer_id=peer_ids, addresses=st.lists(told))
    def update(self, peer_id: str, addresses: list[PeerAddress]) -> None:
        self.book.update(peer_id, addresses, source="record")

    @rule(peer_id=peer_ids)
    def forget(self, peer_id: str) -> None:
        self.book.forget(peer_id)

    @rule(address=told)
    def ourselves(self, address: PeerAddress) -> None:
        self.book.ourselves(address)

    @rule(seconds=st.sampled_from([0.1, 1.0, 40.0, 4000.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def dial(self) -> None:
        for target in due(self.book, self.now):
            self.book.started(target)
            self.dialling.append(target)

    @precondition(lambda self: self.dialling)
    @rule(answer=st.sampled_from([None, ALICE, BOB]), permanent=st.booleans())
    def end(self, answer: str | None, permanent: bool) -> None:
        target = self.dialling.pop()
        if answer:
            self.book.succeeded(target.addresses[0], answer, self.now)
        else:
            self.book.failed(target, self.now, permanent=permanent)

    @invariant()
    def no_target_is_empty_or_ourselves_or_dialled_twice(self) -> None:
        targets = due(self.book, self.now)
        assert all(target.addresses and target.peer_id != ME for target in targets)
        assert not (Target(None, (TYPED,)) in targets and Target(None, (TYPED,)) in self.dialling)

    @invariant()
    def no_wait_is_longer_than_the_cap(self) -> None:
        next_due = self.book.next_due(self.now)
        assert next_due is None or self.now < next_due <= self.now + BACKOFF_MAX_S

    def teardown(self) -> None:
        """When all else fails, the address that a person gave is dialled."""
        for target in self.dialling:
            self.book.failed(target, self.now)
        for target in due(self.book, self.now + BACKOFF_MAX_S):
            self.book.failed(target, self.now + BACKOFF_MAX_S)
        assert Target(None, (TYPED,)) in due(self.book, self.now + 2 * BACKOFF_MAX_S)


TestBookMachine = BookMachine.TestCase


def test_newcomers_do_not_all_dial_the_same_nodes_first() -> None:
    first = set()
    for n in range(20):
        book = AddressBook(rng=random.Random(n))
        for m in range(10):
            book.add(PeerAddress("192.0.2.1", 1000 + m), source="record")
        first.add(next(book.due(0.0, connected=(), self_id="me")))
    assert len(first) > 5


class TestNear:
    """Addresses on this machine's own networks."""

    @pytest.fixture
    def near(self, book: AddressBook) -> AddressBook:
        book.is_near = lambda address: address.host.startswith("192.168.1.")
        book.add(WAN, source="token")
        book.add(LAN, source="record")
        return book

    def test_go_first(self, near: AddressBook) -> None:
        near.succeeded(WAN, ALICE, 1.0)
        assert near.addresses(ALICE) == [LAN, WAN]

    def test_but_not_after_a_failure_until_they_work_again(self, near: AddressBook) -> None:
        near.missed(LAN, 1.0)
        assert near.addresses(ALICE) == [WAN, LAN]
        near.succeeded(LAN, ALICE, 2.0)
        assert near.addresses(ALICE) == [LAN, WAN]

    def test_what_is_not_known_is_not_missed(self, near: AddressBook) -> None:
        near.missed(replace(LAN, port=1), 1.0)
        near.missed(replace(LAN, peer_id=BOB), 1.0)
        assert near.addresses(ALICE) == [LAN, WAN]


class TestWhatOthersSay:
    """What no person gave, until a member proves itself there."""

    @pytest.fixture
    def picky(self, book: AddressBook) -> AddressBook:
        """Where only public addresses make sense, and trusted ones that are no LAN's."""
        book.may_dial = lambda address, trusted: address.host == WAN.host or (trusted and address.host != LAN.host)
        return book

    @pytest.mark.parametrize("source", ["mdns", "record", "dht"])
    def test_is_dialled_where_it_makes_sense(self, picky: AddressBook, source: Source) -> None:
        for address in (LAN, WAN, NAME):
            picky.add(address, source=source)
        (target,) = due(picky, 0.0)
        assert target.addresses == (WAN,)
        assert target.hearsay == {WAN}
        assert picky.addresses(ALICE) == [WAN]
        picky.may_dial = lambda _address, _trusted: True  # the machine is elsewhere
        assert set(picky.addresses(ALICE)) == {LAN, WAN, NAME}

    @pytest.mark.parametrize("source", ["token", "peer"])
    def test_a_persons_word_is_none(self, picky: AddressBook, source: Source) -> None:
        picky.add(LAN, source=source)
        picky.add(LAN, source="record")
        (target,) = due(picky, 0.0)
        assert (target.addresses, target.hearsay) == ((LAN,), frozenset())

    def test_a_name_that_was_saved_is_trusted_and_paced(self, picky: AddressBook) -> None:
        picky.add(NAME, source="record")
        picky.add(NAME, source="saved")
        (target,) = due(picky, 0.0)
        assert target.hearsay == {NAME}

    def test_where_a_member_proved_itself_it_is_none_any_more(self, picky: AddressBook) -> None:
        picky.add(NAME, source="record")
        assert not picky.has_answered(NAME)
        picky.succeeded(NAME, ALICE, 1.0)
        assert picky.has_answered(NAME)
        (target,) = due(picky, 60.0)
        assert (target.addresses, target.hearsay) == ((NAME,), frozenset())

    def test_a_peer_without_an_address_may_have_a_relay(self, picky: AddressBook) -> None:
        picky.add(LAN, source="record")
        picky.add(replace(LAN, peer_id=None), source="dht")
        (target,) = due(picky, 0.0)
        assert (target.peer_id, target.addresses) == (ALICE, ())

    def test_is_left_alone_for_a_while_whatever_came_of_it(self, book: AddressBook) -> None:
        book.add(WAN, source="record")
        book.add(LAN, source="token")
        book.leave_alone(WAN, until=5.0)
        book.leave_alone(NAME, until=5.0)  # of which nothing is known
        book.missed(WAN, 0.1)
        assert [target.addresses for target in due(book, 4.9)] == [(LAN,)]
        assert [set(target.addresses) for target in due(book, 5.0)] == [{LAN, WAN}]
        book.wake_all()  # what was sent from where this machine was tells nobody anything
        assert [set(target.addresses) for target in due(book, 1.0)] == [{LAN, WAN}]

    def test_a_crowd_costs_a_look_at_those_that_are_taken(self, book: AddressBook) -> None:
        looked: list[PeerAddress] = []
        book.may_dial = lambda address, _trusted: bool(looked.append(address)) or True
        for n in range(1000):
            book.add(replace(WAN, port=n + 1, peer_id=f"peer {n}"), source="record")
        some = book.due(0.0, connected=(), self_id=ME)
        assert len({next(some) for _ in range(3)}) == 3
        assert len(looked) == 3

    def test_is_not_left_alone_once_it_was_right(self, book: AddressBook) -> None:
        """Its link may break at once: this machine moves."""
        book.add(WAN, source="record")
        book.leave_alone(WAN, until=5.0)
        book.succeeded(WAN, ALICE, 1.0)
        assert [target.addresses for target in due(book, 2.0)] == [(WAN,)]

    def test_what_is_worth_saving(self, picky: AddressBook) -> None:
        """A LAN where this machine is not now, but no name and no loopback that another machine named."""
        for address in (LAN, WAN, NAME, replace(LAN, host="127.0.0.1")):
            picky.add(address, source="record")
        assert set(picky.worth_saving(ALICE)) == {LAN, WAN}
        picky.succeeded(NAME, ALICE, 1.0)
        assert set(picky.worth_saving(ALICE)) == {LAN, WAN, NAME}
        assert picky.worth_saving(BOB) == []


def test_where_no_address_answered_last_time_there_is_no_hope(book: AddressBook) -> None:
    book.add(WAN, source="token")
    book.add(LAN, source="record")
    hopes = []
    for change in (
        lambda: None,
        lambda: book.missed(WAN, 1.0),
        lambda: book.missed(LAN, 1.0),
        lambda: book.succeeded(WAN, ALICE, 2.0),
        lambda: book.missed(WAN, 3.0),
        lambda: book.add(replace(LAN, port=9), source="record"),
    ):
        change()
        (target,) = due(book, 1000.0)
        hopes.append(not target.hopeless)
    assert hopes == [True, True, False, True, False, True]


def test_who_is_reached_through_a_relay_is_left_alone_like_one_who_was_dialled(book: AddressBook) -> None:
    book.add(WAN, source="token")
    (target,) = due(book, 0.0)
    book.started(target)
    book.reached(target, 1.0)
    assert due(book, 1.0) == []
    assert due(book, 60.0, ALICE) == []
    assert [again.addresses for again in due(book, 60.0)] == [(WAN,)]
