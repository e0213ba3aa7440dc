"""The commands for clients' keys: key add, key list, key revoke."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

from federation.cli.ask import Asker
from federation.cli.render.models import table
from federation.cli.render.text import paint, plain
from federation.cli.terminal import colorful, say
from federation.errors import UsageError
from federation.units import parse_lifetime, parse_rate

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable, Mapping
    from typing import TypeVar

    T = TypeVar("T")

MAX_MODELS_SHOWN = 40
MAX_NAME = 64  # as in mesh/client_keys.py, which is slow to import


def add(args: Namespace) -> None:
    """The key alone goes to standard output: `KEY=$(federation key add phone)`."""
    body: dict[str, Any] = {"name": args.name.strip()}
    if not (0 < len(body["name"]) <= MAX_NAME and body["name"].isprintable()):
        raise UsageError(f"NAME {args.name!r}: 1 to {MAX_NAME} printable characters")
    if args.models is not None:
        body["models"] = [name.strip() for name in args.models.split(",") if name.strip()]
        if not body["models"]:
            raise UsageError("--models: name one model at least, with commas between them")
    if args.expires is not None:
        body["lifetime_s"] = _parsed(parse_lifetime, args.expires, "--expires")
    if args.rate is not None:
        body["requests"], body["seconds"] = _parsed(parse_rate, args.rate, "--rate")
    text = Asker(args).post("keys/add", body)
    answer = json.loads(text)
    say(text if args.json else plain(answer["key"]))
    if not args.json and sys.stdout.isatty():
        print("Keep it now: it is not shown again. Clients send it as their API key.", file=sys.stderr)


def list_keys(args: Namespace) -> None:
    text = Asker(args).get("keys")
    say(text if args.json else shown(json.loads(text), color=colorful(sys.stdout)))


def revoke(args: Namespace) -> None:
    text = Asker(args).post("keys/revoke", {"name": args.name.strip()})
    say(text if args.json else f"revoked the key {plain(args.name.strip())}: all nodes refuse it from now on")


def shown(answer: Mapping[str, Any], *, color: bool) -> str:
    """A line a key, and which ports ask for one."""
    rows = [
        (
            plain(key["name"]),
            ", ".join(map(plain, key["models"]))[:MAX_MODELS_SHOWN] or "all",
            _day(key["expires_at"]) or "never",
            plain(key["rate"] or "any"),
            f"{_day(key['made_at'])} at {plain(key['made_by_name'] or key['made_by'][-6:])}",
            _minute(key["last_used"]) or "not yet",
            str(key["requests"]),
        )
        for key in answer["keys"]
    ]
    heads = ("NAME", "MODELS", "EXPIRES", "RATE", "MADE", "LAST USED", "REQUESTS")
    lines = table(heads, rows, right=(6,), color=color) if rows else ["no client keys"]
    notes = [_counted(answer)] * bool(rows) + [_asked(answer)]
    return "\n".join([*lines, *(paint(note, "dim", color) for note in notes)])


def _counted(answer: Mapping[str, Any]) -> str:
    """An older daemon tells its own use alone, and does not say so."""
    counted, entries = answer.get("entries_counted", 1), answer.get("entries")
    if counted == entries:
        return "use: at all nodes, since each started"
    return f"use: at {counted} of {entries or 'several'} nodes, since each started; the others did not answer in time"


def _asked(answer: Mapping[str, Any]) -> str:
    if answer["asked_on_loopback"]:
        return "every port asks for a key, but those of tcp://"
    if answer["asked_off_loopback"]:
        return "ports that other machines reach ask for a key, but those of tcp://; those on loopback do not"
    return "no port asks for a key"


def _day(time: str | None) -> str:
    return plain(time)[:10] if time else ""


def _minute(time: str | None) -> str:
    return plain(time)[:16].replace("T", " ") if time else ""


def _parsed(parse: Callable[[str], T], text: str, flag: str) -> T:
    try:
        return parse(text)
    except ValueError as error:
        raise UsageError(f"{flag} {text!r}: {error}") from None
