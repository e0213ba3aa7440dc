"""The contract of Duplex: who keeps it here, the double that other tests trust to, and whether every Duplex is checked."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import trio

import federation
from federation.reactor.duplex import Duplex, NullDuplex, join
from federation.reactor.loop import Reactor
from federation.reactor.sockets import SocketDuplex
from tests import support
from tests.support.duplex import Caller, End, Rig, TcpSide, check_duplex
from tests.support.links import socket_pair

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from types import ModuleType

TESTS = Path(__file__).parent.parent


@asynccontextmanager
async def a_socket() -> AsyncIterator[Rig]:
    ours, theirs = socket_pair()
    there = TcpSide(theirs)
    async with trio.open_nursery() as nursery:
        reactor = Reactor()
        await nursery.start(reactor.run)
        caller = Caller()
        duplex = SocketDuplex(reactor, ours, lambda _: None)
        join(duplex, caller)
        duplex.start()
        yield there.rig(caller)
        duplex.abort("the test is over")
        there.close()
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def nobody() -> AsyncIterator[Rig]:
    yield Rig(Caller(other=NullDuplex()), carries=False)


async def test_a_socket_keeps_the_contract() -> None:
    await check_duplex(SocketDuplex, a_socket)


async def test_nobody_keeps_the_contract() -> None:
    await check_duplex(NullDuplex, nobody)


def test_nobody_takes_nothing_and_says_nothing() -> None:
    nobody, end = NullDuplex(), End()
    assert nobody.writable() == 0
    nobody.send(b"x")
    nobody.send_eof()
    nobody.abort("why")
    nobody.acknowledge(1)
    nobody.resume_writing()
    assert end.heard == []


# Whether every Duplex is checked

METHODS = ("writable", "send", "send_eof", "abort", "acknowledge", "resume_writing")
PACKAGES = (federation, support)


def duplexes(package: ModuleType) -> set[type]:
    """The classes of a package, and of the packages in it, that have the methods of a Duplex; Protocols do not count."""
    found = set()
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if not module.name.endswith(".__main__"):
            for thing in vars(importlib.import_module(module.name)).values():
                if inspect.isclass(thing) and thing.__module__ == module.name and is_a_duplex(thing):
                    found.add(thing)
    return found


def is_a_duplex(thing: type) -> bool:
    return all(hasattr(thing, name) for name in METHODS) and not getattr(thing, "_is_protocol", False)


def checked(source: str) -> set[str]:
    """The classes that a test file hands to `check_duplex`, with their modules."""
    tree = ast.parse(source)
    modules = {
        alias.asname or alias.name: f"{node.module}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    return {
        modules.get(node.args[0].id, node.args[0].id)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "check_duplex"
        if isinstance(node.args[0], ast.Name)
    }


def test_the_methods_are_those_of_the_contract() -> None:
    assert set(METHODS) == {name for name, thing in vars(Duplex).items() if inspect.isfunction(thing) and name[0] != "_"}


def test_every_duplex_is_checked() -> None:
    """A new class with the methods of a Duplex needs a rig in the tests of its module, and a call of `check_duplex`."""
    have = set().union(*(checked(path.read_text()) for path in TESTS.rglob("test_*.py")))
    want = {f"{kind.__module__}.{kind.__qualname__}" for package in PACKAGES for kind in duplexes(package)}
    assert want - have == set()


def test_a_duplex_is_found_and_so_is_its_check() -> None:
    class Half(NullDuplex):
        def send(self, data: bytes | memoryview) -> None: ...

    assert is_a_duplex(Half)
    assert not is_a_duplex(Duplex)
    assert not is_a_duplex(Reactor)
    assert SocketDuplex in duplexes(federation)
    assert Caller in duplexes(support)
    call = "from federation.x import A\nasync def test():\n    await check_duplex(A, a_rig)\n"
    assert checked(call) == {"federation.x.A"}
    assert checked("check_other(A)") == set()
