"""Who is missed: tables of looks, without a clock."""

from __future__ import annotations

import pytest

from federation.mesh.gaps import AFTER_S, ANNOUNCEMENTS, Gaps, Version

LATE = AFTER_S + 1


@pytest.mark.parametrize(
    ("looks", "is_missed"),
    [
        ([(0.0, (1, 1)), (LATE, (1, 1 + ANNOUNCEMENTS))], True),
        ([(0.0, (1, 9)), (LATE, (2, 1))], True),  # it was started anew
        ([(0.0, (1, 1)), (AFTER_S - 1, (1, 9))], False),  # not yet
        ([(0.0, (1, 1)), (LATE, (1, ANNOUNCEMENTS))], False),  # it died: its last word came late
        ([(0.0, (1, 1)), (5.0, None), (LATE, (1, 9))], False),  # a link was there in between
        ([(0.0, (1, 1)), (5.0, None), (LATE, (1, 9)), (2 * LATE, (1, 11))], True),
        ([(0.0, None), (LATE, None)], False),
    ],
)
def test_who_is_alive_and_without_a_link_for_long_is_missed(
    looks: list[tuple[float, Version | None]], is_missed: bool
) -> None:
    gaps = Gaps()
    found = [gaps.look(now, {} if version is None else {"b": version}) for now, version in looks]
    assert found[:-1] == [False] * (len(looks) - 1)
    assert found[-1] is is_missed


def test_one_of_many_is_enough_and_a_move_begins_anew() -> None:
    gaps = Gaps()
    gaps.look(0.0, {"a": (1, 1), "b": (1, 1)})
    assert gaps.look(LATE, {"a": (1, 1), "b": (1, 5)})
    gaps.forget()
    assert not gaps.look(LATE + 1, {"a": (1, 9), "b": (1, 9)})
