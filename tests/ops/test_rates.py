from __future__ import annotations

from federation.ops.rates import WINDOW_S, Rates


def test_before_there_is_anything_to_compare_with_nothing_moves() -> None:
    rates = Rates()
    assert rates.per_second(5.0, (7, 8)) == (0, 0)
    rates.sample(5.0, (7, 8))
    assert rates.per_second(5.1, (9, 8)) == (0, 0)


def test_each_counter_has_its_own() -> None:
    rates = Rates()
    rates.sample(5.0, (0, 100))
    assert rates.per_second(7.0, (4, 100)) == (2, 0)


def test_what_is_older_than_the_window_does_not_count() -> None:
    rates = Rates()
    for second in range(100):
        rates.sample(second, (1000 if second else 0,))
    assert rates.per_second(99.5, (1000,)) == (0,)
    assert rates.per_second(100, (1000 + WINDOW_S * 3,))[0] < 3.01


def test_a_pause_between_samples_is_bridged() -> None:
    rates = Rates()
    rates.sample(0, (0,))
    rates.sample(60, (60,))  # the machine slept
    assert rates.per_second(61, (61,)) == (1,)
