"""scripts/balance: what it computes, by hand; and its field, with a backend as the entry of its own clients."""

from __future__ import annotations

import random
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parent.parent / "scripts"
sys.path.insert(0, str(SCRIPTS))

from balancing import Arrival, Field, all_knowing, arrivals, balance_of, dice, dispatched, summary  # noqa: E402


def test_arrivals_are_as_many_as_wanted_and_at_all_entries() -> None:
    found = arrivals(4, 3.0, 0.5, 200.0, random.Random(1))
    assert len(found) == pytest.approx(4 * 3.0 / 0.5 * 200, rel=0.05)
    assert {arrival.entry for arrival in found} == {0, 1, 2, 3}
    assert found == sorted(found)
    assert all(0 < arrival.at < 200 and arrival.hold_s == 0.5 for arrival in found)


def test_the_balance_is_averaged_over_time() -> None:
    changes = [(0.0, 0, 1), (1.0, 0, 1), (2.0, 1, 1), (3.0, 0, -1), (9.0, 0, -1)]
    most, mean = balance_of(changes, 2, 1.0, 4.0)  # loads 2 0, then 2 1, then 1 1, a second each
    assert (most, mean) == (pytest.approx(5 / 3), pytest.approx((2 + 3 + 2) / 2 / 3))
    assert balance_of(changes, 2, 1.0, 4.0).ratio == pytest.approx((5 / 3) / (7 / 6))


def test_the_all_knowing_one_takes_the_least_loaded() -> None:
    given = [Arrival(0.1 * n, 0, 1.0) for n in range(6)]
    changes = dispatched(given, 3, all_knowing(random.Random(1)))
    assert sorted(node for _, node, by in changes[:3] if by == 1) == [0, 1, 2]
    assert sum(by for _, _, by in changes) == 0
    assert balance_of(changes, 3, 0.25, 0.95).most == pytest.approx(sum([1, 2, 2, 2, 2, 2, 2]) / 7, rel=0.08)


def test_dice_are_worse_than_knowing_all() -> None:
    given = arrivals(8, 3.0, 0.6, 120.0, random.Random(2))
    ratios = [balance_of(dispatched(given, 8, rule(random.Random(3))), 8, 5.0, 120.0).ratio for rule in (all_knowing, dice)]
    assert ratios[0] == pytest.approx(1.21, abs=0.04)  # what shared/balance_sim.py has for 8 x 3
    assert ratios[1] == pytest.approx(1.88, abs=0.12)


def test_a_field_answers_and_counts() -> None:
    field = Field(2, lambda _node: nullcontext())
    entries = [("127.0.0.1", port) for port in field.ports]
    outcome = field.run([Arrival(0.0, 0, 0.2), Arrival(0.01, 0, 0.2), Arrival(0.02, 1, 0.1)], entries)
    field.close()
    assert (outcome.errors, outcome.most_at) == (0, [2, 1])
    assert len(outcome.took_s) == 3
    assert sum(by for _, _, by in outcome.changes) == 0
    assert summary(outcome.took_s) != "-"


def test_an_entry_that_refuses_is_an_error() -> None:
    field = Field(1, lambda _node: nullcontext())
    port = field.ports[0]
    field.close()
    other = Field(1, lambda _node: nullcontext())
    assert other.run([Arrival(0.0, 0, 0.1)], [("127.0.0.1", port)]).errors == 1
    other.close()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--sizes", "8"), "8: not as 8x3,16x2"),
        (("--sizes", "80x3"), "with 2 to 32 nodes"),
        (("--hold", "0"), "0: not positive"),
        (("--seconds", "3"), "--seconds: more than 6"),
    ],
)
def test_what_makes_no_sense_is_said_in_a_line(arguments: tuple[str, ...], says: str) -> None:
    done = subprocess.run([sys.executable, SCRIPTS / "balance.py", *arguments], capture_output=True, text=True)
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr
