"""Hands this node's program and network to another machine; program/handover.py says how."""

from __future__ import annotations

import os
import secrets
from typing import TYPE_CHECKING

import trio

import federation
from federation.errors import NotDone, UsageError
from federation.ops import invites
from federation.program import installation, sums
from federation.program.archive import Name, pack
from federation.program.handover import FOLDER, PATH, Handed, line, script
from federation.units import HostPort

if TYPE_CHECKING:
    from pathlib import Path

    from federation.ops import schemas
    from federation.ops.parts import Parts

LIFETIME_S = 3600.0
MAX_LINES = 16  # whose files are there; the oldest makes room
LEVEL = 3  # of compression: somebody waits, and a local network is fast


class HandingOver:
    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._by_name: dict[str, Handed] = {}  # by a name that nobody guesses
        self._packing = trio.Lock()

    async def new(self, archive: str | None, address: str | None) -> schemas.Handover:
        """A line for one machine. `archive`: the name of one in FOLDER, else this program is packed. `address`: where the
        machine reaches the control port. Raises UsageError or NotDone.
        """
        bases = self._bases(address)
        async with self._packing:
            folder = self._parts.state.path / FOLDER
            name, path, sha256 = await trio.to_thread.run_sync(_given if archive else _packed, folder, archive)
        code, invite = await invites.new(self._parts, invites.InviteWish(LIFETIME_S))
        unguessable = secrets.token_hex(16)
        url = f"{bases[0]}{PATH}/{unguessable}"
        text = script(url, name, sha256)
        self._by_name[unguessable] = Handed(path, text, invite.id)
        while len(self._by_name) > MAX_LINES:
            del self._by_name[next(iter(self._by_name))]
        return {
            "line": line(url, text, code.encode()), "version": name.version, "archive": str(name), "sha256": sha256,
            "lifetime_s": LIFETIME_S, "invite": code.short, "base": bases[0], "other_bases": bases[1:],
        }  # fmt: skip

    def handed(self, name: str) -> Handed | None:
        """The files of that name, while the invite of their line is open."""
        handed, newcomers = self._by_name.get(name), self._parts.newcomers
        invite = None if handed is None else newcomers.invites.get(handed.invite)
        return handed if invite is not None and invite.state(newcomers.now_ms) == "open" else None

    def _bases(self, address: str | None) -> list[str]:
        """Where other machines reach the control port, the likeliest first. Raises NotDone where none does."""
        control = self._parts.facts.control
        if control.is_loopback:
            raise NotDone(
                f"other machines cannot reach the control port {control}: start the node with --control "
                f"0.0.0.0:{control.port} (all requests there then take the control key), or use `federation invite`"
            )
        scheme = "https" if self._parts.certificate.context is not None else "http"
        if address is not None:
            return [f"{scheme}://{_parsed(address, control.port)}"]
        hosts = [at.host for at in self._parts.addresses] if control.is_wildcard else [control.host]
        found = [str(at) for host in dict.fromkeys(hosts) if not (at := HostPort(host, control.port)).is_loopback]
        if not found:
            raise NotDone("this node knows no address of its own that others reach; name it with --address HOST")
        return [f"{scheme}://{at}" for at in sorted(found, key=lambda at: at.startswith("["))]


def _parsed(address: str, port: int) -> HostPort:
    try:
        parsed = HostPort.parse(address, default_port=port)
    except ValueError as error:
        raise UsageError(f"--address {address!r}: {error}") from None
    if "%" in parsed.host:  # and behind it may be anything, which a shell would read
        raise UsageError(f"--address {address!r}: a zone means something on this machine only; give an address without one")
    return parsed


def _given(folder: Path, archive: str) -> tuple[Name, Path, str]:
    """An archive that the command line has put there."""
    name = Name.parse(archive)
    if name is None:
        raise UsageError(f"{archive!r} is no name of an archive: federation-VERSION-linux-ARCH.tar.gz")
    path = folder / archive
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as file:
            return name, path, sums.of_file(file)
    except OSError as error:
        raise NotDone(f"{path}: {error.strerror}") from None


def _packed(folder: Path, _archive: None) -> tuple[Name, Path, str]:
    """This program as an archive; packed once a version."""
    found = installation.find(federation.__file__)
    if found is None:
        raise NotDone(
            "this program is a checkout or of a Python environment, so name an archive to hand over: --archive FILE "
            "(scripts/package makes one)"
        )
    name = Name.here(federation.__version__)
    path = folder / str(name)
    try:
        if not path.exists() or path.stat().st_mtime < found[1].stat().st_ctime:
            folder.mkdir(mode=0o700, exist_ok=True)
            for old in folder.iterdir():
                old.unlink()
            fresh = folder / ".new"
            with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
                pack(found[1], name, file, LEVEL)
            fresh.replace(path)
    except OSError as error:
        raise NotDone(f"the archive cannot be made in {folder}: {error.strerror}") from None
    return _given(folder, str(name))
