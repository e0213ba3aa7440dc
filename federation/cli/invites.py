"""The commands that let machines in: invite, approve, refuse.

`invite` alone prints the network's token (ask.py). With --expires, --uses or --approve it has the daemon make an invite, and
prints its code alone on standard output: `federation invite --uses 1 | ssh bergen federation join --token-file -`.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

from federation.cli import ask
from federation.cli.ask import Asker, positive
from federation.cli.render.models import table
from federation.cli.render.text import duration, plain
from federation.cli.terminal import colorful, complain, is_terminal, is_utf8, say, width
from federation.errors import NotDone, UsageError
from federation.units import parse_lifetime

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Mapping

MAX_USES, MAX_LIFETIME_S = 256, 30 * 86400.0  # as in mesh/invites.py and ops/invites.py, which are slow to import


def invite(args: Namespace) -> None:
    makes = args.expires is not None or args.uses is not None or args.approve
    if args.qr and args.json:
        raise UsageError("--qr is for people, --json for programs; ask for one of them")
    if args.list + (args.revoke is not None) + args.install + (makes or args.qr) > 1:
        raise UsageError("--list, --revoke, --install and making an invite are four things; ask for one of them")
    if args.install:
        from federation.cli.handover import invite_install

        invite_install(args)
    elif args.list:
        _show(args, Asker(args).get("invites"))
    elif args.revoke is not None:
        _revoke(args)
    elif makes:
        _make(args)
    else:
        token = ask.invite(args)
        if args.qr:
            _show_qr([token])


def _make(args: Namespace) -> None:
    body: dict[str, Any] = {"approve": args.approve}
    if args.expires is not None:
        body["lifetime_s"] = _lifetime(args.expires)
    if args.uses is not None:
        body["uses"] = positive(args.uses, "--uses")
        if body["uses"] > MAX_USES:
            raise UsageError(f"--uses {args.uses}: {MAX_USES} machines at most; for more, give them the token")
    asker = Asker(args)
    if asker.daemon.travels_open:
        raise UsageError(
            "a code is a secret, and --control HOST:PORT would carry it over plain HTTP; run this on that machine"
        )
    text = asker.post("invites/add", body)
    if args.json:
        say(text)
        return
    answer = json.loads(text)
    code = plain(answer["code"], 4096)
    say(code)
    if args.qr:
        _show_qr(_shorter(code))
    if answer["note"]:
        complain(f"note: {plain(answer['note'], 400)}")
    if is_terminal(sys.stdout):
        print(_next(answer), file=sys.stderr)


def _next(answer: Mapping[str, Any]) -> str:
    machines = "one machine" if answer["uses"] == 1 else f"{answer['uses']} machines"
    lines = [
        f"For {machines}, until {plain(answer['expires_at'])}; shown this once. There: {plain(answer['command'])}",
        "and paste it when it asks. This node has to run then; the newcomer looks for it at "
        + (", ".join(map(plain, answer["addresses"])) or "no address"),
    ]
    if answer["approve"]:
        lines.append("It will wait until somebody says yes here: federation approve")
    lines.append(f"To end it: federation invite --revoke {plain(answer['id'])}")
    return "\n".join(lines)


def _lifetime(text: str) -> float:
    try:
        seconds = parse_lifetime(text)
    except ValueError as error:
        raise UsageError(f"--expires {text!r}: {error}") from None
    if not 0 < seconds <= MAX_LIFETIME_S:
        raise UsageError(f"--expires {text!r}: more than nothing, and 30d at most")
    return seconds


def _revoke(args: Namespace) -> None:
    which = args.revoke.strip()
    if len(which) < 3:
        raise UsageError(f"--revoke {which!r}: an invite's id, as --list shows it, or all")
    text = Asker(args).post("invites/revoke", {"id": which})
    if args.json:
        say(text)
    else:
        say("all open invites are revoked" if which.lower() == "all" else f"the invite {plain(which)} is revoked")


def _show(args: Namespace, text: str) -> None:
    say(text if args.json else shown(json.loads(text), color=colorful(sys.stdout)))


def shown(answer: Mapping[str, Any], *, color: bool) -> str:
    """A line an invite, then who waits."""
    rows = [
        (
            plain(row["id"]),
            plain(row["state"]),
            f"{len(row['used'])} of {row['uses']}",
            plain(row["expires_at"])[:16].replace("T", " "),
            "asked" if row["approve"] else "",
            ", ".join(_user(use) for use in row["used"]),
        )
        for row in answer["invites"]
    ]
    heads = ("ID", "STATE", "USED", "EXPIRES (UTC)", "YES", "WHO CAME")
    lines = table(heads, rows, right=(), color=color) if rows else ["no invites were made here"]
    return "\n".join([*lines, *waiting(answer, color=color)] if answer["waiting"] else lines)


def _user(use: Mapping[str, Any]) -> str:
    return f"{plain(use['name'])} ({plain(use['peer_id'])[-6:]}{'' if use['confirmed'] else ', not confirmed'})"


def waiting(answer: Mapping[str, Any], *, color: bool) -> list[str]:
    """A line a newcomer that waits."""
    if not answer["waiting"]:
        return ["no newcomer waits here"]
    rows = [
        (
            plain(row["name"]),
            plain(row["peer_id"]),
            plain(row["address"]),
            plain(row["invite"]),
            duration(row["waits_s"]),
        )
        for row in answer["waiting"]
    ]
    return [
        *table(("NEWCOMER", "PEER", "FROM", "INVITE", "WAITS"), rows, right=(), color=color),
        "federation approve NEWCOMER lets it in, federation refuse NEWCOMER turns it away",
    ]


def approve(args: Namespace) -> None:
    asker = Asker(args)
    if args.peer is None:
        text = asker.get("invites")
        say(text if args.json else "\n".join(waiting(json.loads(text), color=colorful(sys.stdout))))
        return
    _decide(args, asker, "approve", "is let in; it starts now, and `federation peers` will show it")


def refuse(args: Namespace) -> None:
    _decide(args, Asker(args), "refuse", "is turned away. Its invite is still good for others: federation invite --list")


def _decide(args: Namespace, asker: Asker, verb: str, said: str) -> None:
    if not args.peer.strip():
        raise UsageError("PEER is empty; `federation approve` shows who waits")
    text = asker.post(f"newcomers/{verb}", {"peer": args.peer.strip()})
    if args.json:
        say(text)
    else:
        newcomer = json.loads(text)["decided"]
        say(f"{plain(newcomer['name'])} ({plain(newcomer['peer_id'])}) {said}")


# QR


def _shorter(code: str) -> list[str]:
    """The code, and the same one with fewer addresses, for narrow terminals."""
    from dataclasses import replace

    from federation.mesh.invite_codes import InviteCode

    whole = InviteCode.decode(code)
    return [replace(whole, addresses=whole.addresses[:n]).encode() for n in range(len(whole.addresses), 0, -1)] or [code]


def _show_qr(texts: list[str]) -> None:
    """Show the first text that fits the terminal. Raises NotDone, and says what is missing, if none does."""
    from federation.cli import qr

    screen = qr.Screen(is_utf8(sys.stdout), colorful(sys.stdout), width())
    for text in texts:
        if (picture := qr.drawn(text, screen)) is not None:
            say(picture)
            if text != texts[0]:
                complain("the terminal is narrow: the QR code holds fewer of this node's addresses than the text")
            return
    raise NotDone(f"--qr: {qr.missing(texts[-1], screen)}; the text above is the same code")
