from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import pytest

from federation import sdnotify

if TYPE_CHECKING:
    from pathlib import Path


def test_the_manager_hears_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(1)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        assert sdnotify.notify(sdnotify.READY)
        assert manager.recv(100) == b"READY=1"
        assert sdnotify.notify(sdnotify.reloading())
        assert manager.recv(100).startswith(b"RELOADING=1\nMONOTONIC_USEC=")


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="abstract sockets are Linux's")
def test_in_the_abstract_namespace_too(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"\0federation-test-{os.getpid()}")
        manager.settimeout(1)
        monkeypatch.setenv("NOTIFY_SOCKET", f"@federation-test-{os.getpid()}")
        assert sdnotify.notify(sdnotify.STOPPING)
        assert manager.recv(100) == b"STOPPING=1"


@pytest.mark.parametrize("path", ["", "/nobody/is/there", "tcp:nonsense"])
def test_nobody_to_tell_is_fine(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", path)
    assert not sdnotify.notify(sdnotify.READY)
    monkeypatch.delenv("NOTIFY_SOCKET")
    assert not sdnotify.notify(sdnotify.READY)
