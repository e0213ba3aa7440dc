"""Listening sockets at a place that a person names: HOST:PORT, both families of localhost, or a Unix socket's path."""

from __future__ import annotations

import errno
import os
import socket
import stat
from contextlib import suppress

from federation.reactor.keepalive import keep_alive
from federation.units import HostPort, Place, UnixPath

_NO_FAMILY = frozenset({errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL})  # a machine without IPv6


def listen(place: Place, backlog: int) -> list[socket.socket]:
    """The sockets of a place; the second one has the port that the kernel chose for the first. Raises OSError."""
    if isinstance(place, UnixPath):
        return [_at_path(place.path, backlog)]
    sockets: list[socket.socket] = []
    port = place.port
    for host in place.hosts:
        try:
            sock = _at_port(host, port, backlog)
        except OSError as error:
            if sockets and error.errno in _NO_FAMILY:
                break
            for sock in sockets:
                sock.close()
            raise
        port = sock.getsockname()[1]
        sockets.append(sock)
    return sockets


def place_of(sock: socket.socket) -> Place:
    name = sock.getsockname()
    return UnixPath(name) if sock.family == socket.AF_UNIX else HostPort(name[0], name[1])


def close(sock: socket.socket) -> None:
    """Close a listener, and remove its path if it has one."""
    if sock.family == socket.AF_UNIX:
        with suppress(OSError):
            os.unlink(sock.getsockname())
    sock.close()


def _at_port(host: str, port: int, backlog: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # accepted sockets inherit it
        keep_alive(sock)
        sock.bind((host, port))
        sock.listen(backlog)
    except OSError:
        sock.close()
        raise
    return sock


def _at_path(path: str, backlog: int) -> socket.socket:
    """A socket at `path`, in place of one that an ended process left there."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if _is_left_behind(path):
            os.unlink(path)
        sock.bind(path)
        sock.listen(backlog)
    except OSError:
        sock.close()
        raise
    return sock


def _is_left_behind(path: str) -> bool:
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            return False
    except OSError:
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        return probe.connect_ex(path) == errno.ECONNREFUSED
