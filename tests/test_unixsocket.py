from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from federation import unixsocket
from tests.support.sockets import open_descriptors


@pytest.fixture(params=["short", "x" * 120, "y" * 200])
def directory(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / request.param
    path.mkdir(mode=0o700)
    return path


def talk(directory: Path) -> None:
    with unixsocket.listen(directory, "s") as listener:
        assert stat.S_ISSOCK((directory / "s").lstat().st_mode)
        assert (directory / "s").stat().st_mode & 0o777 == 0o600
        with unixsocket.connect(directory, "s", 5.0) as client, listener.accept()[0] as served:
            client.sendall(b"hello")
            assert served.recv(5) == b"hello"
            for end in (client, served):
                assert unixsocket.peer_uid(end) == os.geteuid()


def test_a_path_of_any_length(directory: Path) -> None:
    talk(directory)


def test_a_system_without_proc(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    isdir = os.path.isdir
    monkeypatch.setattr(os.path, "isdir", lambda path: not str(path).startswith("/proc/") and isdir(path))
    here = Path.cwd()
    talk(directory)
    assert Path.cwd() == here


def test_what_a_killed_daemon_left_is_replaced(tmp_path: Path) -> None:
    unixsocket.listen(tmp_path, "s").close()
    with pytest.raises(ConnectionRefusedError):
        unixsocket.connect(tmp_path, "s", 5.0)
    talk(tmp_path)


def test_no_link_leads_to_another_socket(tmp_path: Path) -> None:
    """Who has the directory would have another user command that user's own daemon."""
    with unixsocket.listen(tmp_path, "theirs"):
        (tmp_path / "s").symlink_to("theirs")
        with pytest.raises(OSError, match="s is no socket"):
            unixsocket.connect(tmp_path, "s", 5.0)
        unixsocket.connect(tmp_path, "theirs", 5.0).close()


def test_a_link_goes_and_what_it_points_to_stays(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "s").symlink_to(victim)
    talk(tmp_path)
    (tmp_path / "s").unlink()
    (tmp_path / "s").symlink_to(tmp_path / "new")
    talk(tmp_path)
    assert victim.read_text() == "precious"
    assert victim.stat().st_mode & 0o777 != 0o600
    assert not (tmp_path / "new").exists()


def test_what_cannot_be_said_plainly_closes_what_it_opened(tmp_path: Path) -> None:
    files = open_descriptors()
    (tmp_path / "s").mkdir()
    for call in (lambda: unixsocket.listen(tmp_path, "s"), lambda: unixsocket.connect(tmp_path / "none", "s", 1.0)):
        with pytest.raises(OSError, match=r"directory|permitted"):
            call()
    assert open_descriptors() == files


def test_who_is_at_the_other_end_is_asked_of_the_kernel() -> None:
    one, other = socket.socketpair()
    with one, other:
        assert unixsocket.peer_uid(one) == os.geteuid()
