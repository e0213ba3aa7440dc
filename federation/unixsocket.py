"""A Unix socket in a directory: under a path of any length, for this user alone; and the user at its other end."""

from __future__ import annotations

import errno
import os
import socket
import stat
import struct
import sys
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_PATH_BYTES = 100  # the kernel's field has 104 on macOS and 108 on Linux, a closing zero in it
BACKLOG = 64
_LINUX_PEER = struct.Struct("iII")  # struct ucred: pid, uid, gid
_MACOS_PEER = struct.Struct("II")  # the beginning of struct xucred: version, uid
_MACOS_LOCAL_PEERCRED = 1


class HasOptions(Protocol):
    """A socket of the standard library or of trio."""

    def getsockopt(self, level: int, option: int, size: int, /) -> bytes: ...


def listen(directory: Path, name: str) -> socket.socket:
    """Make a listening socket. Raises OSError.

    It replaces a file or link of that name (the link itself, not its target), so call it with the directory's lock held.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with _opened(directory) as fd:
            with suppress(FileNotFoundError):
                os.unlink(name, dir_fd=fd)
            with _address(directory, fd, name) as address:
                listener.bind(address)
            os.chmod(name, 0o600, dir_fd=fd)
        listener.listen(BACKLOG)  # clients can connect from now on
    except BaseException:
        listener.close()
        raise
    return listener


def connect(directory: Path, name: str, timeout_s: float) -> socket.socket:
    """Connect to the socket of that name. Raises OSError, also for a link, which may lead to another user's daemon."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(timeout_s)
        with _opened(directory) as fd, _address(directory, fd, name) as address:
            if not stat.S_ISSOCK(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode):
                raise OSError(errno.ENOTSOCK, f"{name} is no socket")
            connection.connect(address)
    except BaseException:
        connection.close()
        raise
    return connection


def peer_uid(connection: HasOptions) -> int | None:
    """The user id at the other end, from the kernel; None on a system that does not tell."""
    if sys.platform == "linux":
        uid = _LINUX_PEER.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _LINUX_PEER.size))[1]
    elif sys.platform == "darwin":
        uid = _MACOS_PEER.unpack(connection.getsockopt(0, _MACOS_LOCAL_PEERCRED, _MACOS_PEER.size))[1]
    else:
        return None
    return int(uid)


@contextmanager
def _opened(directory: Path) -> Iterator[int]:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def _address(directory: Path, fd: int, name: str) -> Iterator[str]:
    """A path that fits the kernel's field, even if the directory's own path does not."""
    path = os.path.join(directory, name)
    if len(os.fsencode(path)) <= MAX_PATH_BYTES:
        yield path
    elif os.path.isdir(by_descriptor := f"/proc/self/fd/{fd}"):
        yield os.path.join(by_descriptor, name)
    else:
        with _opened(Path()) as here:
            os.fchdir(fd)
            try:
                yield name
            finally:
                os.fchdir(here)
