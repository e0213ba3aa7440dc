"""A daemon imports only what it reaches of its libraries. A program that runs one imports this module before all others.

py-libp2p imports all that it has: QUIC, TLS, WebSocket, relays, discovery, RSA. No node reaches these (net/host.py and
net/swarm.py are all that uses py-libp2p, and docs/architecture.md has its traps), yet they are half of a start, and 20 MB.
structlog imports rich and pygments to colour tracebacks, which no log of ours has (logs.py).

    BARE     a package whose __init__ only imports its parts: its parts can be imported, and are when somebody needs them
    ABSENT   a module whose names can be imported and never used: a class that does nothing, whose methods raise NotReached

py-libp2p in other programs (net/discover/dht.py, tests) is whole. Nothing is patched: what is real here is py-libp2p's own.
"""

from __future__ import annotations

import sys
from functools import partial
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from collections.abc import Sequence

BARE = frozenset({"libp2p", "libp2p.peer", "libp2p.relay", "libp2p.relay.circuit_v2", "libp2p.security", "libp2p.transport"})
ABSENT = (
    "libp2p.bitswap",
    "libp2p.crypto.rsa",  # net/identity.py takes Ed25519 alone
    "libp2p.crypto.secp256k1",
    "libp2p.discovery",  # net/discover has our own
    "libp2p.kad_dht",
    "libp2p.security.pnet",
    "libp2p.security.tls",
    "libp2p.stream_muxer.yamux",  # the only muxer is net/link
    "libp2p.transport.quic",
    "libp2p.transport.websocket",
    "multiaddr.resolvers",  # net/dial resolves names
)


class NotReached(NotImplementedError):
    """Something that a node never does was done: a defect of this program."""


class _Absent(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        base: type = Exception if name.endswith(("Error", "Exception")) else _Unreached
        made = type(base)(name, (base,), {"__module__": self.__name__})
        setattr(self, name, made)
        return made


class _Methods(type):
    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return partial(_not_reached, cls, name)  # a table may hold it


class _Unreached(metaclass=_Methods):
    """It can be made, inherited and asked for, as py-libp2p does with some at a start, and does nothing."""

    def __init__(self, *_args: Any, **_kwargs: Any) -> None: ...

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _not_reached(type(self), name)


def _not_reached(cls: type, name: str, *_args: Any, **_kwargs: Any) -> NoReturn:
    raise NotReached(f"{cls.__module__}.{cls.__name__}.{name} is not imported by a daemon; see {__name__}")


class _AbsentLoader(Loader):
    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Absent(spec.name)

    def exec_module(self, module: ModuleType) -> None: ...


class _BareLoader(Loader):
    def create_module(self, spec: ModuleSpec) -> None: ...
    def exec_module(self, module: ModuleType) -> None: ...


class _Finder(MetaPathFinder):
    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if any(fullname == name or fullname.startswith(f"{name}.") for name in ABSENT):
            return ModuleSpec(fullname, _AbsentLoader(), is_package=True)
        if fullname not in BARE or (real := PathFinder.find_spec(fullname, path)) is None:
            return None
        bare = ModuleSpec(fullname, _BareLoader(), origin=real.origin, is_package=True)
        bare.submodule_search_locations = real.submodule_search_locations
        return bare


def _structlog_without_rich() -> None:
    hidden = "rich" not in sys.modules
    if hidden:
        sys.modules["rich"] = None  # type: ignore[assignment]  # an import of it fails, as if it were not installed
    try:
        import structlog  # noqa: F401
    finally:
        if hidden:
            del sys.modules["rich"]


sys.meta_path.insert(0, _Finder())
_structlog_without_rich()
