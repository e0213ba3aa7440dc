from __future__ import annotations

from typing import Any

import pytest

from federation.cli.render import connections as render_connections

AT = "2026-01-01T12:00:00.5+00:00"
DONE = {"peer_id": "a", "seconds": 0.25, "received": 100, "delivered": 2048, "error": None}


def candidate(name: str, **fields: Any) -> dict[str, Any]:
    return {
        "peer_id": f"id-{name}", "name": name, "in_flight": 0, "last_used_age_s": None, "available_vram": 0, "served": 0,
        **fields,
    }  # fmt: skip


def decision(number: int, chosen: str = "athens", **fields: Any) -> dict[str, Any]:
    return {
        "id": number, "at": AT, "service": "chat", "client": "192.0.2.1:5000", "attempt": 1, "chosen": f"id-{chosen}",
        "name": chosen, "tier": "in_flight", "failed": None, "ended": DONE,
        "candidates": [candidate("bergen", in_flight=3), candidate("athens", last_used_age_s=2.0)], **fields,
    }  # fmt: skip


def turned_away(number: int) -> dict[str, Any]:
    return {
        "id": number, "at": AT, "service": "chat", "client": "192.0.2.1:5001", "attempts": 0, "seconds": 10.0,
        "why": "no peer is available",
    }  # fmt: skip


def shown(*decisions: dict[str, Any], away: tuple[dict[str, Any], ...] = ()) -> str:
    return render_connections.explained({"decisions": list(decisions), "turned_away": list(away)}, color=False)


def test_who_was_chosen_why_and_how_it_ended() -> None:
    lines = shown(decision(7)).splitlines()
    assert lines[0].startswith("#7")
    assert lines[0].endswith("192.0.2.1:5000 asked for chat")
    assert lines[1].split() == ["->", "athens", "0", "open", "used", "2.0", "s", "ago", "fewest", "connections"]
    assert lines[2].split() == ["bergen", "3", "open", "not", "used", "yet"]
    assert lines[3].strip() == "done: 100 B up, 2.0 KiB down in 250 ms"


def test_how_the_candidates_are_reached_unless_all_are_directly() -> None:
    near = candidate("bergen", path="direct", rtt_ms=0.25)
    around = candidate("athens", path="relayed", rtt_ms=41.0, far=True)
    _, chosen, other, _ = shown(decision(7, candidates=[near, around])).splitlines()
    assert " ".join(chosen.split()) == "-> athens 0 open not used yet relayed 41.0 ms far fewest connections"
    assert " ".join(other.split()) == "bergen 0 open not used yet direct 0.2 ms"
    _, only, _ = shown(decision(7, "bergen", candidates=[near])).splitlines()
    assert "direct" not in only


def test_retries_are_told_in_order() -> None:
    text = shown(decision(7, failed="it refused"), decision(7, "bergen", attempt=2, ended={**DONE, "error": "reset"}))
    first, second = text.index("attempt 1"), text.index("attempt 2")
    assert first < text.index("failed: it refused") < second < text.index("broken off: reset")


def test_a_pick_that_was_sent_back_is_told_where_it_was_made() -> None:
    text = shown(
        decision(7, sent_back={"had": 3, "believed": 2}),
        decision(7, sent_back={"had": 4, "believed": 3}),
        decision(7, sent_back={"had": None, "believed": 3}),
        decision(7, "bergen", failed="it refused", sent_back=None),
        decision(7, attempt=2, sent_back=None),
    )
    words = [
        "attempt 1", "had 3, we believed 2: picked again", "attempt 1, again", "had 4, we believed 3: picked again",
        "attempt 1, again", "is full: picked again", "attempt 1, again", "failed: it refused", "attempt 2", "done:",
    ]  # fmt: skip
    lines = [line.strip() for line in text.splitlines()]
    told = [line for line in lines if line.startswith(("attempt", "had", "is full", "failed", "done"))]
    assert told == [*words[:-1], told[-1]]
    assert told[-1].startswith("done: ")


def test_an_answer_of_a_former_version_tells_of_nothing_that_was_sent_back() -> None:
    assert "picked again" not in shown(decision(7))


def test_nobody_was_there() -> None:
    assert "turned away: no peer is available" in shown(away=(turned_away(3),))
    both = shown(decision(3, failed="it refused"), away=(turned_away(3),))
    assert both.index("failed: it refused") < both.index("turned away")
    assert "still open" in shown(decision(4, ended=None))
    assert shown() == "no connection yet: nothing to explain"


def test_a_crowd_is_cut() -> None:
    crowd = [candidate(f"n{n}", in_flight=n, available_vram=2**30) for n in range(50)]
    lines = shown(decision(1, "n40", candidates=crowd)).splitlines()
    assert lines[1].split()[:2] == ["->", "n40"]
    assert "1.0 GiB free" in lines[2]
    assert lines[-2].strip() == f"and {50 - render_connections.MAX_CANDIDATES} more"


def test_a_name_cannot_move_the_cursor() -> None:
    evil = candidate("a\x1b[2J\n")
    text = shown(decision(1, candidates=[evil], chosen="a\x1b[2J\n", failed="x\x1b[1A", client="\x1b]0;t"))
    assert "\x1b" not in text


def test_the_newest_connections_with_all_their_picks() -> None:
    answer = {"decisions": [decision(n) for n in (1, 2, 3, 2)], "turned_away": [turned_away(4)]}
    newest = render_connections.newest_connections(answer, 3)
    assert [row["id"] for row in newest["decisions"]] == [2, 3, 2]
    assert [row["id"] for row in newest["turned_away"]] == [4]


def test_what_is_open() -> None:
    assert render_connections.still_open({"in_flight": 0, "clients": 0}) == "nothing is open"
    assert render_connections.still_open({"in_flight": 1, "clients": 0}) == "1 connection is served here"
    assert (
        render_connections.still_open({"in_flight": 2, "clients": 1})
        == "2 connections are served here, 1 client is connected"
    )


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (
            {"in_flight": 1, "clients": 0, "entries": ["bergen"], "idle": 1, "idle_clients": 0},
            "1 connection is served here (by way of bergen), idle",
        ),
        (
            {"in_flight": 5, "clients": 2, "entries": ["a", "b\x1b[2J", "c", "d"], "idle": 2, "idle_clients": 1},
            "5 connections are served here (by way of a, b?[2J, c, others), 2 of them idle, 2 clients are connected, 1 of "
            "them idle",
        ),
    ],
)
def test_what_is_open_and_idle(answer: dict[str, Any], text: str) -> None:
    why = "; an idle one has had its answer, and its client keeps it open (keep-alive)"
    assert render_connections.still_open(answer) == text + why


@pytest.mark.parametrize(
    ("value", "text"), [(0.0012, "1.2 ms"), (0.25, "250 ms"), (4.56, "4.6 s"), (90.0, "1 min"), (7260.0, "2 h 1 min")]
)
def test_seconds(value: float, text: str) -> None:
    assert render_connections.seconds(value) == text


def test_a_request_says_its_model_when_it_began_and_its_tokens() -> None:
    answer = {
        "status": 200,
        "queued_s": 1.5,
        "first_s": 0.12,
        "is_stream": True,
        "tokens": {"taken": 812, "made": 40, "cached": 700},
    }
    text = shown(decision(7, model="llama3", service="default", tier="cold", loads=True, ended={**DONE, "answer": answer}))
    assert "asked for llama3" in text
    assert "cold: loads here" in text
    assert text.endswith("waited 1.5 s for a peer, first token after 120 ms, 812 tokens in (700 cached), 40 out")
    plain = {"status": 404, "queued_s": 0.0, "first_s": 2.0, "is_stream": False, "tokens": None}
    text = shown(decision(7, model="m", tier="only", loads=True, ended={**DONE, "answer": plain}))
    assert "asked for m of chat" in text
    assert "the only one; loads the model" in text
    assert text.endswith("status 404, answered after 2.0 s")


def test_the_newest_requests_of_one_connection() -> None:
    rows = [decision(1, request=n, at=f"2026-01-01T12:00:0{n}+00:00") for n in range(1, 6)]
    rows.insert(3, decision(2, request=1, at="2026-01-01T12:00:03.5+00:00"))
    kept = render_connections.newest_connections({"decisions": rows, "turned_away": []}, 3)
    assert [(row["id"], row["request"]) for row in kept["decisions"]] == [(2, 1), (1, 4), (1, 5)]


def test_a_line_of_the_log_about_a_request() -> None:
    line = {
        "event": "request", "timestamp": AT, "id": 7, "request": 2, "client": "c:1", "service": "default", "peer": "p",
        "name": "athens", "attempts": 2, "received": 100, "delivered": 200, "seconds": 1.0, "model": "llama3", "status": 200,
        "first": 0.5, "tokens_in": 9, "tokens_out": 3, "why": "done",
    }  # fmt: skip
    text = render_connections.log_line(line, color=False)
    assert "#7.2 c:1 -> athens (llama3): 100 B up, 200 B down in 1.0 s, 2 attempts, first token after 500 ms" in text
    assert text.endswith("9 tokens in, 3 out, done")
