"""The commands that keep a peer away from this node: ban, unban.

A running daemon does it itself, by its control API. Where none runs, the state directory is changed for its next start.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from federation.cli import client
from federation.cli.ask import Asker
from federation.cli.render.text import plain
from federation.cli.terminal import say
from federation.errors import ControlUnreachable, NotFound
from federation.mesh.bans import Bans, find_peer

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Mapping

    from federation.state import StateDir


def ban(args: Namespace) -> None:
    say(ban_or_list(args))


def unban(args: Namespace) -> None:
    say(let_in(args))


def ban_or_list(args: Namespace) -> str:
    """Ban a peer, or without one list the banned peers. Returns the text that the command prints."""
    asker = Asker(args)
    if args.peer is None:
        try:
            rows = _banned(asker.get("banned"))
        except ControlUnreachable as error:
            rows = _saved(_state(args, error))
        if args.json:
            return json.dumps({"banned": rows})
        return "\n".join(f"{_shown(row)}, since {plain(row['since'])}" for row in rows) or "nobody is banned here"
    try:
        before = {row["peer_id"] for row in _banned(asker.get("banned"))}
        rows = _banned(asker.post("ban", {"peer": args.peer}))
    except ControlUnreachable as error:
        state = _locked(_state(args, error))
        try:
            bans = Bans(state)
            peer_id = find_peer(args.peer, bans.names, among="those that are banned here (no daemon runs: give a whole id)")
            bans.ban(peer_id, "")
            return (
                f"banned {_shown(next(row for row in _saved(state) if row['peer_id'] == peer_id))}, from the next start on"
            )
        finally:
            state.unlock()
    new = [row for row in rows if row["peer_id"] not in before]
    if args.json:
        return json.dumps({"banned": rows})
    if not new:
        return f"{plain(args.peer)} is banned already; `federation ban` lists who is"
    row = new[-1]
    known = "its connection is cut" if row["name"] else "no node here has heard of it, so check the id"
    return f"banned {_shown(row)}: {known}, and it stays out until `federation unban {row['peer_id']}`"


def let_in(args: Namespace) -> str:
    """Unban a peer. Returns the text that the command prints."""
    asker = Asker(args)
    try:
        before = _banned(asker.get("banned"))
        rows = _banned(asker.post("unban", {"peer": args.peer}))
    except ControlUnreachable as error:
        state = _locked(_state(args, error))
        try:
            bans, before = Bans(state), _saved(state)
            peer_id = find_peer(args.peer, bans.names, among="those that are banned here")
            if peer_id not in bans:
                raise NotFound("it is not banned here") from None
            bans.unban(peer_id)
            rows = _saved(state)
        finally:
            state.unlock()
    if args.json:
        return json.dumps({"banned": rows})
    gone = [row for row in before if row not in rows]
    return f"no longer banned: {', '.join(map(_shown, gone)) or plain(args.peer)}"


def _banned(answer: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(answer)["banned"]
    return rows


def _saved(state: StateDir) -> list[dict[str, Any]]:
    return [ban._asdict() for ban in Bans(state).rows()]


def _state(args: Namespace, error: ControlUnreachable) -> StateDir:
    """The state directory that is meant. Raises `error` if there is none."""
    state = client.state_dir(args.state_dir)
    if args.control is not None or not state.path.is_dir():
        raise error
    return state


def _locked(state: StateDir) -> StateDir:
    """Lock the state directory: a daemon that runs but does not answer would write over the change."""
    state.lock()
    return state


def _shown(row: Mapping[str, Any]) -> str:
    peer_id = plain(row["peer_id"])
    return f"{plain(row['name'])} ({peer_id})" if row["name"] else peer_id
