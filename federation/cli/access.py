"""The commands that keep somebody out of this node: ban, unban.

A running daemon does it itself, by its control API. Where none runs, the state directory is changed for its next start.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from federation.cli import client
from federation.cli.render import plain
from federation.cli.terminal import say
from federation.errors import ControlUnreachable, NotFound
from federation.mesh.bans import Bans, find_peer
from federation.state import StateDir

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Mapping


def ban(args: Namespace) -> None:
    say(ban_or_list(args, os.environ))


def unban(args: Namespace) -> None:
    say(let_in(args, os.environ))


def ban_or_list(args: Namespace, environ: Mapping[str, str]) -> str:
    """What `ban` says; without a peer: who is banned."""
    if args.peer is None:
        rows = _listed(args, environ)
        if args.json:
            return json.dumps({"banned": rows})
        return "\n".join(f"{_shown(row)}, since {plain(row['since'])}" for row in rows) or "nobody is banned here"
    try:
        before = {row["peer_id"] for row in _listed(args, environ)}
        rows = _tell(args, environ, "/api/v1/ban", {"peer": args.peer})["banned"]
    except ControlUnreachable as error:
        state = _own_state(args, environ, error)
        try:
            bans = Bans(state)
            peer_id = find_peer(args.peer, bans.names, among="those that are banned here (no daemon runs: give a whole id)")
            bans.ban(peer_id, "")
            return f"banned {_named([ban._asdict() for ban in bans.rows()], peer_id)}, from the next start on"
        finally:
            state.unlock()
    new = [row for row in rows if row["peer_id"] not in before]
    if args.json:
        return json.dumps({"banned": rows})
    if not new:
        return f"{plain(args.peer)} is banned already; `federation ban` lists who is"
    return f"banned {_shown(new[-1])}: its connection is cut, and it stays out until `federation unban {new[-1]['peer_id']}`"


def let_in(args: Namespace, environ: Mapping[str, str]) -> str:
    """What `unban` says."""
    try:
        before = _listed(args, environ)
        rows = _tell(args, environ, "/api/v1/unban", {"peer": args.peer})["banned"]
    except ControlUnreachable as error:
        state = _own_state(args, environ, error)
        try:
            bans = Bans(state)
            before = [ban._asdict() for ban in bans.rows()]
            peer_id = find_peer(args.peer, bans.names, among="those that are banned here")
            if peer_id not in bans:
                raise NotFound("it is not banned here") from None
            bans.unban(peer_id)
            rows = [ban._asdict() for ban in bans.rows()]
        finally:
            state.unlock()
    if args.json:
        return json.dumps({"banned": rows})
    gone = [row for row in before if row not in rows]
    return f"no longer banned: {', '.join(map(_shown, gone)) or plain(args.peer)}"


def _listed(args: Namespace, environ: Mapping[str, str]) -> list[dict[str, Any]]:
    try:
        daemon = client.find(args.control, args.state_dir, environ)
        rows: list[dict[str, Any]] = json.loads(daemon.ask("/api/v1/banned"))["banned"]
    except ControlUnreachable as error:
        if args.peer is not None:
            raise
        return [ban._asdict() for ban in Bans(_state(args, environ, error)).rows()]
    return rows


def _tell(args: Namespace, environ: Mapping[str, str], path: str, body: object) -> dict[str, Any]:
    """The daemon's answer to what only the owner may ask."""
    daemon = client.find(args.control, args.state_dir, environ)
    answer: dict[str, Any] = json.loads(daemon.ask(path, method="POST", body=body, owner=True))
    return answer


def _state(args: Namespace, environ: Mapping[str, str], error: ControlUnreachable) -> StateDir:
    """The state directory that is meant, where there is one; else `error` stands."""
    if args.control is not None:
        raise error
    state = StateDir(args.state_dir.expanduser()) if args.state_dir else client.user_state_dir(environ)
    if not state.path.is_dir():
        raise error
    return state


def _own_state(args: Namespace, environ: Mapping[str, str], error: ControlUnreachable) -> StateDir:
    """The same, locked: a daemon that runs and does not answer must not lose what is written."""
    state = _state(args, environ, error)
    state.lock()
    return state


def _named(rows: list[Any], peer_id: str) -> str:
    return next((_shown(row) for row in rows if row["peer_id"] == peer_id), peer_id)


def _shown(row: Mapping[str, Any]) -> str:
    peer_id = plain(row["peer_id"])
    return f"{plain(row['name'])} ({peer_id})" if row["name"] else peer_id
