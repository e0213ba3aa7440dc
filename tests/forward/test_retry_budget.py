"""How many requests may go to a second backend."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from federation.forward.retry_budget import BURST, SHARE, RetryBudget


def test_a_burst_then_a_share() -> None:
    budget = RetryBudget()
    assert all(budget.take() for _ in range(int(BURST)))
    assert not budget.take()
    taken = 0
    for _ in range(1000):
        budget.request()
        taken += budget.take()
    assert 1000 * SHARE - 2 <= taken <= 1000 * SHARE


def test_a_long_peace_saves_no_more_than_a_burst() -> None:
    budget = RetryBudget()
    for _ in range(100_000):
        budget.request()
    assert budget.left == BURST


@given(st.lists(st.booleans(), max_size=2000))
def test_never_more_than_a_fifth_beyond_the_burst(events: list[bool]) -> None:
    budget = RetryBudget()
    requests = taken = 0
    for is_request in events:
        if is_request:
            requests += 1
            budget.request()
        else:
            taken += budget.take()
        assert taken <= BURST + requests * SHARE + 1e-6
