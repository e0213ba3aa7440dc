"""The commands for tokens, and for the owner of a network: token new, inspect and rotate, owner show and export.

The owner's key never leaves this process: with --owner-key the daemon prepares a rotation, it is signed here, and the daemon
carries it out.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from federation.cli import client
from federation.cli.ask import Asker, duration
from federation.cli.render import connections as render_connections
from federation.cli.render import text as render
from federation.cli.render.text import plain
from federation.cli.terminal import complain, read_secret, read_stdin, say
from federation.errors import ControlUnreachable, NotDone, StateDirUnusable, UsageError
from federation.mesh import token_store
from federation.mesh.invite_codes import InviteCode, is_code
from federation.mesh.owner import MAX_GRACE, OwnerKey
from federation.mesh.tokens import Token
from federation.state import write_new

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Mapping
    from pathlib import Path

KEY_WARNING = "whoever has this key decides who is a member: keep it where no other person and no other machine reads it"


def token_new(args: Namespace) -> None:
    """The token alone on standard output; where the owner's key is, on standard error."""
    from federation.net.dial.address import PeerAddress

    key = OwnerKey.new()
    token = Token.new(args.name, [str(PeerAddress.parse(text)) for text in args.peer], owner=key.public)
    if args.owner_key is not None:
        path = _written(args.owner_key, key)
    else:
        try:
            path = client.state_dir(None).save_owner_key(token.network_id, key.encode())
        except StateDirUnusable as error:
            raise NotDone(f"cannot keep the owner key: {error.detail}; name a file for it with --owner-key") from None
    complain(f"the network's owner key, which alone can rotate this token, is in {path}; keep it, and a backup")
    say(token.encode())


def token_inspect(args: Namespace) -> None:
    """Inspect the token given, else that of FEDERATION_TOKEN, else the saved one."""
    text = args.token
    if text is None and args.state_dir is None:
        text = os.environ.get("FEDERATION_TOKEN") or None
    if text is not None:
        text = read_stdin("token") if text == "-" else text
        if is_code(text):
            say(render.invite_code(InviteCode.decode(text)))
            return
        token = Token.decode(text)
    else:
        state = client.state_dir(args.state_dir)
        saved = token_store.saved_token(state)
        if saved is None:
            raise UsageError(f"no token is given, and none is saved in {state.path}")
        token = saved
    say(render.token(token))


def rotate(args: Namespace) -> None:
    wish = {"grace_s": duration(args.grace, "--grace"), "except": args.excepted, "keep_banned": args.keep_banned}
    if wish["grace_s"] > MAX_GRACE.total_seconds():
        raise UsageError(f"--grace {args.grace!r}: 30 days (720h) at most")
    if "" in args.excepted:  # a variable of the shell's that is not set
        raise UsageError("--except '': it is empty")
    key = None if args.owner_key is None else OwnerKey.decode(read_secret(args.owner_key, "owner key"))
    asker = Asker(args)
    answer = json.loads(asker.post("token/rotate", wish)) if key is None else _signed_here(asker, wish, key)
    say(json.dumps(answer) if args.json else rotated(answer))


def _signed_here(asker: Asker, wish: Mapping[str, Any], key: OwnerKey) -> dict[str, Any]:
    prepared = json.loads(asker.post("token/rotation", wish))
    if prepared["owner"] != key.public.hex():
        raise UsageError(
            f"this is not the owner key of network {plain(prepared['network'])}: its public half is {key.public.hex()}, "
            f"the network's {plain(prepared['owner'])}"
        )
    signature = key.sign(bytes.fromhex(prepared["order"])).hex()
    answer: dict[str, Any] = json.loads(asker.post("token/rotation/signed", {"signature": signature}))
    return answer


def rotated(answer: Mapping[str, Any]) -> str:
    """Render the answer to `token rotate`."""

    def names(key: str) -> str:
        return ", ".join(map(plain, answer[key]))

    lines = [f"the token of network {plain(answer['network'])} is a new one; `federation invite` prints it"]
    lines.append(f"told: {names('told') or 'nobody, no other member is connected'}")
    if answer["not_told"]:
        lines.append(f"no answer yet from: {names('not_told')}")
    lines += [f"left out: {_named(row)}" for row in answer["excepted"]]
    if count := answer.get("open_invites"):
        let_in = "1 invite made here lets" if count == 1 else f"{count} invites made here let"
        lines.append(f"{let_in} newcomers in with the new token; to end that: federation invite --revoke all")
    until = answer["former_until"]
    lines.append(
        f"until {plain(until)} the former token admits too; who has not got the new one by then is out"
        if until
        else "the former token admits nobody any longer"
    )
    return "\n".join(lines)


def show(args: Namespace) -> None:
    """Tell where the owner's key is: by the running node; without one, by the state directory."""
    try:
        network = json.loads(Asker(args).get("status"))["network"]
    except ControlUnreachable as error:
        if args.control is not None:
            raise
        network = _saved_network(args, error)
    if args.json:
        say(json.dumps({key: network[key] for key in ("id", "name", "owner", "owner_here", "owner_at")}))
    else:
        say(shown(network))


def shown(network: Mapping[str, Any]) -> str:
    """Render the answer to `owner show`."""
    name, network_id = render_connections.network(network), plain(network["id"])
    lines = [f"network  {name} ({network_id})" if name != network_id else f"network  {name}"]
    if not network["owner"]:
        return "\n".join([*lines, "owner    none: its token is from before there were owners, and cannot be rotated"])
    lines.append(f"owner    {plain(network['owner'])}")
    if network["owner_here"]:
        lines.append("key      here, in the state directory; `federation owner export` prints it for a backup")
    else:
        lines.append("key      not on this node")
    lines += [f"         {plain(who, 160)} says that it has it" for who in network["owner_at"]]
    return "\n".join(lines)


def export(args: Namespace) -> None:
    """Print the key from the state directory, which only the daemon's own user can read: it does not travel by HTTP."""
    state = client.state_dir(args.state_dir)
    token = token_store.saved_token(state)
    if token is None:
        raise UsageError(f"no token is saved in {state.path}")
    if not token.owner:
        raise NotDone(f"network {token.network_id} has no owner: its token is from before there were owners")
    key = token_store.owner_key(token, state)
    if key is None:
        raise NotDone(f"the owner key of network {token.network_id} is not in {state.path}; see `federation owner show`")
    if args.to is not None:
        complain(f"the owner key of network {token.network_id} is in {_written(args.to, key)}; {KEY_WARNING}")
        return
    complain(f"this is the owner key of network {token.network_id}; {KEY_WARNING}")
    say(key.encode())


def _written(path: Path, key: OwnerKey) -> Path:
    if str(path) == "-":  # which --owner-key would read from standard input
        raise UsageError("the owner key goes to a file, and - is none; name one")
    path = path.expanduser()
    try:
        write_new(path, f"{key.encode()}\n".encode())
    except FileExistsError:
        raise UsageError(f"{path} is there already, and is not overwritten; name another file") from None
    except OSError as error:
        raise NotDone(f"cannot write the owner key to {path}: {error.strerror or error}") from None
    return path


def _saved_network(args: Namespace, error: ControlUnreachable) -> dict[str, Any]:
    state = client.state_dir(args.state_dir)
    token = token_store.saved_token(state)
    if token is None:
        raise error
    here = bool(token.owner) and token_store.owner_key(token, state) is not None
    return {
        "id": token.network_id, "name": token.name, "owner": token.owner.hex(), "owner_here": here, "owner_at": [],
    }  # fmt: skip


def _named(row: Mapping[str, Any]) -> str:
    peer_id = plain(row["peer_id"], 128)
    return f"{plain(row['name'])} ({peer_id})" if row["name"] else f"{peer_id} (its record is not here: check the id)"
