from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import pytest

from federation import service

if TYPE_CHECKING:
    from pathlib import Path


def test_the_manager_hears_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(1)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        assert service.notify(service.READY)
        assert manager.recv(100) == b"READY=1"
        assert service.notify(service.reloading())
        assert manager.recv(100).startswith(b"RELOADING=1\nMONOTONIC_USEC=")


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="abstract sockets are Linux's")
def test_in_the_abstract_namespace_too(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"\0federation-test-{os.getpid()}")
        manager.settimeout(1)
        monkeypatch.setenv("NOTIFY_SOCKET", f"@federation-test-{os.getpid()}")
        assert service.notify(service.STOPPING)
        assert manager.recv(100) == b"STOPPING=1"


@pytest.mark.parametrize("path", ["", "/nobody/is/there", "tcp:nonsense"])
def test_nobody_to_tell_is_fine(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", path)
    assert not service.notify(service.READY)
    monkeypatch.delenv("NOTIFY_SOCKET")
    assert not service.notify(service.READY)
