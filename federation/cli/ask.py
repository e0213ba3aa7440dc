"""Commands that ask a running node, or tell it something. Each prints text for people, or with --json the API's answer."""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from federation.cli import client, orders
from federation.cli.render import connections as render_connections
from federation.cli.render import models as render_models
from federation.cli.render import text as render
from federation.cli.terminal import Progress, Screen, colorful, confirm, say, width
from federation.errors import ControlUnreachable, FederationError, NotDone, UsageError
from federation.units import parse_duration, parse_size

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Mapping


POLL_S = 0.25
WATCH_S = 1.0
MAX_DECISIONS = 256  # as many as a node keeps


class Asker:
    """The running node's API, as --control, --state-dir and the environment name it."""

    def __init__(self, args: Namespace) -> None:
        self.daemon = client.find(args.control, args.state_dir)

    def get(self, path: str) -> str:
        return self.daemon.ask(f"/api/v1/{path}")

    def post(self, path: str, body: object = None, *, method: str = "POST", timeout_s: float = client.TIMEOUT_S) -> str:
        """Ask as the owner, and only a daemon that has proved to be the right one."""
        return self.daemon.ask(f"/api/v1/{path}", method=method, body=body, owner=True, timeout_s=timeout_s)


def status(args: Namespace) -> None:
    asker = Asker(args)
    if not args.watch:
        text = asker.get("status")
        say(text if args.json else render.status(json.loads(text), color=colorful(sys.stdout)))
        return
    if args.json:  # a line each time, for programs
        while True:
            say(asker.get("status"))
            time.sleep(WATCH_S)
    with Screen() as screen:
        while True:
            screen.show(_watched(asker))
            time.sleep(WATCH_S)


def _watched(asker: Asker) -> str:
    """The present picture. While the node restarts, a line that says so."""
    try:
        answer = json.loads(asker.get("status"))
        rows = json.loads(asker.get("peers"))
    except ControlUnreachable as error:
        return f"{time.strftime('%H:%M:%S')}  {error}"
    color = colorful(sys.stdout)
    shown = render.status(answer, color=color)
    return f"{shown}\n\n{render.peers(rows, color=color, width=width())}"


def peers(args: Namespace) -> None:
    text = Asker(args).get("peers")
    say(text if args.json else render.peers(json.loads(text), color=colorful(sys.stdout), width=width()))


def models(args: Namespace) -> None:
    text = Asker(args).get("models")
    say(text if args.json else render_models.models(json.loads(text), color=colorful(sys.stdout)))


def place(args: Namespace) -> int:
    """Show which node has room. Exits with 1 if none has."""
    if args.vram is None and args.model is None:
        raise UsageError("say what to place: --vram SIZE, or --model NAME, or both")
    query: dict[str, str] = {}
    if args.vram is not None:
        query["vram"] = str(_size(args.vram, "--vram"))
    if args.among is not None:
        query["among"] = args.among
    if args.model is not None:
        query["model"] = args.model
    text = Asker(args).get(f"placement?{urlencode(query)}")
    answer = json.loads(text)
    say(text if args.json else render_models.placement(answer, color=colorful(sys.stdout)))
    return 0 if answer["best"] else 1


def invite(args: Namespace) -> str:
    """Print the token, and return it.

    The secret comes from the state directory, which only the daemon's own user can read: it does not travel by HTTP. The
    daemon adds addresses, and a false daemon would add its own: so the daemon has to prove that it is the right one.
    """
    from federation.mesh import token_store
    from federation.ops.invitation import COMMAND

    asker = Asker(args)
    network = json.loads(asker.post("status", method="GET"))["network"]
    state = asker.daemon.state
    token = token_store.saved_token(state)
    if token is None or token.network_id != network["id"]:
        where = f"is not in {state.path}; run this on the daemon's machine, with its --state-dir"
        raise NotDone(f"the token of that daemon's network {where}")
    text = token.with_addresses(tuple(network["invite_addresses"])).encode()
    say(json.dumps({"token": text, "command": COMMAND}) if args.json else text)
    return text


def drain(args: Namespace) -> None:
    """Tell the node to drain; with --wait, return when no connection is open any more."""
    asker = Asker(args)
    order = orders.giver(asker, args)
    text = order("drain")
    if not args.wait:
        where = "here" if args.node is None else f"to {orders.name(text)}"
        say(text if args.json else render_connections.draining(json.loads(text), where))
        return
    deadline = time.monotonic() + duration(args.timeout, "--timeout")
    with Progress() as progress:
        quiet = 0  # looks in a row: also for clients on their way before other nodes have heard of the drain
        while quiet < 2:
            answer = json.loads(text)
            quiet = quiet + 1 if not answer["in_flight"] and not answer["clients"] else 0
            if not quiet:
                progress.show(render_connections.draining(answer))
                if time.monotonic() > deadline:
                    still_open = render_connections.still_open(answer)
                    raise NotDone(f"not drained within {args.timeout}: {still_open}{_cost(answer)}")
            time.sleep(POLL_S if args.node is None else WATCH_S)
            text = order("drain" if args.node is None else "look")
    where = "here" if args.node is None else f"at {orders.name(text)}"
    say(text if args.json else f"drained: nothing is open {where}; it is safe to reboot")


def _cost(answer: Mapping[str, Any]) -> str:
    idle = answer.get("idle", 0) + answer.get("idle_clients", 0)
    is_all = idle and idle == answer["in_flight"] + answer["clients"]
    return "; a reboot costs an idle one its connection, and no answer" if is_all else ""


def undrain(args: Namespace) -> None:
    text = orders.giver(Asker(args), args)("undrain")
    who = "this node" if args.node is None else orders.name(text)
    say(text if args.json else f"{who} takes connections again")


def explain(args: Namespace) -> None:
    if args.id is not None:
        path = f"explain?id={positive(args.id, '--id')}"
        last = MAX_DECISIONS
    else:
        last = positive(args.last, "--last")
        path = f"explain?last={MAX_DECISIONS}"
    text = Asker(args).get(path)
    answer = json.loads(text)
    kept = render_connections.newest_connections(answer, last)
    if args.id is not None and not (kept["decisions"] or kept["turned_away"]):
        raise NotDone(
            f"no connection #{args.id} among the last {MAX_DECISIONS} decisions; `federation logs` has the numbers"
        )
    say(json.dumps(kept) if args.json else render_connections.explained(kept, color=colorful(sys.stdout)))


def leave(args: Namespace) -> None:
    """Leave the network: with the node running by a good-bye and its end, else by forgetting the token alone."""
    try:
        asker: Asker | None = Asker(args)
        assert asker is not None
        status = json.loads(asker.post("status", method="GET"))
    except ControlUnreachable:
        if args.control is not None:
            raise
        asker, status = None, {}
    if asker is None:
        _leave_unheard(args)
        return
    network = render_connections.network(status["network"])
    if not args.yes and not confirm(f"Leave the network {network} and forget its token?"):
        raise NotDone("nothing was done: you said no")
    holder = asker.daemon.state.holder()
    asker.post("leave")
    with Progress() as progress:
        while True:
            try:
                status = json.loads(asker.post("status", method="GET"))
            except FederationError:
                break
            open_ = {"in_flight": status["node"]["in_flight"], "clients": status["connections"]["now"]}
            progress.show(f"leaving: {render_connections.still_open(open_)}")
            time.sleep(POLL_S)
        # By the lock: the process number of another machine or a container is another process here.
        while asker.daemon.address is None and holder is not None and asker.daemon.state.holder() == holder:
            time.sleep(POLL_S)
    if args.json:
        say(json.dumps({"left": status["network"]["id"]}))
        return
    said = f"left the network {network}, token forgotten"
    if status["network"].get("owner_here"):
        said += _owner_key_stays(render.plain(status["node"]["state_dir"]))
    say(said)


def _leave_unheard(args: Namespace) -> None:
    from federation.mesh import token_store

    state = client.state_dir(args.state_dir)
    token = token_store.saved_token(state)
    if token is None:
        raise UsageError(f"no daemon runs, and no token is saved in {state.path}")
    if not args.yes and not confirm(f"Forget the token of the network {token.name or token.network_id}?"):
        raise NotDone("nothing was done: you said no")
    state.lock()  # a daemon that is just starting keeps its token
    state.forget_network(token.is_same_network)
    state.unlock()
    if args.json:
        say(json.dumps({"left": token.network_id}))
        return
    said = f"the token of the network {token.name or token.network_id} is forgotten (no daemon ran to say good-bye)"
    if state.owner_key_path(token.network_id).exists():
        said += _owner_key_stays(str(state.path))
    say(said)


def _owner_key_stays(directory: str) -> str:
    return f"; the network's owner key stays in {directory}: without it, nobody can rotate that network's token"


def positive(text: str, flag: str) -> int:
    """Read a number above zero. Raises UsageError."""
    if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text)):
        raise UsageError(f"{flag} {text!r}: a number from 1 on")
    return int(text)


def _size(text: str, flag: str) -> int:
    """Bytes. Raises UsageError."""
    try:
        return parse_size(text)
    except ValueError as error:
        raise UsageError(f"{flag} {text!r}: {error}") from None


def duration(text: str | None, flag: str) -> float:
    """Seconds; None is for ever. Raises UsageError."""
    try:
        return float("inf") if text is None else parse_duration(text)
    except ValueError as error:
        raise UsageError(f"{flag} {text!r}: {error}") from None
