"""Answers about connections as text; text.py has status and peers. Nothing is printed here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from federation.cli.render.text import duration, paint, plain, size
from federation.units import DEFAULT_SERVICE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MAX_ENTRIES = 3  # names in one line
MAX_CANDIDATES = 6  # a line each; the rest is counted

# Why the chosen was ahead of the runner-up, by the name of the tier that decided.
_REASONS = {
    "only": "the only one",
    "capacity": "others are full",
    "warm": "warm: has the model in memory",
    "cold": "cold: loads here",
    "home": "home of this conversation",
    "in_flight": "fewest connections",
    "path": "others are far",
    "last_used": "longest not used",
    "available_vram": "most free VRAM",
    "served": "fewest served",
    "tiebreak": "all alike; an even draw",
    "random": "at random",
}


def network(answer: Mapping[str, Any]) -> str:
    return plain(answer.get("name")) or plain(answer.get("id"))


def still_open(answer: Mapping[str, Any]) -> str:
    """Render {"in_flight", "clients"}: "2 connections are served here, 1 client is connected"."""
    served, clients, entries = answer["in_flight"], answer["clients"], answer.get("entries", ())
    parts = []
    if served:
        ways = [*(plain(name) for name in entries[:MAX_ENTRIES]), *(["others"] if len(entries) > MAX_ENTRIES else [])]
        by = f" (by way of {', '.join(ways)})" if ways else ""
        parts.append(f"{_count(served, 'connection')} served here{by}{_idle(answer.get('idle', 0), served)}")
    if clients:
        parts.append(f"{_count(clients, 'client')} connected{_idle(answer.get('idle_clients', 0), clients)}")
    said = ", ".join(parts) or "nothing is open"
    is_any_idle = answer.get("idle") or answer.get("idle_clients")
    return f"{said}; an idle one has had its answer, and its client keeps it open (keep-alive)" if is_any_idle else said


def _idle(idle: int, of: int) -> str:
    if not idle:
        return ""
    return ", idle" if idle == of else f", {idle} of them idle"


def draining(answer: Mapping[str, Any], where: str = "here") -> str:
    return f"draining, nothing new is sent {where}; {still_open(answer)}"


def newest_connections(answer: Mapping[str, Any], last: int) -> dict[str, Any]:
    """An answer of `explain` with its newest `last` connections only, or requests: a connection may bring many."""
    rows = [*answer["decisions"], *answer.get("turned_away", ())]
    began = {_flow(row): row["at"] for row in reversed(rows)}
    newest = sorted(began, key=lambda flow: (began[flow], flow))[-last:]
    return {key: [row for row in answer.get(key, ()) if _flow(row) in newest] for key in ("decisions", "turned_away")}


def explained(answer: Mapping[str, Any], *, color: bool) -> str:
    """A paragraph a connection: its client, the candidates, the peer chosen and why, and how it ended."""
    by_flow: dict[tuple[int, int], list[Mapping[str, Any]]] = {}
    for decision in answer["decisions"]:
        by_flow.setdefault(_flow(decision), []).append(decision)
    unserved = {_flow(row): row for row in answer["turned_away"]}
    for flow in unserved:
        by_flow.setdefault(flow, [])
    if not by_flow:
        return "no connection yet: nothing to explain"
    return "\n\n".join(_story(flow, by_flow[flow], unserved.get(flow), color=color) for flow in sorted(by_flow))


def _flow(row: Mapping[str, Any]) -> tuple[int, int]:
    """A connection's number, and that of the request on it."""
    return row["id"], row.get("request", 1)


def _number(row: Mapping[str, Any]) -> str:
    """#7, or #7.2: the second request of that connection."""
    connection, request = _flow(row)
    return f"#{connection}" if request == 1 else f"#{connection}.{request}"


def _logged(line: Mapping[str, Any]) -> str:
    """Put a request's line of the log into the words of `explain`."""
    if line.get("event") != "request":
        return ""
    tokens = {"taken": line.get("tokens_in"), "made": line.get("tokens_out"), "cached": line.get("tokens_cached")}
    is_stream = "first" in line
    first_s = line.get("first", line.get("answered"))
    heard = {"status": line.get("status"), "queued_s": line.get("queued"), "first_s": first_s, "is_stream": is_stream}
    return "".join(f", {word}" for word in _heard({**heard, "tokens": tokens}))


def _story(
    flow: tuple[int, int], decisions: Sequence[Mapping[str, Any]], turned_away: Mapping[str, Any] | None, *, color: bool
) -> str:
    first = decisions[0] if decisions else turned_away
    assert first is not None
    title = f"{_number(first)}  {_clock(first['at'])}  {plain(first['client'])} asked for {_asked(first)}"
    lines = [paint(title, "bold", color)]
    attempt = None
    for decision in decisions:
        if len(decisions) > 1:
            lines.append(f"  attempt {decision['attempt']}{', again' * (decision['attempt'] == attempt)}")
        attempt = decision["attempt"]
        lines += [f"    {line}" for line in _candidates(decision, color=color)]
        if back := decision.get("sent_back"):
            had = "is full" if back["had"] is None else f"had {back['had']}, we believed {back['believed']}"
            lines.append("    " + paint(f"{had}: picked again", "yellow", color))
        if decision["failed"]:
            lines.append("    " + paint(f"failed: {plain(decision['failed'], 150)}", "yellow", color))
    if turned_away is not None:
        lines.append("  " + paint(f"turned away: {plain(turned_away['why'], 150)}", "red", color))
    else:
        lines.append(f"  {_end(decisions[-1]['ended'], color=color)}")
    return "\n".join(lines)


def _asked(row: Mapping[str, Any]) -> str:
    """llama3, or: chat, or: llama3 of chat"""
    service, model = plain(row["service"]), plain(row.get("model"))
    if not model:
        return service
    return model if service == DEFAULT_SERVICE else f"{model} of {service}"


def _candidates(decision: Mapping[str, Any], *, color: bool) -> list[str]:
    """One line each, the chosen first."""
    chosen = decision["chosen"]
    ordered = sorted(
        decision["candidates"],
        key=lambda c: (c["peer_id"] != chosen, c["in_flight"], -(c["last_used_age_s"] or float("inf"))),
    )
    shown = ordered[:MAX_CANDIDATES]
    names = [plain(c["name"]) or plain(c["peer_id"])[-6:] for c in shown]
    longest = max(map(len, names))
    has_vram = any(c["available_vram"] for c in ordered)
    has_paths = any(c.get("path") in ("punched", "relayed") or c.get("far") for c in ordered)
    lines = []
    for candidate, name in zip(shown, names, strict=True):
        age = candidate["last_used_age_s"]
        used = "not used yet" if age is None else f"used {seconds(age)} ago"
        line = f"{name:<{longest}}  {candidate['in_flight']:>3} open  {used:<19}"
        if has_paths:
            line += f" {_way(candidate):<17}"
        if has_vram:
            line += f" {size(candidate['available_vram']):>9} free"
        if candidate["peer_id"] == chosen:
            reason = _REASONS.get(decision["tier"], f"by {plain(decision['tier'])}")
            if decision.get("loads") and decision["tier"] != "cold":
                reason += "; loads the model"
            line = paint(f"-> {line}  {reason}", "green", color)
        else:
            line = f"   {line}"
        lines.append(line)
    if len(ordered) > len(shown):
        lines.append(f"   and {len(ordered) - len(shown)} more")
    return lines


def _way(candidate: Mapping[str, Any]) -> str:
    """relayed 41.0 ms far"""
    rtt_ms = candidate.get("rtt_ms")
    words = [plain(candidate.get("path")), "" if rtt_ms is None else f"{rtt_ms:.1f} ms", "far" * bool(candidate.get("far"))]
    return " ".join(filter(None, words))


def _end(ended: Mapping[str, Any] | None, *, color: bool) -> str:
    if ended is None:
        return "still open"
    moved = f"{size(ended['received'])} up, {size(ended['delivered'])} down in {seconds(ended['seconds'])}"
    if ended.get("key"):
        moved += f", with the key {plain(ended['key'])}"
    if ended["error"]:
        return paint(f"broken off: {plain(ended['error'], 150)}", "yellow", color) + f" ({moved})"
    answer = ended.get("answer") or {}
    return ", ".join([f"done: {moved}", *_heard(answer)])


def _heard(answer: Mapping[str, Any]) -> list[str]:
    """Describe an HTTP answer: its status, how long its request waited, when the answer began, its tokens."""
    words = [f"status {answer['status']}"] if answer.get("status", 200) != 200 else []
    if answer.get("queued_s"):
        words.append(f"waited {seconds(answer['queued_s'])} for a peer")
    if answer.get("first_s") is not None:
        words.append(f"{'first token' if answer.get('is_stream') else 'answered'} after {seconds(answer['first_s'])}")
    tokens = answer.get("tokens") or {}
    if tokens.get("taken") is not None:
        cached = f" ({tokens['cached']} cached)" if tokens.get("cached") else ""
        words.append(f"{tokens['taken']} tokens in{cached}")
    if tokens.get("made") is not None:
        words.append(f"{tokens['made']} out")
    return words


def ping_title(answer: Mapping[str, Any]) -> str:
    name = plain(answer["name"]) or plain(answer["peer_id"])
    return f"{name} ({plain(answer['peer_id'])[-6:]}), {plain(answer['path'])}, {plain(answer['address'] or '')}"


def rate(moved: Mapping[str, Any]) -> str:
    """Megabytes are 10^6 bytes here, as for every network."""
    per_second = moved["bytes"] / max(moved["seconds"], 1e-9) / 1e6
    return f"{per_second:.1f} MB/s ({size(moved['bytes'])} in {seconds(moved['seconds'])})"


def log_line(line: Mapping[str, Any], *, color: bool) -> str:
    when = _clock(str(line.get("timestamp", "")))
    if line.get("event") in ("connection", "request"):
        where = plain(line["name"]) or plain(line["peer"])[-6:] or "nobody"
        tries = f", {line['attempts']} attempts" if line["attempts"] > 1 else ""
        text = (
            f"{_number(line)} {plain(line['client'])} -> {where} ({_asked(line)}): {size(line['received'])} up, "
            f"{size(line['delivered'])} down in {seconds(line['seconds'])}{tries}{_logged(line)}, {plain(line['why'], 150)}"
        )
        return f"{when}  {text}" if line["why"] == "done" else f"{when}  {paint(text, 'yellow', color)}"
    level = str(line.get("level", ""))
    shown = {key: value for key, value in line.items() if key not in ("number", "timestamp", "level", "logger", "event")}
    details = "  ".join(f"{plain(key)}={plain(value, 300)}" for key, value in shown.items())
    text = f"{plain(line.get('event'), 300)}  {details}".rstrip()
    if level in ("warning", "error", "critical"):
        text = paint(f"{level}: {text}", "yellow" if level == "warning" else "red", color)
    return f"{when}  {text}"


_SEVERITIES = {"ok": ("ok", "green"), "info": ("note", ""), "warn": ("warn", "yellow"), "fail": ("FAIL", "red")}


def findings(answer: Mapping[str, Any], *, color: bool) -> str:
    rows = answer["findings"]
    longest = max((len(plain(row["check"])) for row in rows), default=0)
    lines = []
    for row in rows:
        word, style = _SEVERITIES.get(row["severity"], (plain(row["severity"]), ""))
        lines.append(f"{paint(f'{word:<5}', style, color)} {plain(row['check']):<{longest}}  {plain(row['finding'], 600)}")
        if row["fix"]:
            lines.append(" " * (longest + 8) + f"-> {plain(row['fix'], 300)}")
    wrong = sum(row["severity"] == "fail" for row in rows)
    unsure = sum(row["severity"] == "warn" for row in rows)
    lines.append("")
    lines.append(f"{wrong} wrong, {unsure} to look at" if wrong or unsure else "nothing is wrong")
    return "\n".join(lines)


def seconds(value: float) -> str:
    """3 ms, 0.12 s, 4.5 s, then as `duration`."""
    if value < 0.01:
        return f"{value * 1000:.1f} ms"
    if value < 1:
        return f"{value * 1000:.0f} ms"
    return f"{value:.1f} s" if value < 60 else duration(value)


def _clock(iso: str) -> str:
    """The time of day, in this machine's zone."""
    from datetime import datetime

    try:
        return f"{datetime.fromisoformat(iso.replace('Z', '+00:00')).astimezone():%H:%M:%S}"
    except ValueError:
        return plain(iso)


def _count(n: int, what: str) -> str:
    return f"{n} {what} is" if n == 1 else f"{n} {what}s are"
