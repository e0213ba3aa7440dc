"""`federation update` and `federation uninstall`: the program that is installed here, its versions and its end."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import federation
from federation.cli import service
from federation.cli.ask import duration
from federation.cli.terminal import Progress, complain, confirm, say
from federation.dirs import default_config_file, default_state_dir
from federation.errors import FederationError, NotDone, UsageError
from federation.program import account, installation, sums, updating
from federation.program.archive import order
from federation.program.commands import Commands
from federation.program.installation import Installation
from federation.program.service import SYSTEM_STATE_DIR, Manager
from federation.state import FILES, StateDir

if TYPE_CHECKING:
    from argparse import Namespace

POLL_S = 0.5
FULL_LIST = 12  # more files of one folder than this are counted in one line


def update(args: Namespace) -> int:
    place = _place(args)
    wait_s = duration(args.wait, "--wait")
    if args.rollback:
        left, to = updating.go_back(place)
        say(f"back at {to}; {left} stays here, and `federation update --rollback` goes to it again")
        _restart(place, wait_s, instead=left)
        return 0
    source = args.source or place.source
    if source is None:
        raise UsageError("--from is missing: the address or folder of the archives, or an archive")
    pinned = None if args.sha256 is None else sums.wanted(args.sha256)
    offer = updating.offer(source, pinned, updating.public_key(place))
    version, current = offer.name.version, place.current
    if args.check:
        is_newer = current is None or order(version) > order(current)
        where = offer.source.text
        say(f"{version} is at {where}, {current} is installed" if is_newer else f"{current} is the newest at {where}")
        return 0 if is_newer else 1
    if version == current:
        say(f"{version} is installed already, in {place.folder(version)}; looked at {offer.source.text}")
        return 0
    if not args.older:
        updating.check_is_newer(version, current)
    with Progress() as progress:
        before = updating.take(place, offer, Commands(os.environ), progress.show)
    say(f"installed federation {version} in {place.folder(version)}")
    if before is not None:
        say(f"{before} stays; `federation update --rollback` goes back to it")
    elif str(place.link.parent) not in os.environ.get("PATH", "").split(os.pathsep):
        say(f"{place.link.parent} is not in your PATH: call {place.link}, or add the folder")
    _restart(place, wait_s, instead=before)
    removed = place.prune()
    if removed:
        say(f"removed: {', '.join(removed)}")
    return 0


def _place(args: Namespace) -> Installation:
    """The installation that is meant. Raises NotDone where this program is not one."""
    if args.prefix is not None:
        return Installation(args.prefix.expanduser().absolute())
    found = installation.find(federation.__file__)
    if found is None:
        raise NotDone(_how_else("update"))
    if found[0].is_packaged:
        raise NotDone("this version is of a package: install the newer one with apt or dnf; it restarts the service itself")
    return found[0]


def _how_else(what: str) -> str:
    """What to do where the program came another way."""
    root = Path(federation.__file__).resolve().parents[1]
    if (root / ".git").exists():
        how = "git pull && scripts/setup" if what == "update" else f"remove {root}"
        return f"this is a checkout, in {root}: {how}"
    verb = {"update": "upgrade"}.get(what, what)
    return f"this program is in a Python environment, {root}: `pipx {verb} federation`, `uv tool {verb} federation`, or pip"


# The service goes over to the new version


def _restart(place: Installation, wait_s: float, *, instead: str | None) -> None:
    """Restart the services that run from here, with a drain. If one does not start with the new version, `instead` is used
    again and the new one is removed: NotDone.
    """
    using = [it for it in service.all_installed() if str(place.link) in it.file.read_text(errors="replace")]
    running = [manager for manager in using if manager.state().running]
    for manager in running:
        directory = manager.state_dir()
        with Progress() as progress:
            if directory is not None:
                _drain(StateDir(directory), wait_s, progress)
            progress.show("restarting the service")
            try:
                manager.start()
            except NotDone as error:
                if instead is None:
                    raise
                failed = place.current
                updating.give_up(place, instead)
                manager.start()
                raise NotDone(f"{failed} was taken back, and {instead} runs again: {error}") from None
        say(f"the service of {service.owner_of(manager)} runs {place.current} now")
    holder = StateDir(default_state_dir(os.environ)).holder()
    if holder is not None and not running:
        say(f"a node runs here (process {holder}), with its old version until somebody starts it anew")


def _drain(state: StateDir, wait_s: float, progress: Progress) -> None:
    """Let what is open come to its end, for a while. What is left has --drain-timeout when the node stops."""
    from federation.cli.client import Daemon
    from federation.cli.render.connections import still_open

    daemon = Daemon(state)
    deadline = time.monotonic() + wait_s
    try:
        while True:
            open_ = json.loads(daemon.ask("/api/v1/drain", method="POST", owner=True))
            if not (open_["in_flight"] or open_["clients"]):
                return
            if time.monotonic() > deadline:
                complain(f"still open after {wait_s:g} s: {still_open(open_)}; these get --drain-timeout to end")
                return
            progress.show(f"draining: {still_open(open_)}")
            time.sleep(POLL_S)
    except FederationError as error:
        complain(f"the node was not asked to drain ({error}); it restarts all the same")
    except KeyboardInterrupt:  # the new version is there, and the old one goes on: as if nobody had asked it to drain
        daemon.ask("/api/v1/undrain", method="POST", owner=True)
        raise


# Uninstall


class _Found(NamedTuple):
    services: list[Manager]
    program: Installation | None
    states: list[Path]
    config: Path | None


def uninstall(args: Namespace) -> None:
    found = _found(args)
    paths = _paths(found)
    if args.json:
        if not args.dry_run:
            raise UsageError("--json goes with --dry-run")
        every = [str(file) for path in paths for file in _every(path)]
        say(json.dumps({"files": every, "stops": [str(manager.file) for manager in found.services]}))
        return
    say(_listing(args, found, paths))
    if args.dry_run or not paths:
        return
    if not args.yes and not confirm("Remove these?"):
        raise NotDone("nothing was done: you said no")
    _remove(found)
    say("removed")


def _listing(args: Namespace, found: _Found, paths: list[Path]) -> str:
    lines = [f"{'would remove' if args.dry_run else 'to remove'}:"] if paths else ["nothing to remove"]
    lines += [f"  {line}" for path in paths for line in _listed(path)]
    if not args.state:
        lines += [f"stays: {path}  (identity and token; --state removes them)" for path in _states(args)]
    if found.program is None:
        lines.append(_how_else("uninstall") if not _is_packaged() else "the program is of a package: apt remove federation")
    return "\n".join(lines)


def _remove(found: _Found) -> None:
    """The program last: this process runs from it."""
    for manager in found.services:
        service.remove(manager)
    for directory in found.states:
        _forget(directory)
    try:
        if found.config is not None:
            found.config.unlink(missing_ok=True)
        if found.program is not None:
            found.program.remove()
    except OSError as error:
        raise NotDone(f"cannot remove {error.filename}: {error.strerror}") from None


def _found(args: Namespace) -> _Found:
    services: list[Manager] = []
    theirs: list[Manager] = []
    for manager in service.all_installed():
        (theirs if manager.is_system and os.geteuid() else services).append(manager)
    for manager in theirs:
        complain(f"{manager.file} is the machine's: sudo federation uninstall removes it")
    own = installation.find(federation.__file__)
    program = own[0] if own is not None and not own[0].is_packaged else None
    if program is not None and not os.access(program.home, os.W_OK):
        raise NotDone(f"{program.home} is the machine's: sudo federation uninstall")
    config = default_config_file(os.environ)
    return _Found(services, program, _states(args) if args.state else [], config if args.state and config.exists() else None)


def _states(args: Namespace) -> list[Path]:
    """The state directories that are there: the services', the user's own, and the one that is named."""
    known = [manager.state_dir() for manager in service.all_installed() if not (manager.is_system and os.geteuid())]
    given = None if args.state_dir is None else args.state_dir.expanduser().absolute()
    if os.geteuid() == 0:
        known.append(Path(SYSTEM_STATE_DIR))
    found = dict.fromkeys(path for path in (*known, default_state_dir(os.environ), given) if path is not None)
    return [path for path in found if path.is_dir()]


def _is_packaged() -> bool:
    own = installation.find(federation.__file__)
    return own is not None and own[0].is_packaged


def _paths(found: _Found) -> list[Path]:
    paths = [manager.file for manager in found.services]
    if found.program is not None:
        paths += [found.program.link] if found.program.is_link_ours() else []
        paths.append(found.program.home)
    for directory in found.states:
        paths += [*_own_files(directory), directory]
    return [*paths, *([found.config] if found.config else [])]


def _own_files(directory: Path) -> list[Path]:
    """A node's files in its state directory. Whatever else a person put there is not ours to remove."""
    try:
        return sorted(path for path in directory.iterdir() if FILES.fullmatch(path.name))
    except OSError:
        return []


def _forget(directory: Path) -> None:
    """Remove a node's files, and the directory if nothing else is in it. As root, act as the directory's owner."""
    state = StateDir(directory)
    holder = state.holder()
    if holder is not None:
        raise NotDone(f"a node runs with {directory} (process {holder}); stop it first")
    try:
        with account.acting_as(account.owner_of(directory)):
            for path in _own_files(directory):
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
            left = list(directory.iterdir())
        if left:
            complain(f"{directory} stays: {left[0].name} in it is not ours")
            return
        directory.rmdir()
    except OSError as error:
        raise NotDone(f"cannot remove {directory}: {error.strerror}") from None
    if str(directory) == SYSTEM_STATE_DIR and os.geteuid() == 0:
        why = account.remove(Commands(os.environ))
        if why is not None:
            complain(f"the user {account.ACCOUNT} stays: {why}")


def _listed(path: Path) -> list[str]:
    if path.is_dir() and not path.is_symlink():
        files = list(_every(path))
        size = sum(file.lstat().st_size for file in files)
        return [f"{path}/  ({len(files)} files, {size // 1024**2} MiB)"] if len(files) > FULL_LIST else [f"{path}/"]
    return [f"{path} -> {os.readlink(path)}" if path.is_symlink() else str(path)]


def _every(path: Path) -> Any:
    if not path.is_dir() or path.is_symlink():
        yield path
        return
    for folder, _, names in os.walk(path):
        yield from (Path(folder) / name for name in names)
