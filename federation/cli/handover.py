"""`federation invite --install`: the line that installs this version on another machine, from this node, and joins."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import suppress
from typing import TYPE_CHECKING

from federation.cli.ask import Asker
from federation.cli.terminal import Progress, complain, say
from federation.errors import NotDone, UsageError
from federation.program import account
from federation.program.archive import Name
from federation.program.handover import FOLDER

if TYPE_CHECKING:
    from argparse import Namespace
    from pathlib import Path

    from federation.state import StateDir

PACK_S = 300.0  # a slow machine packs a whole program


def invite_install(args: Namespace) -> None:
    asker = Asker(args)
    wish: dict[str, str] = {}
    if args.address is not None:
        wish["address"] = args.address
    with Progress() as progress:
        progress.show("packing this version")
        if args.archive is not None:
            wish["archive"] = _brought(args.archive, asker.daemon.state)
        text = asker.post("handover", wish, timeout_s=PACK_S)
    answer = json.loads(text)
    if args.json:
        say(text)
        return
    say(answer["line"])
    others = f"; other addresses of this node: {', '.join(answer['other_bases'])}" if answer["other_bases"] else ""
    complain(
        "run this line on the other machine, in sh, bash or zsh, as root or as a user; good once, for an hour, from "
        f"{answer['base']} (--address HOST){others}. Options of `join` go at its end: --backend 127.0.0.1:11434. To end it "
        f"unused: federation invite --revoke {answer['invite']}"
    )


def _brought(archive: Path, state: StateDir) -> str:
    """Copy an archive to where the daemon hands it over; returns its name. Acts as the state directory's owner."""
    path = archive.expanduser()
    name = Name.parse(path.name)
    if name is None:
        raise UsageError(f"{path.name} is no archive of ours: federation-VERSION-linux-ARCH.tar.gz")
    folder = state.path / FOLDER
    try:
        with path.open("rb") as source, account.acting_as(account.owner_of(state.path)):
            folder.mkdir(mode=0o700, exist_ok=True)
            for old in folder.iterdir():
                old.unlink()
            fresh = folder / ".new"
            try:
                with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as to:
                    shutil.copyfileobj(source, to)
                fresh.replace(folder / path.name)
            except OSError:
                with suppress(OSError):
                    fresh.unlink()
                raise
    except OSError as error:
        raise NotDone(f"cannot bring {path} to {folder}: {error.strerror}") from None
    return path.name
