"""`federation use`: a client's configuration, printed, or written into the client's own file.

Standard output has what is to be pasted, alone (`eval "$(federation use openai)"`); all else goes to standard error. A key
comes from standard input, a file, a variable, or is made; never from a command line, where all can read it.
"""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from federation.cli import use_files
from federation.cli.ask import Asker
from federation.cli.render.models import table
from federation.cli.render.text import plain
from federation.cli.terminal import colorful, read_secret, say
from federation.errors import FederationError, NotDone, UsageError
from federation.use import target
from federation.use.clients import CLIENTS

if TYPE_CHECKING:
    from argparse import Namespace

    from federation.use.clients import Client, File, Recipe
    from federation.use.target import Port, Target

_OUR_KEY = re.compile(r"\bfedk_[A-Za-z0-9_-]{8,}")


def use(args: Namespace) -> None:
    if args.client is None or args.list:
        if args.write or args.undo:
            raise UsageError("say for which client: `federation use --list` names them")
        say(_listed(as_json=args.json))
        return
    client = CLIENTS[args.client]
    if args.write and args.undo:
        raise UsageError("--write and --undo are two things: give one")
    if args.undo:
        _undo(args, client)
        return
    _use(args, client)


def _listed(*, as_json: bool) -> str:
    rows = [(client, _file_of(client)) for client in CLIENTS.values()]
    if as_json:
        named = [
            {"name": c.name, "title": c.title, "file": file and str(_shown(file)), "reads": c.reads} for c, file in rows
        ]
        return json.dumps({"clients": named})
    lines = table(
        ("CLIENT", "", "--write WRITES"),
        [(client.name, client.title, str(_shown(file)) if file else "") for client, file in rows],
        right=(),
        color=colorful(sys.stdout),
    )
    return "\n".join([*lines, "", "federation use CLIENT prints its configuration; with --write it goes into the file"])


def _file_of(client: Client) -> File | None:
    """The place of the client's file does not depend on where it goes."""
    return client.make(target.target(target.Port("", "http://127.0.0.1", asks_key=False, is_local=True), [])).file


def _shown(file: File) -> Path:
    return use_files.place_of(file, os.environ)


def _use(args: Namespace, client: Client) -> None:
    asker = Asker(args)
    port, models = _asked(asker, args)
    if args.write and _file_of(client) is None:
        raise UsageError(
            f"{client.title} keeps its settings where only it can write; `federation use {client.name}` says them"
        )
    if args.write and not models and not args.model:
        raise NotDone("no node has a model yet: `federation models` shows them; --model NAME writes that one")
    path = None
    if (file := _file_of(client)) is not None:
        path = Path(args.to).expanduser() if args.to else _shown(file)
    key = _key(args, asker, port, path)
    to = target.target(port, models, model=args.model or "", key=key)
    recipe = client.make(to)
    written = None
    if args.write and recipe.file is not None and path is not None:
        try:
            written = use_files.write(path, recipe.file, is_secret=bool(to.key))
        except FederationError as error:
            if args.new_key is not None:  # nobody has it
                asker.post("keys/revoke", {"name": args.new_key.strip()})
            raise NotDone(f"{error}; `federation use {client.name}` prints what belongs there") from None
    if args.json:
        say(json.dumps(_as_json(client, to, recipe, path, written)))
    elif written is not None:
        say(_told(client, to, recipe, written, args.to))
    else:
        _print(client, to, recipe, path)


def _asked(asker: Asker, args: Namespace) -> tuple[Port, list[str]]:
    """The port of that node to go to, and the models behind it."""
    there = asker.daemon.address
    is_elsewhere = there is not None and not there.is_loopback
    host = args.host or (there.host if there is not None and is_elsewhere else "")
    node = json.loads(asker.get("status"))["node"]
    found = target.ports(node, host)
    if is_elsewhere and not args.host:
        found = [port for port in found if not port.is_local]
        if not found:
            raise NotDone(
                f"the client ports of {plain(str(there))} are for that machine alone; join opens one: --listen 0.0.0.0:8484"
            )
    port = target.port_of(found, args.service, host)
    return port, target.names(json.loads(asker.get("models")), args.service)


def _key(args: Namespace, asker: Asker, port: Port, path: Path | None) -> str:
    """The key that a person gives or has made; else the one that is in the client's file already; else a stand-in."""
    ways = [way for way in (args.key_file, args.key_variable, args.new_key) if way is not None]
    if len(ways) > 1:
        raise UsageError("--key-file, --key-variable and --new-key are three ways to one key: give one")
    if args.new_key is not None:
        return str(json.loads(asker.post("keys/add", {"name": args.new_key.strip()}))["key"])
    if args.key_file is not None:
        return target.check_key(read_secret(Path(args.key_file), "key"))
    if args.key_variable is not None:
        if not os.environ.get(args.key_variable):
            raise UsageError(f"there is no variable {plain(args.key_variable)} in this environment, or it is empty")
        return target.check_key(os.environ[args.key_variable])
    known = {*_OUR_KEY.findall(use_files.text_of(path))} if args.write and path is not None else set()
    if len(known) == 1:
        return str(known.pop())
    if port.asks_key and args.write:
        raise UsageError(
            "the port asks for a key: --new-key NAME makes one; --key-file FILE (- is standard input) takes one of yours"
        )
    return target.KEY_HERE if port.asks_key else ""


def _print(client: Client, to: Target, recipe: Recipe, path: Path | None) -> None:
    say(recipe.text.rstrip("\n"))
    lines = []
    if recipe.other is not None:
        title, text = recipe.other
        lines += [f"{title}:", "", text]
    lines += [recipe.note] if recipe.note else []
    if path is not None:
        lines.append(f"federation use {client.name} --write puts it into {path}")
    if to.key == target.KEY_HERE:
        lines.append(f"{target.KEY_HERE}: the port asks for a key; --new-key NAME makes one, --key-file FILE takes yours")
    if lines:
        print("\n".join(["", *lines]), file=sys.stderr)


def _told(client: Client, to: Target, recipe: Recipe, written: use_files.Written, place: str | None) -> str:
    path = str(written.path)
    if not written.changed:
        return f"nothing to do: {path} says so already"
    lines = [f"wrote {path}: {plain(to.model)} at {to.url}"]
    if written.link is not None:
        lines.append(f"which {written.link} leads to: keep the key out of what you share")
    undo = f"federation use {client.name} --undo" + (f" --to {quote(place)}" if place else "")
    lines.append(f"former: {written.backup}; {undo} puts it back" if written.backup else f"undo:   {undo}")
    start = recipe.start.replace("FILE", quote(path))
    lines += [f"{'next:' if i == 0 else 'or:':<7} {line}" for i, line in enumerate(start.splitlines())]
    return "\n".join([*lines, *([recipe.note] if recipe.note else [])])


def _as_json(
    client: Client, to: Target, recipe: Recipe, path: Path | None, written: use_files.Written | None
) -> dict[str, Any]:
    """Without the texts where they are in the file: they have the key in them."""
    texts = [{"title": client.title, "text": recipe.text}]
    texts += [{"title": recipe.other[0], "text": recipe.other[1]}] if recipe.other else []
    said: dict[str, Any] = {
        "client": client.name, "service": to.port.service, "url": to.url, "model": to.model, "models": list(to.models),
        "asks_key": to.port.asks_key, "file": path and str(path), "note": recipe.note, "reads": client.reads,
    }  # fmt: skip
    if written is None:
        return said | {"texts": texts}
    return said | {"changed": written.changed, "backup": written.backup and str(written.backup)}


def _undo(args: Namespace, client: Client) -> None:
    file = _file_of(client)
    if file is None:
        raise UsageError(f"{client.title} has no file that federation writes")
    path = Path(args.to).expanduser() if args.to else _shown(file)
    undone = use_files.undo(path)
    if args.json:
        say(
            json.dumps(
                {"client": client.name, "file": str(undone.path), "kept": str(undone.kept), "removed": undone.removed}
            )
        )
        return
    did = "removed" if undone.removed else "put back"
    say(f"{did} {undone.path}; what it said until now is in {undone.kept}")
