"""A daemon imports only what it reaches of its libraries. A program that runs one imports this module before all others.

py-libp2p imports all that it has: QUIC, TLS, WebSocket, relays, discovery, RSA. No node reaches these (net/host.py and
net/swarm.py are all that uses py-libp2p, and docs/architecture.md has its traps). Other libraries do the like on a smaller
scale. Without this module a start takes twice as long, and a node 30 MB more.

    BARE     a package whose __init__ only imports its parts: its parts can be imported, and are when somebody needs them.
             Where somebody asks the package itself for a name, its __init__ is run after all
    ABSENT   a module whose names can be imported and never used: a class that does nothing, whose methods raise NotReached.
             It need not be installed
    WITHOUT  a package, and modules that seem absent to it while it is imported, but to nobody else

py-libp2p in other programs (net/discover/dht.py, tests) is whole. Nothing is patched: what is real is its library's own.
tests/test_light.py holds what a daemon may import; scripts/footprint measures what that costs.
"""

from __future__ import annotations

import gc
import sys
import threading
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

BARE = frozenset(
    {
        "cryptography.x509",  # reactor/tls.py reads a certificate, if there is one; py-libp2p would, too
        "libp2p",
        "libp2p.peer",
        "libp2p.relay",
        "libp2p.relay.circuit_v2",
        "libp2p.security",
        "libp2p.transport",
    }
)
ABSENT = (
    "cryptography.hazmat.primitives.serialization.ssh",
    "h2",  # api/http_server.py speaks HTTP/1.1
    "hypercorn.protocol.h2",
    "hypercorn.protocol.ws_stream",
    "libp2p.bitswap",
    "libp2p.crypto.rsa",  # net/identity.py takes Ed25519 alone
    "libp2p.crypto.secp256k1",
    "libp2p.discovery",  # net/discover has our own
    "libp2p.kad_dht",
    "libp2p.rcmgr.manager",  # net/host.py has the limits
    "libp2p.security.pnet",
    "libp2p.security.tls",
    "libp2p.stream_muxer.yamux",  # the only muxer is net/link
    "libp2p.transport.quic",
    "libp2p.transport.websocket",
    "libp2p.utils.version",  # for identify, which is off
    "multiaddr.resolvers",  # net/dial resolves names
    "psutil",  # of py-libp2p's; mesh/gpu.py reads /proc itself, net/discover/interfaces.py has ifaddr
    "pydantic.plugin._loader",  # it would look through all packages that are installed
)
WITHOUT = {
    "libp2p.metrics.swarm": ("prometheus_client",),  # nobody asks for its metrics
    "libp2p.tools.anyio_service": ("anyio",),  # trio runs its services (background_trio_service)
    "structlog": ("asyncio", "rich"),  # no log of ours is written by asyncio, none has coloured tracebacks (logs.py)
}
_SLOW_MESSAGES = "google.protobuf.internal.python_message"  # absent where protobuf uses its own C: nearly everywhere
GC_THRESHOLD = 200_000  # of objects, until the node sets its own: what a start makes stays


class NotReached(NotImplementedError):
    """Something that a node never does was done: a defect of this program."""


class _Absent(ModuleType):
    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__path__ = []  # its parts are absent, too

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
    """It can be made, inherited and asked for, as libraries do with some at a start. It is false and does nothing."""

    def __init__(self, *_args: Any, **_kwargs: Any) -> None: ...

    def __bool__(self) -> bool:
        return False

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


class _Bare(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if find_spec(f"{self.__name__}.{name}") is not None:
            return import_module(f"{self.__name__}.{name}")
        with _WHOLE:
            if (loader := self.__dict__.pop("_whole", None)) is not None:
                loader.exec_module(self)
        return super().__getattribute__(name)


class _BareLoader(Loader):
    def __init__(self, whole: Loader) -> None:
        self._whole = whole

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Bare(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        module.__dict__["_whole"] = self._whole


class _WithoutLoader(Loader):
    def __init__(self, whole: Loader, hidden: Sequence[str]) -> None:
        self._whole = whole
        self._hidden = hidden

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._whole.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        with _without(self._hidden):
            self._whole.exec_module(module)


@contextmanager
def _without(names: Sequence[str]) -> Iterator[None]:
    hidden = [name for name in names if name not in sys.modules]
    sys.modules |= {name: _Absent(name) for name in hidden}
    try:
        yield
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] in hidden]:
            del sys.modules[name]


class _Finder(MetaPathFinder):
    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if _is_absent(fullname):
            return ModuleSpec(fullname, _AbsentLoader(), is_package=True)
        if fullname not in BARE and fullname not in WITHOUT:
            return None
        real = PathFinder.find_spec(fullname, path)
        if real is None or real.loader is None:
            return real
        if fullname in WITHOUT:
            real.loader = _WithoutLoader(real.loader, WITHOUT[fullname])
            return real
        bare = ModuleSpec(fullname, _BareLoader(real.loader), origin=real.origin, is_package=True)
        bare.submodule_search_locations = real.submodule_search_locations
        return bare


def _is_absent(name: str) -> bool:
    if name == _SLOW_MESSAGES:
        return bool(sys.modules["google.protobuf.internal.api_implementation"].Type() == "upb")
    return name in ABSENT or isinstance(sys.modules.get(name.rpartition(".")[0]), _Absent)


_WHOLE = threading.RLock()  # a second thread waits until the first one has run a package's __init__
gc.set_threshold(GC_THRESHOLD)
sys.meta_path.insert(0, _Finder())
