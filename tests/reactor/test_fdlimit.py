"""The limit of this very process is moved about, and put back."""

from __future__ import annotations

import os
import resource
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from federation.reactor import fdlimit
from federation.reactor.fdlimit import RESERVED, RESERVED_SHARE, are_left, is_reserve, raise_limit

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def limit(soft: int) -> Iterator[int]:
    """Yields the hard limit."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, before[1]))
    try:
        yield before[1]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize(("soft", "reserve"), [(1024, RESERVED), (128, 128 // RESERVED_SHARE), (64, 64 // RESERVED_SHARE)])
def test_the_last_few(soft: int, reserve: int) -> None:
    with limit(soft):
        assert not is_reserve(soft - reserve - 1)
        assert is_reserve(soft - reserve)


def test_without_a_limit_there_is_no_reserve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _which: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert not is_reserve(10**9)


def test_whether_any_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fdlimit, "RESERVED", 2)
    with limit(256):
        taken = [os.open("/dev/null", os.O_RDONLY)]
        try:
            assert are_left(taken[0])
            while taken[-1] < 256 - 3:  # the next one is of the reserve
                taken.append(os.dup(taken[0]))
            assert not are_left(taken[0])
            os.close(taken.pop())
            assert are_left(taken[0])
            taken += [os.dup(taken[0]) for _ in range(3)]
            assert not are_left(taken[0])  # nor is there one to try with
        finally:
            for fd in taken:
                os.close(fd)


def test_the_soft_limit_is_raised_and_never_lowered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fdlimit, "WANTED", 300)
    with limit(200) as hard:
        raise_limit()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (300, hard)
    with limit(400) as hard:
        raise_limit()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (400, hard)


def test_no_higher_than_the_hard_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(resource, "getrlimit", lambda _which: (100, 200))
    monkeypatch.setattr(resource, "setrlimit", lambda _which, limits: asked.append(limits))
    raise_limit()
    assert asked == [(200, 200)]


def test_a_system_that_says_no(monkeypatch: pytest.MonkeyPatch) -> None:
    """macOS has a limit behind the limit."""

    def refuse(*_: object) -> None:
        raise ValueError("not allowed")

    monkeypatch.setattr(resource, "getrlimit", lambda _which: (100, resource.RLIM_INFINITY))
    monkeypatch.setattr(resource, "setrlimit", refuse)
    raise_limit()
