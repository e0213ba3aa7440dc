"""What an entry remembers and counts. Plain data: the test says what happened."""

from __future__ import annotations

from typing import Any

import pytest

from federation.forward.counters import DECISIONS, ENDINGS, Answer, Busier, Counters, Decision, Ending, Flow
from federation.forward.http.usage import Tokens
from federation.forward.route import Route
from federation.forward.selection import BY_LOAD, Candidate, Pick
from federation.metrics import OTHER, Metrics

CHAT = Route("chat")


def ending(n: int = 1, **more: Any) -> Ending:
    facts = {
        "flow": Flow(n), "route": CHAT, "client": "c", "peer_id": "p", "attempts": 1, "ended_at": 9.0, "seconds": 2.0,
        "received": 10, "delivered": 20, "error": None,
    }  # fmt: skip
    return Ending(**facts | more)


def decision(n: int, *loads: int) -> Decision:
    candidates = tuple(Candidate(f"p{i}", load, 0.0, 0) for i, load in enumerate(loads))
    return Decision(float(n), CHAT, "c", Pick(candidates[0], candidates, BY_LOAD), 1, Flow(n))


def test_sums_and_metrics_agree() -> None:
    metrics = Metrics()
    counters = Counters(metrics)
    for result in ("ok", "ok", "error", "turned_away"):
        counters.started(CHAT)
        counters.ended(ending(), result)
    counters.retried("lost")
    totals = counters.totals
    assert (totals.started, totals.retried, totals.received, totals.delivered) == (4, 1, 40, 80)
    assert metrics.started["chat"] == 4
    assert {key: n for key, n in metrics.finished.items() if n} == {
        ("chat", "ok"): 2, ("chat", "error"): 1, ("chat", "turned_away"): 1,
    }  # fmt: skip
    assert metrics.retries["lost"] == 1


def test_requests_are_counted_by_model() -> None:
    metrics = Metrics()
    counters = Counters(metrics)
    stream = Answer(200, 0.5, 0.25, is_stream=True, tokens=Tokens(9, 12, None))
    for answer, result in ((stream, "ok"), (stream._replace(is_stream=False), "ok"), (Answer(502), "error"), (None, "ok")):
        counters.ended(ending(route=Route("chat", "m"), attempts=3, answer=answer), result)
    counters.ended(ending(answer=stream), "ok")
    counters.ended(ending(route=Route("chat", "made up"), attempts=0, answer=Answer(404)), "error")
    model = metrics.models["m"]
    assert (model.requests, model.retries, model.queued_s) == ({"ok": 2, "error": 1}, 6, 1.0)
    assert model.tokens == {"in": 18, "out": 24, "cached": 0}
    assert list(model.newest) == [0.25]
    assert list(model.paces) == [pytest.approx(11 / (ending().seconds - 0.25))]
    assert set(metrics.models) == {"m", OTHER}
    assert metrics.models[OTHER].retries == 0


def test_who_listens_hears_of_each_ending() -> None:
    counters, heard = Counters(Metrics()), []
    counters.ended(ending(1), "ok")
    counters.on_ending = heard.append
    counters.ended(ending(2), "ok")
    assert [e.flow.connection for e in heard] == [2]
    assert [e.flow.connection for e in counters.endings] == [1, 2]


def test_only_the_newest_are_kept() -> None:
    counters = Counters(Metrics())
    for n in range(ENDINGS + 3):
        counters.ended(ending(n), "ok")
    for n in range(DECISIONS + 3):
        counters.decisions.append(decision(n, 0, 1))
        counters.picked_again(Busier(Flow(n), 1, 0, 3, 2))
    assert [counters.endings[0].flow.connection, len(counters.endings)] == [3, ENDINGS]
    assert [counters.decisions[0].flow.connection, len(counters.decisions)] == [3, DECISIONS]
    assert [counters.busier[0].flow.connection, len(counters.busier)] == [3, DECISIONS]
    assert counters.totals.received == 10 * (ENDINGS + 3)


def test_a_pick_that_was_sent_back_is_no_retry() -> None:
    metrics = Metrics()
    counters = Counters(metrics)
    row = Busier(Flow(7), attempt=1, again=0, had=3, believed=2)
    counters.picked_again(row)
    assert list(counters.busier) == [row]
    assert (metrics.picked_again, counters.totals.retried, sum(metrics.retries.values())) == (1, 0, 0)
    first = decision(7, 2)._replace(again=0)
    assert first.key == (row.flow, row.attempt, row.again)
    assert first._replace(again=1).key != first.key


def test_each_pick_is_counted_once_by_the_tier_that_decided_it() -> None:
    metrics = Metrics()
    counters = Counters(metrics)
    counters.count_picks()
    counters.decisions += [decision(1, 0, 1), decision(2, 0)]
    counters.count_picks()
    counters.count_picks()
    counters.decisions.append(decision(3, 2, 5))
    counters.count_picks()
    assert {tier: n for tier, n in metrics.picks.items() if n} == {"in_flight": 2, "only": 1}
