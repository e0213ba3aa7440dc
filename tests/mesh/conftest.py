"""Fixtures of the tests in this folder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import trio

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def on_thread(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What waited for the disk on a thread. Done at once here: a clock that jumps does not wait for threads."""
    names: list[str] = []

    async def run_sync(function: Callable[..., Any], *args: Any) -> Any:
        names.append(function.__name__)
        await trio.lowlevel.checkpoint()
        return function(*args)

    monkeypatch.setattr(trio.to_thread, "run_sync", run_sync)
    return names
