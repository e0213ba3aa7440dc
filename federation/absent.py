"""Imports a library without the parts that a program never reaches. The library stays as it is.

bare     a package whose __init__ only imports its parts: its parts can be imported, and are when somebody needs them.
         Where somebody asks the package itself for a name, its __init__ is run after all
absent   a module whose names can be imported and never used: a class that does nothing, whose methods raise NotReached.
         It need not be installed
without  a package, and modules that seem absent to it while it is imported, but to nobody else
"""

from __future__ import annotations

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
    from collections.abc import Collection, Iterator, Mapping, Sequence

_SLOW_MESSAGES = "google.protobuf.internal.python_message"  # absent where protobuf uses its own C: nearly everywhere


def install(
    *, bare: Collection[str] = (), absent: Collection[str] = (), without: Mapping[str, Sequence[str]] | None = None
) -> None:
    """From now on, in this process. What was imported before stays."""
    sys.meta_path.insert(0, _Finder(frozenset(bare), frozenset(absent), without or {}))


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
    raise NotReached(f"{cls.__module__}.{cls.__name__}.{name} is not imported here; see {__name__}")


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
    def __init__(self, bare: Collection[str], absent: Collection[str], without: Mapping[str, Sequence[str]]) -> None:
        self._bare = bare
        self._absent = absent
        self._without = without

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if self._is_absent(fullname):
            return ModuleSpec(fullname, _AbsentLoader(), is_package=True)
        if fullname not in self._bare and fullname not in self._without:
            return None
        real = PathFinder.find_spec(fullname, path)
        if real is None or real.loader is None:
            return real
        if fullname in self._without:
            real.loader = _WithoutLoader(real.loader, self._without[fullname])
            return real
        bare = ModuleSpec(fullname, _BareLoader(real.loader), origin=real.origin, is_package=True)
        bare.submodule_search_locations = real.submodule_search_locations
        return bare

    def _is_absent(self, name: str) -> bool:
        if name == _SLOW_MESSAGES:
            return bool(sys.modules["google.protobuf.internal.api_implementation"].Type() == "upb")
        return name in self._absent or isinstance(sys.modules.get(name.rpartition(".")[0]), _Absent)


_WHOLE = threading.RLock()  # a second thread waits until the first one has run a package's __init__
