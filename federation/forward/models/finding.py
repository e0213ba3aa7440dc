"""Finds the model servers on this machine: asks the usual ports on loopback, for `join`, and later while there is none.

A server counts only when it answers as its kind does (servers.py). Other programs are left alone. Nothing is sent but GET.

On a machine that several people use, anybody can listen on these ports. So on Linux a server is offered without being
named only where all that listen there are this user's, root's or the system's: another person's would read the requests of
the whole network. The kernel names the listener (/proc/net/tcp), not the server.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from federation.forward.models.asking import FINDER, Asker
from federation.forward.models.servers import KINDS
from federation.units import DEFAULT_SERVICE, Endpoint, HostPort

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from federation.forward.models.servers import Kind

HOST = "127.0.0.1"
TIMEOUT_S = 0.5  # a server on this machine answers in milliseconds; one that is busy loading a model is found next time
PEOPLE_FROM_UID = 1000  # useradd gives these to people; services (ollama, ...) have less
_LISTENING = re.compile(
    # Local address and port, state LISTEN, uid. Addresses that take a connection to 127.0.0.1: itself, all of IPv4, all of
    # IPv6, and the first two as IPv6 writes them; in the machine's byte order, of which there are two.
    r"^ *[0-9]+: (?:0100007F|7F000001|0{8}|0{32}|0{16}(?:FFFF0000|0000FFFF)(?:0100007F|7F000001|0{8})):([0-9A-F]{4})"
    r" [0-9A-F]+:0000 0A [0-9A-F]+:[0-9A-F]+ [0-9A-F]+:[0-9A-F]+ [0-9A-F]+ +([0-9]+) ",
    re.MULTILINE,
)


@dataclass(frozen=True, slots=True)
class Found:
    """One server. `kind` is a service's name too."""

    kind: str
    title: str
    address: HostPort
    other_owners: tuple[int, ...] = ()  # uids of other people that listen there


async def find(
    *,
    without: Collection[int] = (),
    kinds: Sequence[Kind] | None = None,
    owners: Callable[[int], set[int]] | None = None,
) -> list[Found]:
    """The servers that answer now; ports in `without` are not asked. Takes milliseconds where nothing listens.

    `owners`: whose sockets listen on a port of this machine, by uid.
    """
    owners = owners or _owners
    found: list[Found] = []
    for kind in KINDS if kinds is None else kinds:
        address = HostPort(HOST, kind.port)
        if not kind.port or kind.port in without or any(other.address == address for other in found):
            continue
        if await kind.recognises(Asker(address, timeout_s=TIMEOUT_S, agent=FINDER)):
            other_owners = tuple(sorted(uid for uid in owners(kind.port) if PEOPLE_FROM_UID <= uid != os.getuid()))
            found.append(Found(kind.name, kind.title, address, other_owners))
    return found


def offers(found: Sequence[Found]) -> list[Endpoint]:
    """The servers as backends: the first is the default service, the others go by their names."""
    found = [server for server in found if not server.other_owners]
    return [Endpoint(DEFAULT_SERVICE if number == 0 else server.kind, server.address) for number, server in enumerate(found)]


def listeners(table: str, port: int) -> set[int]:
    """The uids in /proc/net/tcp or tcp6 whose socket may take a connection to 127.0.0.1:port."""
    return {int(uid) for at, uid in _LISTENING.findall(table) if int(at, 16) == port}


def _owners(port: int) -> set[int]:
    """The listeners' uids; empty where the kernel does not say: no Linux, or a listener in another network namespace."""
    return set().union(*(listeners(_read(f"/proc/net/{name}"), port) for name in ("tcp", "tcp6")))


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except (OSError, ValueError):
        return ""
