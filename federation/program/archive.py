"""A version of this program as one file: federation-VERSION-SYSTEM-ARCH.tar.gz, with one folder of that name in it.

`unpack` trusts no archive, though its hash was right: it writes files, folders and links below one new folder, and nothing
else, within bounds. `pack` makes an archive from an installed version.
"""

from __future__ import annotations

import gzip
import os
import re
import stat
import tarfile
import zlib
from pathlib import PurePosixPath
from typing import IO, TYPE_CHECKING, NamedTuple

from federation.errors import NotDone, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PROGRAM = "federation"
MAX_MEMBERS = 20_000  # a program with its own Python has about 1,000
MAX_BYTES = 2 * 1024**3
MAX_NAME = 1024
MAX_HEADERS = 64 * 1024  # between the bytes of two files: tarfile reads a header of any size into memory
CHUNK = 256 * 1024
_NAME = re.compile(rf"{PROGRAM}-([0-9][0-9A-Za-z.]{{0,40}})-([a-z]{{1,20}})-([0-9a-z_]{{1,20}})\.tar\.gz")
_VERSION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9}){0,5})(?:(?:\.?(dev|a|b|rc))([0-9]{1,9}))?")
_BEFORE_RELEASE = ("dev", "a", "b", "rc")


class Name(NamedTuple):
    """An archive's name, in its parts. `system` and `arch` are those of `uname -s` and `uname -m`, in small letters."""

    version: str
    system: str
    arch: str

    @classmethod
    def parse(cls, text: str) -> Name | None:
        match = _NAME.fullmatch(text)
        return cls(*match.groups()) if match and _VERSION.fullmatch(match[1]) else None

    @classmethod
    def here(cls, version: str) -> Name:
        """The archive of a version for this machine."""
        machine = os.uname()
        return cls(version, machine.sysname.lower(), machine.machine.lower())

    @property
    def folder(self) -> str:
        return f"{PROGRAM}-{self.version}-{self.system}-{self.arch}"

    def __str__(self) -> str:
        return f"{self.folder}.tar.gz"

    def check_is_for_here(self) -> None:
        here = Name.here(self.version)
        if self != here:
            raise UsageError(f"{self} is for {self.system} on {self.arch}; this machine is {here.system} on {here.arch}")


def order(version: str) -> tuple[tuple[int, ...], int, int]:
    """What sorts versions: 0.10.0rc1 < 0.10.0 < 0.10.1. Raises ValueError."""
    match = _VERSION.fullmatch(version)
    if match is None:
        raise ValueError(f"{version!r} is no version")
    numbers = [int(number) for number in match[1].split(".")]
    while numbers and not numbers[-1]:
        numbers.pop()
    stage = _BEFORE_RELEASE.index(match[2]) if match[2] else len(_BEFORE_RELEASE)
    return tuple(numbers), stage, int(match[3] or 0)


def unpack(file: IO[bytes], name: Name, into: Path) -> None:
    """Write the archive's folder to `into`, which must not be there, and sync it.

    Raises NotDone where the archive is not what it should be, OSError where the disk is not.
    """
    into.mkdir(mode=0o755)
    folders = {into}
    try:
        with _Plain(file, name) as plain, tarfile.open(fileobj=plain, mode="r|") as tar:
            for member, inside in _members(tar, plain, name):
                _write(tar, member, into / inside, folders, name)
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile, ValueError) as error:
        raise NotDone(f"{name} is damaged: {error}") from None
    except FileExistsError:
        raise NotDone(f"{name} is not ours: it has a file twice") from None
    for folder in folders:
        sync(folder)


class _Plain(gzip.GzipFile):
    """An archive's bytes. `left`: how many may be read until its next member."""

    def __init__(self, file: IO[bytes], archive: Name) -> None:
        super().__init__(fileobj=file)
        self._archive = archive
        self.left = MAX_HEADERS

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        self.left -= len(data)
        if self.left < 0:
            raise NotDone(f"{self._archive} is not ours: it has headers of more than {MAX_HEADERS // 1024} KiB")
        return data


def _members(tar: tarfile.TarFile, plain: _Plain, name: Name) -> Iterator[tuple[tarfile.TarInfo, PurePosixPath]]:
    """The members and their places below the archive's folder. Raises NotDone for one elsewhere, and for too many."""
    size = 0
    for count, member in enumerate(tar):
        size += max(member.size, 0)
        if count >= MAX_MEMBERS or size > MAX_BYTES:
            raise NotDone(f"{name} has more than {MAX_MEMBERS} files or {MAX_BYTES // 1024**3} GiB, which none of ours has")
        if member.issparse():
            raise NotDone(f"{name} is not ours: {_shown(member.name)} has holes")
        plain.left = MAX_HEADERS + (member.size if member.isreg() else 0)  # no others have bytes behind them
        inside = _place(member.name, name)
        if inside is not None:
            yield member, inside


def _write(tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path, folders: set[Path], name: Name) -> None:
    """Write one member, in one of `folders`, which are those of the archive."""
    if path.parent not in folders:
        raise NotDone(f"{name} is not ours: {_shown(member.name)} has no folder")
    if member.isdir():
        path.mkdir(mode=0o755)
        folders.add(path)
    elif member.isreg():
        _write_file(tar, member, path)
    elif member.issym():
        _check_link(member, name)
        path.symlink_to(member.linkname)
    else:
        raise NotDone(f"{name} is not ours: {_shown(member.name)} is no file, folder or link")


def pack(folder: Path, name: Name, to: IO[bytes], level: int = 6) -> None:
    """Write `folder` as an archive. The bytes depend on files and `level`, not on time or user. Raises OSError."""
    with (
        gzip.GzipFile(filename="", mode="wb", compresslevel=level, fileobj=to, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w|", format=tarfile.PAX_FORMAT) as tar,
    ):
        for path in (folder, *_below(folder)):
            inside = path.relative_to(folder)
            found = path.lstat()
            member = tarfile.TarInfo(f"{name.folder}/{inside.as_posix()}" if inside.parts else name.folder)
            member.mtime = 0
            if stat.S_ISLNK(found.st_mode):
                member.type, member.linkname, member.mode = tarfile.SYMTYPE, os.readlink(path), 0o777
                tar.addfile(member)
            elif stat.S_ISDIR(found.st_mode):
                member.type, member.mode = tarfile.DIRTYPE, 0o755
                tar.addfile(member)
            elif stat.S_ISREG(found.st_mode):
                member.mode = 0o755 if found.st_mode & 0o100 else 0o644
                with path.open("rb") as file:
                    member.size = os.fstat(file.fileno()).st_size
                    tar.addfile(member, file)


def sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _below(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        yield path
        if path.is_dir() and not path.is_symlink():
            yield from _below(path)


def _place(text: str, name: Name) -> PurePosixPath | None:
    """A member's place below the archive's folder; None for the folder itself. Raises NotDone for a place elsewhere."""
    path = PurePosixPath(text)
    parts = path.parts
    is_plain = len(text) <= MAX_NAME and "\0" not in text and ".." not in parts
    if not is_plain or not parts or parts[0] != name.folder:
        raise NotDone(f"{name} is not ours: {_shown(text)} lies outside of {name.folder}/")
    return PurePosixPath(*parts[1:]) if len(parts) > 1 else None


def _check_link(member: tarfile.TarInfo, name: Name) -> None:
    """A link leads to a place below the archive's folder: first up, as often as there are folders, and then only down."""
    target = PurePosixPath(member.linkname)
    ups = target.parts.count("..")
    depth = len(PurePosixPath(member.name).parts) - 2  # below the archive's folder
    is_inside = bool(target.parts) and not target.is_absolute() and ups <= depth
    if not is_inside or ".." in target.parts[ups:] or "\0" in member.linkname:
        raise NotDone(f"{name} is not ours: the link {_shown(member.name)} leads outside")


def _write_file(tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> None:
    mode = 0o755 if member.mode & 0o100 else 0o644
    source = tar.extractfile(member)
    assert source is not None  # a regular file has one
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode), "wb") as file:
        while chunk := source.read(CHUNK):
            file.write(chunk)
        file.flush()
        os.fchmod(file.fileno(), mode)  # whatever the umask: a service's user has to run it
        os.fsync(file.fileno())


def _shown(text: str) -> str:
    return ascii(text[:80])
