"""Clients' own files: where they are, and how one is written over without losing what was there.

Rule 1: a file is written whole or not at all, and before that its former content goes to FILE.before-federation (then .2, .3
and so on), with the mode that it had. An empty one says that there was no file.
Rule 2: a file with a key in it is for its owner only, also if it was not before.
Rule 3: undo puts the newest of these back, and keeps what it replaces in FILE.after-federation.
Rule 4: a link is followed, since many keep such files elsewhere; the person is told.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from federation.dirs import default_config_file
from federation.errors import NotDone, UsageError
from federation.state import write_new, write_over
from federation.units import decoded
from federation.use.merge import merged

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from federation.use.clients import File

BEFORE, AFTER = ".before-federation", ".after-federation"
MAX_BACKUPS = 1000
MAX_BYTES = 1 << 20


@dataclass(frozen=True)
class Written:
    """`link`: by which the file was named. `backup`: the former content; None if there was none."""

    path: Path
    changed: bool
    link: Path | None = None
    backup: Path | None = None


@dataclass(frozen=True)
class Undone:
    """`removed`: there had been no file. `kept`: what the file said until now."""

    path: Path
    kept: Path
    removed: bool


def place_of(file: File, environ: Mapping[str, str]) -> Path:
    if file.is_own:
        return default_config_file(environ).parent / "use" / file.path
    moved = environ.get(file.moved_by, "") if file.moved_by else ""
    try:
        return Path(moved).expanduser() / Path(file.path).name if moved else Path.home() / file.path
    except RuntimeError:
        raise UsageError("this user has no home directory; set HOME, or name the file: --to FILE") from None


def text_of(path: Path) -> str:
    """What the file says; empty where there is none. Raises NotDone."""
    try:
        return decoded(_bytes_of(path) or b"")
    except UnicodeDecodeError:
        raise NotDone(f"{path} is not text in UTF-8; nothing was changed") from None


def _bytes_of(path: Path) -> bytes | None:
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:  # a pipe may be there
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise NotDone(f"{path} is no file; name another with --to")
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise NotDone(f"{path}: {error.strerror or error}; nothing was changed") from None
    if len(data) > MAX_BYTES:
        raise NotDone(f"{path} is far longer than such a file; nothing was changed")
    return data


def write(path: Path, file: File, *, is_secret: bool) -> Written:
    """Merge the file's data into what is there. Raises NotDone, and then nothing was changed."""
    link, path = (path, path.resolve()) if path.is_symlink() else (None, path.absolute())
    data, old = _bytes_of(path), text_of(path)
    try:
        new = merged(file, old)
    except NotDone as error:
        raise NotDone(f"{path}: {error}") from None
    try:
        former = path.stat() if data is not None else None
        mode = 0o600 if former is None else stat.S_IMODE(former.st_mode)
        wanted = mode & 0o600 if is_secret else mode
        if data is not None and old == new:
            if mode != wanted:
                path.chmod(wanted)
            return Written(path, changed=False, link=link)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        backup = _backup_of(path)
        write_new(backup, data or b"")
        try:
            write_over(path, new.encode())
        except OSError:
            backup.unlink()  # it would be what --undo puts back
            raise
        for at, its in ((backup, mode), (path, wanted)):
            _like(at, former, its)
    except OSError as error:
        raise NotDone(f"{path}: {error.strerror or error}; nothing was changed") from None
    return Written(path, changed=True, link=link, backup=backup if data else None)


def undo(path: Path) -> Undone:
    """Put back what was there before the last write. Raises NotDone."""
    path = path.resolve() if path.is_symlink() else path.absolute()
    backup = next((at for at in reversed(list(_backups(path))) if at.exists()), None)
    if backup is None:
        raise NotDone(f"there is no {path}{BEFORE}: federation has not written it, or that is undone already")
    kept = path.with_name(path.name + AFTER)
    try:
        write_over(kept, _bytes_of(path) or b"")
        removed = not backup.stat().st_size
        if removed:
            path.unlink(missing_ok=True)
            backup.unlink()
        else:
            backup.replace(path)
    except OSError as error:
        raise NotDone(f"{path}: {error.strerror or error}") from None
    return Undone(path, kept, removed)


def _backups(path: Path) -> Iterator[Path]:
    """The names that are taken, oldest first, and the next one."""
    for n in range(1, MAX_BACKUPS + 1):
        at = path.with_name(path.name + BEFORE + (f".{n}" if n > 1 else ""))
        yield at
        if not at.exists():
            return


def _backup_of(path: Path) -> Path:
    at = list(_backups(path))[-1]
    if at.exists():
        raise NotDone(f"{path} has {MAX_BACKUPS} backups beside it; move them away, then try again")
    return at


def _like(path: Path, former: os.stat_result | None, mode: int) -> None:
    """With the mode, and of the owner that the former file had: it may be somebody else's, and this be root."""
    if former is not None and former.st_uid != os.geteuid():
        with suppress(OSError):
            os.chown(path, former.st_uid, former.st_gid)
    path.chmod(mode)
