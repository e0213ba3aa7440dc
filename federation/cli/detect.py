"""Finds the inference servers on this machine: asks the usual ports on loopback over HTTP.

A port alone says nothing (8080 is everybody's), so a server counts only when it answers as its kind does. Other programs are
left alone. Nothing is sent but GET.

On a machine that several people use, anybody can listen on these ports. So on Linux a server is offered without being
named only where all that listen there are this user's, root's or the system's: another person's would read the requests of
the whole network. The kernel names the listener (/proc/net/tcp), not the server.
"""

from __future__ import annotations

import http.client
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from federation.units import DEFAULT_SERVICE, HostPort

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

HOST = "127.0.0.1"
TIMEOUT_S = 0.5  # a server on this machine answers in milliseconds; one that is busy loading a model is found next time
MAX_BODY = 256 * 1024
PEOPLE_FROM_UID = 1000  # useradd gives these to people; services (ollama, ...) have less
_LISTENING = re.compile(
    # Local address and port, state LISTEN, uid. Addresses that take a connection to 127.0.0.1: itself, all of IPv4, all of
    # IPv6, and the first two as IPv6 writes them; in the machine's byte order, of which there are two.
    r"^ *[0-9]+: (?:0100007F|7F000001|0{8}|0{32}|0{16}(?:FFFF0000|0000FFFF)(?:0100007F|7F000001|0{8})):([0-9A-F]{4})"
    r" [0-9A-F]+:0000 0A [0-9A-F]+:[0-9A-F]+ [0-9A-F]+:[0-9A-F]+ [0-9A-F]+ +([0-9]+) ",
    re.MULTILINE,
)


class Answer(NamedTuple):
    status: int
    server: str  # the header of that name
    text: str

    def json(self) -> Any:
        """The answer's body as JSON; None if it is none."""
        try:
            return json.loads(self.text)
        except ValueError:
            return None


@dataclass(frozen=True, slots=True)
class Found:
    """One server. `kind` is a service's name too."""

    kind: str
    title: str
    address: HostPort
    other_owners: tuple[int, ...] = ()  # uids of other people that listen there


def _is_ollama(get: Callable[[str], Answer | None]) -> bool:
    answer = get("/")
    return answer is not None and "ollama is running" in answer.text.lower()


def _is_llama_cpp(get: Callable[[str], Answer | None]) -> bool:
    answer = get("/health")
    return answer is not None and (answer.server.lower().startswith("llama.cpp") or _has(get("/props"), "total_slots"))


def _is_localai(get: Callable[[str], Answer | None]) -> bool:
    ready, system = get("/readyz"), get("/system")
    return ready is not None and ready.status == 200 and _has(system, "backends")


def _is_vllm(get: Callable[[str], Answer | None]) -> bool:
    if not _has(get("/version"), "version"):
        return False
    models = get("/v1/models")
    rows = models.json() if models is not None else None
    data = rows.get("data") if isinstance(rows, dict) else None
    return isinstance(data, list) and any(isinstance(row, dict) and row.get("owned_by") == "vllm" for row in data)


def _is_lm_studio(get: Callable[[str], Answer | None]) -> bool:
    return _has(get("/api/v0/models"), "data")


def _has(answer: Answer | None, key: str) -> bool:
    value = None if answer is None or answer.status != 200 else answer.json()
    return isinstance(value, dict) and key in value


# In the order in which one of several becomes the default service.
KINDS: tuple[tuple[str, str, int, Callable[[Callable[[str], Answer | None]], bool]], ...] = (
    ("ollama", "Ollama", 11434, _is_ollama),
    ("localai", "LocalAI", 8080, _is_localai),
    ("llama.cpp", "llama.cpp", 8080, _is_llama_cpp),
    ("vllm", "vLLM", 8000, _is_vllm),
    ("lm-studio", "LM Studio", 1234, _is_lm_studio),
)


def find(
    *, without: Collection[int] = (), kinds: Sequence[Any] = KINDS, owners: Callable[[int], set[int]] | None = None
) -> list[Found]:
    """The servers that answer now; ports in `without` are not asked. Takes milliseconds where nothing listens.

    `owners`: whose sockets listen on a port of this machine, by uid.
    """
    owners = owners or _owners
    found: list[Found] = []
    for kind, title, port, is_it in kinds:
        address = HostPort(HOST, port)
        if port in without or any(other.address == address for other in found):
            continue
        if is_it(_Asker(address).get):
            other_owners = tuple(sorted(uid for uid in owners(port) if PEOPLE_FROM_UID <= uid != os.getuid()))
            found.append(Found(kind, title, address, other_owners))
    return found


def offers(found: Sequence[Found]) -> list[str]:
    """The servers as --backend takes them: the first is the default service, the others go by their names."""
    found = [server for server in found if not server.other_owners]
    return [f"{DEFAULT_SERVICE if number == 0 else server.kind}={server.address}" for number, server in enumerate(found)]


def in_words(found: Sequence[Found]) -> list[str]:
    """The servers found, a line each, for the person."""
    left = [
        f"found {server.title} on {server.address} and leaves it alone: it is another user's (uid "
        f"{', '.join(map(str, server.other_owners))}); if you trust it, offer it with --backend {server.address}"
        for server in found
        if server.other_owners
    ]
    found = [server for server in found if not server.other_owners]
    if not found:
        return left
    first, *others = found
    lines = [f"found {first.title} on {first.address} and offers it (--no-detect: do not look; --backend: offer another)"]
    lines += [
        f"found {other.title} on {other.address} too and offers it as the service {other.kind}; "
        f"clients ask for it at a node with --listen {other.kind}=127.0.0.1:PORT"
        for other in others
    ]
    return lines + left


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


class _Asker:
    """One server. After the first request that gets no answer, it asks no more."""

    def __init__(self, address: HostPort) -> None:
        self._address = address
        self._silent = False

    def get(self, path: str) -> Answer | None:
        if self._silent:
            return None
        connection = http.client.HTTPConnection(self._address.host, self._address.port, timeout=TIMEOUT_S)
        try:
            connection.request("GET", path, headers={"User-Agent": "federation-detect", "Connection": "close"})
            response = connection.getresponse()
            text = response.read(MAX_BODY).decode(errors="replace")
            return Answer(response.status, response.headers.get("Server", ""), text)
        except (OSError, http.client.HTTPException):
            self._silent = True
            return None
        finally:
            connection.close()
