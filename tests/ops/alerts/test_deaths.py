"""When a death is told and when a return: tables of looks, without a clock."""

from __future__ import annotations

import pytest

from federation.ops.alerts.deaths import FLAPS_WITHIN_S, MAX_DOUBLINGS, MAX_ROWS, Sight, Trouble, Watch

WAIT_S = 30.0
NOBODY: frozenset[str] = frozenset()


class Seen:
    """One machine, looked at once a second."""

    def __init__(self) -> None:
        self.watch = Watch()
        self.now = 0.0
        self.since = 0.0
        self.trouble: Trouble = ""
        self.told: list[tuple[float, str]] = []

    def stays(self, seconds: float, trouble: Trouble) -> None:
        if trouble != self.trouble:
            self.trouble, self.since = trouble, self.now
        end = self.now + seconds
        while self.now < end:
            self.now += 1
            sight = Sight("bergen", trouble, self.since if trouble else self.now, WAIT_S)
            self.told += [(self.now, news.kind) for news in self.watch.look(self.now, {"b": sight}, NOBODY)]


def test_once_for_a_death_and_once_for_a_return() -> None:
    seen = Seen()
    seen.stays(10, "")
    seen.stays(100, "silent")
    seen.stays(100, "")
    assert seen.told == [(40.0, "died"), (141.0, "returned")]


@pytest.mark.parametrize("away", [1, 5, 29])
def test_a_short_absence_is_none(away: int) -> None:
    seen = Seen()
    for _ in range(5):
        seen.stays(40, "")
        seen.stays(away, "silent")
    assert seen.told == []


def test_one_that_comes_and_goes_is_told_less_and_less() -> None:
    seen = Seen()
    seen.stays(40, "")
    for _ in range(40):
        seen.stays(45, "silent")
        seen.stays(45, "")
    assert [kind for _, kind in seen.told] == ["died", "returned"]  # from then on it has to stay away for a minute
    seen.stays(200, "silent")
    assert [kind for _, kind in seen.told] == ["died", "returned", "died"]
    seen.stays(FLAPS_WITHIN_S, "")
    seen.stays(40, "silent")
    assert [kind for _, kind in seen.told] == ["died", "returned"] * 2 + ["died"]  # an hour later it is as at first


def test_patience_has_an_end() -> None:
    seen = Seen()
    seen.stays(40, "")
    for _ in range(3 * MAX_DOUBLINGS):
        seen.stays(1100, "silent")
        seen.stays(1100, "")
    deaths = [at for at, kind in seen.told if kind == "died"]
    assert len(deaths) == len(seen.told) / 2 == 3 * MAX_DOUBLINGS


def test_a_server_that_dies_first_and_its_machine_then_are_one_death() -> None:
    seen = Seen()
    seen.stays(10, "")
    seen.stays(40, "no server")
    seen.stays(100, "silent")
    seen.stays(40, "")
    assert [kind for _, kind in seen.told] == ["died", "returned"]


def test_a_good_bye_is_no_death_and_ends_what_is_known() -> None:
    watch = Watch()
    for now, trouble, gone in ((0.0, "", ()), (1.0, "silent", ("b",)), (60.0, "silent", ("b",)), (61.0, "", ())):
        sight = Sight("bergen", trouble, 1.0, WAIT_S)  # type: ignore[arg-type]
        assert watch.look(now, {"b": sight}, frozenset(gone)) == []


@pytest.mark.parametrize("first", [Sight("b", "silent", 0.0, WAIT_S), Sight("b", "", 0.0, WAIT_S, is_linked=False)])
def test_one_that_was_never_here_does_not_die(first: Sight) -> None:
    watch = Watch()
    watch.look(0.0, {"b": first}, NOBODY)
    assert watch.look(1000.0, {"b": Sight("b", "silent", 0.0, WAIT_S)}, NOBODY) == []
    assert len(watch) == 0


def test_one_that_was_met_between_two_looks_does() -> None:
    watch = Watch()
    watch.look(0.0, {}, NOBODY)
    watch.meet("b", Sight("bergen", "", 0.2, WAIT_S))
    assert watch.look(1.0, {"b": Sight("bergen", "silent", 0.5, WAIT_S)}, NOBODY) == []
    (died,) = watch.look(31.0, {"b": Sight("bergen", "silent", 0.5, WAIT_S)}, NOBODY)
    assert (died.kind, died.at) == ("died", 0.5)


def test_one_that_was_told_dead_and_is_forgotten_may_return() -> None:
    watch = Watch()
    watch.look(0.0, {"b": Sight("bergen", "", 0.0, WAIT_S)}, NOBODY)
    (died,) = watch.look(60.0, {"b": Sight("bergen", "silent", 5.0, WAIT_S)}, NOBODY)
    assert (died.kind, died.name, died.trouble, died.at) == ("died", "bergen", "silent", 5.0)
    watch.look(8000.0, {}, NOBODY)  # no ledger has it any more
    watch.look(9000.0, {"b": Sight("bergen", "", 0.0, WAIT_S)}, NOBODY)
    (back,) = watch.look(9031.0, {"b": Sight("bergen", "", 0.0, WAIT_S)}, NOBODY)
    assert (back.kind, back.at) == ("returned", 9000.0)


def test_it_watches_so_many() -> None:
    watch = Watch()
    watch.look(0.0, {f"m{n}": Sight("", "", 0.0, WAIT_S) for n in range(MAX_ROWS + 5)}, NOBODY)
    assert len(watch) == MAX_ROWS
