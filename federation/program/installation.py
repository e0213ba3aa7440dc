"""The program as it is installed: one folder a version, and a link to the one that is used.

    PREFIX/lib/federation/VERSION/    the program `federation` and all that it needs
    PREFIX/lib/federation/current     -> VERSION
    PREFIX/lib/federation/previous    -> the version before, which `update --rollback` takes
    PREFIX/lib/federation/source      the address of the archives that updates come from
    PREFIX/bin/federation             -> ../lib/federation/current/federation

PREFIX is ~/.local for one user and /usr/local for the machine. A version's folder appears whole, under its name, before a
link leads to it, and links are replaced in one step: whenever the machine stops, the link leads to a version that works.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING

from federation.errors import NotDone
from federation.program.archive import PROGRAM, Name, order, sync, unpack

if TYPE_CHECKING:
    from collections.abc import Iterator

    from federation.program.commands import Commands

CURRENT, PREVIOUS, SOURCE = "current", "previous", "source"
HASH = "share/sha256"  # of the archive, in a version's folder
MADE = "made"  # names the folders that were made with the installation
PACKAGED = Path("/usr")  # there a package manager decides
FIRST_RUN_S = 60.0  # a new program's first start, from a slow disk
MAX_SOURCE_BYTES = 4096


class Installation:
    def __init__(self, prefix: Path) -> None:
        self.prefix = prefix
        self.home = prefix / "lib" / PROGRAM
        self.link = prefix / "bin" / PROGRAM

    @property
    def is_packaged(self) -> bool:
        """Whether dpkg or rpm put it there."""
        return self.prefix == PACKAGED

    @property
    def current(self) -> str | None:
        """The version that is used; None if there is none."""
        return self._led_to(CURRENT)

    @property
    def previous(self) -> str | None:
        """The version before the current one; without a link that says it, the newest of those that are older."""
        current, found = self.current, self._led_to(PREVIOUS)
        if found is not None and found != current:
            return found
        older = [version for version in self.versions if current is not None and order(version) < order(current)]
        return older[-1] if older else None

    @property
    def source(self) -> str | None:
        """The address that updates come from, as the last install or update had it."""
        try:
            with (self.home / SOURCE).open("rb") as file:
                return file.read(MAX_SOURCE_BYTES).decode(errors="replace").strip() or None
        except OSError:
            return None

    @property
    def versions(self) -> list[str]:
        """All that are here, the oldest first."""
        return sorted((path.name for path in self._folders() if _is_version(path.name)), key=order)

    def folder(self, version: str) -> Path:
        return self.home / version

    def program(self, version: str) -> Path:
        return self.folder(version) / PROGRAM

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep a second update out. Raises NotDone; OSError where this user may not write."""
        if not self.home.exists():
            self._begin()
        fd = os.open(self.home, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._sweep()
            yield
        except BlockingIOError:
            raise NotDone(f"another update works in {self.home}; wait for its end") from None
        finally:
            os.close(fd)

    def add(self, file: IO[bytes], name: Name, sha256: str, commands: Commands) -> None:
        """Unpack an archive as its version's folder, once its program has shown that it runs here.

        Call it with the lock held. Raises NotDone or OSError, and then nothing has changed.
        """
        fresh = self.home / f".{name.version}.new"
        try:
            unpack(file, name, fresh)
            done = commands.run(str(fresh / PROGRAM), "version", timeout_s=FIRST_RUN_S)
            if done.code or done.out.split() != [PROGRAM, name.version]:
                raise NotDone(f"{name} does not run on this machine ({done.said}); nothing was changed")
            (fresh / "share").mkdir(exist_ok=True)
            (fresh / HASH).write_text(f"{sha256}\n")
            folder = self.folder(name.version)
            if folder.exists():  # of a former install; not the current one
                folder.rename(self.home / f".{name.version}.old")
            fresh.rename(folder)
            sync(self.home)
        finally:
            self._sweep()

    def use(self, version: str) -> None:
        """Make `version` the current one, and the present one the previous. Call it with the lock held. Raises OSError."""
        before = self.current
        if before is not None and before != version:
            self._lead(self.home / PREVIOUS, before)
        self._lead(self.home / CURRENT, version)
        self.link.parent.mkdir(parents=True, exist_ok=True)
        to = os.path.relpath(self.home / CURRENT / PROGRAM, self.link.parent)
        if not self.link.is_symlink() or os.readlink(self.link) != to:
            self._lead(self.link, to)

    def is_link_ours(self) -> bool:
        """Whether PREFIX/bin/federation leads into this installation."""
        return self.link.is_symlink() and (self.link.parent / os.readlink(self.link)).parent.parent.resolve() == (
            self.home.resolve()
        )

    def remember(self, source: str) -> None:
        with suppress(OSError):  # a convenience: the next update names it
            temporary = self.home / f".{SOURCE}"
            temporary.write_text(f"{source}\n")
            temporary.replace(self.home / SOURCE)

    def discard(self, version: str) -> None:
        """Remove a version that is not the current one, so that nobody goes back to it."""
        shutil.rmtree(self.folder(version), ignore_errors=True)
        with suppress(OSError):
            if os.readlink(self.home / PREVIOUS) == version:
                (self.home / PREVIOUS).unlink()

    def prune(self) -> list[str]:
        """Remove all versions but the current and the previous one, and those that run still; returns them."""
        kept = {self.current, self.previous, *self._running()}
        old = [version for version in self.versions if version not in kept]
        for version in old:
            shutil.rmtree(self.folder(version), ignore_errors=True)
        return old

    def _running(self) -> set[str]:
        """The versions of which a process runs, as far as this user may look; on Linux only."""
        found = set()
        for link in Path("/proc").glob("[0-9]*/exe"):
            with suppress(OSError, ValueError):
                found.add(Path(os.readlink(link)).relative_to(self.home).parts[0])
        return found

    def remove(self) -> None:
        """Remove all of it, and the folders that were made for it, if they are empty. Raises OSError."""
        try:
            made = (self.home / MADE).read_text().splitlines()
        except OSError:
            made = []
        if self.is_link_ours():
            self.link.unlink()
        shutil.rmtree(self.home)
        for folder in filter(os.path.isabs, made):
            with suppress(OSError):
                Path(folder).rmdir()

    def _begin(self) -> None:
        """Make the folders, and note which of them were not there: the innermost first, as install.sh does."""
        folders = (self.link.parent, self.home.parent, self.prefix, self.prefix.parent)
        made = [str(folder) for folder in folders if not folder.exists()]
        self.home.mkdir(parents=True)
        (self.home / MADE).write_text("".join(f"{folder}\n" for folder in made))

    def _led_to(self, link: str) -> str | None:
        try:
            version = os.readlink(self.home / link)
        except OSError:
            return None
        return version if _is_version(version) and self.program(version).is_file() else None

    def _lead(self, link: Path, to: str) -> None:
        fresh = link.with_name(f".{link.name}.new")
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(to)
        fresh.replace(link)
        sync(link.parent)

    def _sweep(self) -> None:
        """Remove what an update left behind that was cut off."""
        for path in self._folders():
            if path.name.startswith(".") and path.name.endswith((".new", ".old")):
                shutil.rmtree(path, ignore_errors=True)

    def _folders(self) -> list[Path]:
        try:
            return [path for path in self.home.iterdir() if path.is_dir() and not path.is_symlink()]
        except OSError:
            return []


def find(module_file: str) -> tuple[Installation, Path] | None:
    """The installation that a file of this package belongs to, and its version's folder; None for a checkout or an
    environment of Python's.
    """
    for folder in Path(module_file).resolve().parents:
        home = folder.parent
        if folder == PACKAGED / "lib" / PROGRAM:  # of a package, which has one version
            return Installation(PACKAGED), folder
        if home.name == PROGRAM and home.parent.name == "lib" and _is_version(folder.name) and (folder / PROGRAM).is_file():
            return Installation(home.parent.parent), folder
    return None


def _is_version(text: str) -> bool:
    try:
        order(text)
    except ValueError:
        return False
    return True
