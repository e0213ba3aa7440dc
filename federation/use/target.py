"""Where a client goes, and with what: a port of this node, a key, a model. Read from the control API's answers."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from federation.errors import NotFound, UsageError
from federation.units import DEFAULT_SERVICE, HostPort, visible

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

NO_KEY = "none"  # clients insist on some text there
KEY_HERE = "YOUR_KEY"
MODEL_HERE = "MODEL"
_NOT_FOR_CHATS = re.compile(r"embed|minilm|bge-|rerank|whisper|tts|clip", re.IGNORECASE)


@dataclass(frozen=True)
class Port:
    """A port for clients that speak HTTP. `is_local`: no other machine can reach it."""

    service: str
    url: str
    asks_key: bool
    is_local: bool


@dataclass(frozen=True)
class Target:
    """`model`: the one to begin with; `models`: all of them, that one first. `key`: empty where none is needed."""

    port: Port
    model: str
    models: tuple[str, ...]
    key: str = field(default="", repr=False)

    @property
    def url(self) -> str:
        return self.port.url

    @property
    def some_key(self) -> str:
        return self.key or NO_KEY


def ports(node: Mapping[str, Any], host: str = "") -> list[Port]:
    """The ports of `status`'s node on which HTTP can be spoken. `host`: this machine, as the client's machine calls it.

    Raises UsageError for what is no host.
    """
    host = host.removeprefix("[").removesuffix("]")
    if host and not is_host(host):
        raise UsageError(f"{visible(host)!r} is neither a host's name nor an IP address")
    rows = node.get("listeners") or [{"service": name, "address": at} for name, at in (node.get("listens") or {}).items()]
    found = [_port(row, host) for row in rows]
    return [port for port in found if port is not None]


def _port(row: Mapping[str, Any], host: str) -> Port | None:
    """A node of an earlier version says neither `scheme` nor `asks_key`."""
    scheme = row.get("scheme", "http")
    try:
        address = HostPort.parse(str(row["address"]))
    except ValueError:  # a Unix socket: clients take none by an URL
        return None
    if scheme not in ("http", "https"):
        return None
    name = address.host
    if address.is_wildcard:
        name = host or ("::1" if ":" in name else "127.0.0.1")
    if scheme == "https":
        name = _certified(name, [str(known) for known in row.get("names") or ()])
    url = f"{scheme}://{HostPort(name, address.port).authority}"
    return Port(str(row["service"]), url, bool(row.get("asks_key")), address.is_loopback)


def _certified(host: str, names: Iterable[str]) -> str:
    """The host if the certificate is for it; else the first name that the certificate is for."""
    names = [name.lower() for name in names if is_host(name)]
    if host.lower() in names or any(name.startswith("*.") and host.lower().partition(".")[2] == name[2:] for name in names):
        return host
    return next((name for name in names if not name.startswith("*")), host)


def is_host(name: str) -> bool:
    """Whether it is a host's name or address, or a certificate's pattern for some."""
    try:
        return bool(HostPort.parse(f"[{name}]" if ":" in name else name.removeprefix("*."), 443))
    except ValueError:
        return False


def port_of(found: Iterable[Port], service: str = DEFAULT_SERVICE, host: str = "") -> Port:
    """The service's port: for a client that is here, as where no `host` is named, one for this machine alone; else one that
    others reach, with TLS before one without. Raises NotFound.
    """
    fitting = [port for port in found if port.service == service]
    if not fitting:
        raise NotFound(f"this node has no HTTP port for clients of the service {visible(service)}; join opens one: --listen")
    is_here = not host or HostPort(host.strip("[]"), 0).is_loopback
    return min(fitting, key=lambda port: (port.is_local != is_here, not port.url.startswith("https:")))


def names(models: Mapping[str, Any], service: str = DEFAULT_SERVICE) -> list[str]:
    """The service's models by the API's answer, those that a chat may begin with first, and of these those in memory.

    What is invisible in a name makes it useless in a file that people read: such a model is left out.
    """
    rows = [row for row in models.get("models") or () if any(place["service"] == service for place in row["places"])]
    ranked = sorted(rows, key=lambda row: (bool(_NOT_FOR_CHATS.search(row["name"])), not _is_warm(row), row["name"]))
    return [row["name"] for row in ranked if row["name"].isprintable()]


def _is_warm(row: Mapping[str, Any]) -> bool:
    return any(place["warm"] for place in row["places"])


def target(port: Port, models: list[str], *, model: str = "", key: str = "") -> Target:
    """`model`: one that a person named; a name without a tag means Ollama's latest. Raises NotFound."""
    if not model.isprintable():
        raise NotFound(f"no model has the name {visible(model)}")
    chosen = model or next(iter(models), MODEL_HERE)
    if model and models and model not in models:
        if f"{model}:latest" not in models:
            raise NotFound(f"no node has the model {visible(model)}; `federation models` lists those that there are")
        chosen = f"{model}:latest"
    return Target(port, chosen, (chosen, *(name for name in models if name != chosen)), key)


def check_key(text: str) -> str:
    """A client key as a person gave it. Raises UsageError."""
    key = text.strip()
    if not (key.isascii() and key.isprintable() and 0 < len(key) <= 512 and not set(key) & set(" \"'\\`$")):
        raise UsageError("this is no client key: it is one word; `federation key add NAME` prints one")
    return key
