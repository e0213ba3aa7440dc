from __future__ import annotations

import ast
import errno
import fcntl
import json
import logging
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from federation import state as state_module
from federation.errors import StateDirBusy, StateDirUnusable
from federation.state import FILES, MAX_INCARNATION, MAX_PREVIOUS, StateDir, write_new

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture
def state(tmp_path: Path) -> Iterator[StateDir]:
    state = StateDir(tmp_path / "a/b", clock=lambda: 1000.0)
    state.lock()
    yield state
    state.unlock()


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_an_uninstall_knows_all_the_files() -> None:
    """Those that the module's head lists, and each that its code names."""
    told = {line.split()[0] for line in (state_module.__doc__ or "").splitlines() if line.startswith("    ")}
    tree = ast.parse(Path(state_module.__file__).read_text())
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)]
    named = {
        call.args[0].value
        for call in calls
        if call.func.attr in ("_write", "_write_json") and isinstance(call.args[0], ast.Constant)
    }
    assert {"token", "invited.json"} <= told & named
    assert [name for name in told | named if not FILES.fullmatch(name)] == []
    assert [name for name in (".token.12", ".invited.json.12", ".owner.12") if not FILES.fullmatch(name)] == []
    assert [name for name in ("notes.txt", "token.bak", "tokens", ".profile") if FILES.fullmatch(name)] == []


# The lock


def test_the_directory_is_made_and_private(state: StateDir) -> None:
    assert mode(state.path) == 0o700
    assert mode(state.path / "lock") == 0o600


def test_a_second_daemon_is_told_who_has_it(state: StateDir) -> None:
    with pytest.raises(StateDirBusy, match=rf"{state.path} \(process {os.getpid()} on {socket.gethostname()}\)$"):
        StateDir(state.path).lock()
    state.lock()  # again by the same: no matter
    state.unlock()
    state.unlock()
    other = StateDir(state.path)
    other.lock()
    other.unlock()


def test_a_second_daemon_is_told_that_the_first_is_on_another_machine(state: StateDir) -> None:
    (state.path / "lock").write_text("1 gpu1\n")
    with pytest.raises(StateDirBusy, match=r"\(process 1 on gpu1\): another machine, .* --state-dir each$"):
        StateDir(state.path).lock()
    (state.path / "lock").write_text("17")  # of an older version
    with pytest.raises(StateDirBusy, match=r"\(process 17\)$"):
        StateDir(state.path).lock()


# File systems that do not do everything


@pytest.fixture
def lacking(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., StateDir]:
    """A state directory on a file system where the functions named answer with an error."""

    def make(number: int = errno.EINVAL, *, module: object = os, **lacks: Callable[..., bool]) -> StateDir:
        for name, is_lacking in lacks.items():
            real = getattr(module, name)

            def call(*args, _real=real, _is_lacking=is_lacking, **kwargs):
                if _is_lacking(*args):
                    raise OSError(number, os.strerror(number))
                return _real(*args, **kwargs)

            monkeypatch.setattr(module, name, call)
        return StateDir(tmp_path / "s")

    return make


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def is_directory(fd: int) -> bool:
    return stat.S_ISDIR(os.fstat(fd).st_mode)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS, errno.ENOTSUP])
def test_what_cannot_be_synced_is_written_without(lacking, caplog: pytest.LogCaptureFixture, number: int) -> None:
    for fsync in (is_directory, lambda fd: True):
        state = lacking(number, fsync=fsync)
        state.lock()
        assert StateDir(state.path).identity() == state.identity()
        state.unlock()
    write_new(state.path / "new", b"x")
    assert warnings(caplog) == []


def test_a_disk_that_fails_to_sync_is_an_error(lacking) -> None:
    state = lacking(errno.EIO, fsync=is_directory)
    state.lock()
    with pytest.raises(StateDirUnusable, match="Input/output error"):
        state.identity()
    state.unlock()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL])
def test_without_locks_a_node_starts_and_says_so(lacking, caplog: pytest.LogCaptureFixture, number: int) -> None:
    state = lacking(number, module=fcntl, flock=lambda *args: True)
    state.lock()
    assert state.identity()
    (warning,) = warnings(caplog)
    assert "no locks" in warning
    assert state.holder() is None
    state.save_daemon({"control": "127.0.0.1:1"})
    assert state.holder() == f"{os.getpid()} on {socket.gethostname()}"
    state.unlock()


def test_without_locks_a_daemon_that_answers_keeps_a_second_one_out(lacking) -> None:
    state = lacking(errno.ENOLCK, module=fcntl, flock=lambda *args: True)
    state.lock()
    listener = state.listen_control()
    assert listener is not None
    with listener, pytest.raises(StateDirBusy, match=rf"process {os.getpid()} on"):
        StateDir(state.path).lock()
    state.unlock()


@pytest.mark.parametrize("fails", [True, False])
def test_modes_that_cannot_be_changed_cost_one_warning(
    lacking, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fails: bool
) -> None:
    """Some file systems refuse a mode, some only say that it was set."""
    state = lacking()
    state.lock()
    seed, key = state.identity(), state.control_key()
    for name in ("identity", "control.key"):
        (state.path / name).chmod(0o755)

    def fchmod(fd: int, mode: int) -> None:
        if fails:
            raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "fchmod", fchmod)
    caplog.clear()
    assert (state.identity(), state.control_key()) == (seed, key)
    assert warnings(caplog) == []  # nobody else gets into the directory
    state.path.chmod(0o755)
    assert (state.identity(), state.control_key(), state.identity()) == (seed, key, seed)
    (warning,) = warnings(caplog)
    assert "no modes" in warning
    assert "private now" not in caplog.text
    state.unlock()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user")
@pytest.mark.parametrize("shows_all_as_one", [True, False])
def test_files_that_a_mount_shows_as_anothers_are_trusted_where_it_shows_all_so(shows_all_as_one: bool) -> None:
    """As the user 1234, with files and directory of the user 77; os.fstat is the mount that shows all as 77's."""
    root = Path(tempfile.mkdtemp())  # tmp_path is in a directory of this user alone
    root.chmod(0o755)
    path = root / "s"
    state = StateDir(path)
    state.lock()
    seed = state.identity()
    state.unlock()
    for file in (path, *path.iterdir()):
        os.chown(file, 77, 77)
        file.chmod(0o777)
    code = (
        "import os, pathlib, sys; from federation.state import StateDir\n"
        "os.setuid(1234); real = os.fstat\n"
        "def fstat(fd):\n    found = list(real(fd)); found[4] = 77; return os.stat_result(found)\n"
        f"if {shows_all_as_one}: os.fstat = fstat\n"
        "state = StateDir(pathlib.Path(sys.argv[1])); state.lock(); print(state.identity().hex())"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False)
    if shows_all_as_one:
        assert (done.stdout.strip(), done.returncode) == (seed.hex(), 0)
        assert "shows the files of all users as those of the user 77" in done.stderr
        assert done.stderr.count("\n") == 1
    else:
        assert "it belongs to the user 77" in done.stderr
    assert not list(path.glob(".owner*"))
    shutil.rmtree(root)


def test_the_lock_ends_with_the_process(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib, time; from federation.state import StateDir\n"
        "StateDir(pathlib.Path(sys.argv[1])).lock(); print('locked', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    with process, process.stdout as output:
        assert output.readline() == b"locked\n"
        with pytest.raises(StateDirBusy, match=str(process.pid)):
            StateDir(tmp_path).lock()
        process.send_signal(signal.SIGKILL)
        process.wait()
    state = StateDir(tmp_path)
    state.lock()
    state.unlock()


def test_a_directory_that_cannot_be_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StateDirUnusable, match="Not a directory"):
        StateDir(tmp_path / "file/state").lock()


def test_a_directory_that_others_may_write_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tmp_path.chmod(0o777)
    state = StateDir(tmp_path)
    for _ in range(2):
        state.lock()
        state.unlock()
    (warning,) = warnings(caplog)
    assert warning.endswith("make it private: chmod 700")
    assert mode(tmp_path) == 0o777  # the person's own directory is left as it is
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lock"]


def test_a_file_system_without_modes_costs_one_warning_and_nobody_is_told_to_change_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """NTFS, exFAT and CIFS show all files alike, and chmod does nothing there."""
    real_stat, real_fstat = os.stat, os.fstat

    def open_to_all(found: os.stat_result) -> os.stat_result:
        return os.stat_result((found.st_mode | 0o077, *found[1:]))

    state = StateDir(tmp_path / "s")
    monkeypatch.setattr(os, "stat", lambda path, **options: open_to_all(real_stat(path, **options)))
    monkeypatch.setattr(os, "fstat", lambda fd: open_to_all(real_fstat(fd)))
    for network_id in ("0" * 16, "1" * 16):
        state.lock()
        state.save_owner_key(network_id, "secret")
        assert state.identity()
        assert state.control_key()
        state.unlock()
    (warning,) = warnings(caplog)
    assert "no modes" in warning
    assert "chmod" not in caplog.text


# Identity


def test_the_identity_is_made_once(state: StateDir) -> None:
    seed = state.identity()
    assert len(seed) == 32
    assert StateDir(state.path).identity() == seed
    assert mode(state.path / "identity") == 0o600


def test_two_nodes_are_two(tmp_path: Path) -> None:
    seeds = set()
    for name in "ab":
        (tmp_path / name).mkdir()
        seeds.add(StateDir(tmp_path / name).identity())
    assert len(seeds) == 2


@pytest.mark.parametrize("data", [b"", b"x" * 31, b"x" * 33])
def test_a_damaged_identity_is_not_replaced(state: StateDir, data: bytes) -> None:
    path = state.path / "identity"
    path.write_bytes(data)
    with pytest.raises(StateDirUnusable, match="identity is damaged"):
        state.identity()
    assert path.read_bytes() == data


def test_an_identity_that_others_could_read_is_made_private(state: StateDir, caplog: pytest.LogCaptureFixture) -> None:
    state.identity()
    (state.path / "identity").chmod(0o644)
    state.identity()
    assert mode(state.path / "identity") == 0o600
    assert "others could read" in caplog.text


@pytest.mark.parametrize("name", ["identity", "token"])
def test_secrets_that_cannot_be_read_stop_the_start(state: StateDir, name: str) -> None:
    (state.path / name).mkdir()
    read: dict[str, Callable[[], object]] = {"identity": state.identity, "token": state.load_token}
    with pytest.raises(StateDirUnusable, match=f"{name}: Is a directory"):
        read[name]()


# Token


def test_a_token_is_saved_for_its_owner_only(state: StateDir) -> None:
    assert state.load_token() is None
    state.save_token("one")
    assert StateDir(state.path).load_token() == "one"
    assert mode(state.path / "token") == 0o600
    assert not (state.path / "token.previous").exists()


def test_replaced_tokens_are_kept_newest_first(state: StateDir) -> None:
    for text in ("one", "two", "two", "three", "one"):
        state.save_token(text)
    previous = state.path / "token.previous"
    assert state.load_token() == "one"
    assert previous.read_text() == "three\ntwo\n"
    assert mode(previous) == 0o600


def test_the_same_networks_token_replaces_without_a_trace(state: StateDir) -> None:
    state.save_token("one")
    state.save_token("one, other addresses", keep_old=False)
    assert state.load_token() == "one, other addresses"
    assert not (state.path / "token.previous").exists()


def test_what_is_kept_has_an_end_and_rotations_do_not_push_out_what_a_person_gave(state: StateDir) -> None:
    state.save_token("other")
    for n in range(300):
        state.save_token(f"net-{n}", replaces=lambda text: text.startswith("net-"))
    assert (state.path / "token.previous").read_text() == "net-298\nother\n"
    for n in range(2 * MAX_PREVIOUS):
        state.save_token(f"given-{n}")
    assert len((state.path / "token.previous").read_text().split()) == MAX_PREVIOUS


# Owner's key


def test_an_owners_key_is_kept_by_network_and_never_written_over(state: StateDir) -> None:
    path = state.save_owner_key("abcd", "key")
    assert (path, mode(path), path.read_text()) == (state.path / "owner-abcd.key", 0o600, "key\n")
    assert state.load_owner_key("abcd") == "key\n"
    assert state.load_owner_key("ef01") is None
    with pytest.raises(StateDirUnusable, match=r"owner-abcd\.key: File exists"):
        state.save_owner_key("abcd", "another")
    assert path.read_text() == "key\n"
    state.save_token("t")
    state.forget_network(lambda _text: True)
    assert path.exists()  # a network that is left still has its owner


def test_a_new_file_is_not_written_through_a_link_and_not_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = tmp_path / "elsewhere"
    (tmp_path / "link").symlink_to(elsewhere)
    with pytest.raises(FileExistsError):
        write_new(tmp_path / "link", b"secret")
    assert not elsewhere.exists()

    def full(_fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("federation.state.os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_new(tmp_path / "key", b"secret")
    assert not (tmp_path / "key").exists()


def test_a_network_that_is_left_is_forgotten_and_no_other(state: StateDir) -> None:
    for text in ("left-elsewhere", "other", "left"):
        state.save_token(text)
    state.save_peers({"a": ["/ip4/192.0.2.1/tcp/1"]})
    identity = state.identity()
    state.forget_network(lambda text: text.startswith("left"))
    assert state.load_token() is None
    assert state.load_peers() == {}
    assert state.identity() == identity
    assert (state.path / "token.previous").read_text() == "other\n"
    state.forget_network(lambda text: text.startswith("left"))  # twice is once


# Incarnation


def test_incarnations_rise_at_each_start_also_within_a_second(state: StateDir) -> None:
    assert [StateDir(state.path, clock=lambda: 1000.9).next_incarnation() for _ in range(3)] == [1000, 1001, 1002]


def test_incarnations_rise_though_the_clock_goes_back(state: StateDir) -> None:
    assert state.next_incarnation() == 1000
    assert StateDir(state.path, clock=lambda: 1.0).next_incarnation() == 1001


@pytest.mark.parametrize("data", [b"", b"-5", b"many", b"\xff", b"9" * 30, str(MAX_INCARNATION).encode(), "٣".encode()])
def test_a_lost_incarnation_is_found_again_by_the_clock(
    state: StateDir, data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    (state.path / "incarnation").write_bytes(data)
    assert state.next_incarnation() == 1000
    assert "incarnation is ignored" in caplog.text
    assert state.next_incarnation() == 1001


# Peers and daemon.json


def test_peers_are_remembered(state: StateDir) -> None:
    assert state.load_peers() == {}
    peers = {"12D3KooWa": ["/ip4/192.0.2.1/tcp/1"], "12D3KooWb": []}
    state.save_peers(peers)
    assert StateDir(state.path).load_peers() == peers
    assert mode(state.path / "peers.json") == 0o600


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"null", b"\xff", b'{"a": 1}', b'{"a": [1]}', b'{"a": "b"}', b"[" * 100000]
)
def test_damaged_peers_cost_a_warning(state: StateDir, data: bytes, caplog: pytest.LogCaptureFixture) -> None:
    (state.path / "peers.json").write_bytes(data)
    assert state.load_peers() == {}
    assert "peers.json is ignored" in caplog.text


def test_peers_that_cannot_be_saved_cost_a_warning(state: StateDir, caplog: pytest.LogCaptureFixture) -> None:
    (state.path / "peers.json").mkdir()
    state.save_peers({"a": []})
    assert "were not saved" in caplog.text
    assert sorted(path.name for path in state.path.iterdir()) == ["lock", "peers.json"]  # no temporary file


def test_daemon_facts_come_and_go(state: StateDir) -> None:
    assert state.load_daemon() is None
    state.save_daemon({"pid": 1, "control": "127.0.0.1:8485"})
    assert StateDir(state.path).load_daemon() == {"pid": 1, "control": "127.0.0.1:8485"}
    assert json.loads((state.path / "daemon.json").read_text())["pid"] == 1
    state.remove_daemon()
    state.remove_daemon()
    assert state.load_daemon() is None


def test_damaged_daemon_facts_count_as_none(state: StateDir) -> None:
    (state.path / "daemon.json").write_text("{")
    assert state.load_daemon() is None


# Writing


def test_a_write_that_fails_leaves_the_old_file(state: StateDir, monkeypatch: pytest.MonkeyPatch) -> None:
    state.save_token("old")

    def disk_full(_fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", disk_full)
    with pytest.raises(StateDirUnusable, match="No space left on device"):
        state.save_token("new", keep_old=False)
    assert state.load_token() == "old"
    assert not [path for path in state.path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("call", ["fsync", "ftruncate", "pwrite"])
def test_a_full_disk_does_not_stop_a_node_that_was_here_before(
    state: StateDir, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, call: str
) -> None:
    seed = state.identity()
    state.next_incarnation()
    state.unlock()

    def disk_full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, disk_full)
    again = StateDir(state.path, clock=lambda: 2000.0)
    again.lock()
    try:
        assert (again.identity(), again.next_incarnation()) == (seed, 2000)
        again.save_daemon({"pid": 1, "control": "127.0.0.1:8485"})
        again.remove_daemon()
        with pytest.raises(StateDirBusy):
            StateDir(state.path).lock()
    finally:
        again.unlock()
    warnings = ["this start was not noted", "--control 127.0.0.1:8485"]
    assert all((text in caplog.text) == (call == "fsync") for text in warnings)


def test_nor_does_a_read_only_one(state: StateDir, monkeypatch: pytest.MonkeyPatch) -> None:
    seed = state.identity()
    state.unlock()
    really_open = os.open

    def read_only(path: Path, flags: int, *rest: int) -> int:
        if flags & (os.O_RDWR | os.O_WRONLY | os.O_CREAT):
            raise OSError(errno.EROFS, "Read-only file system")
        return really_open(path, flags, *rest)

    monkeypatch.setattr(os, "open", read_only)
    again = StateDir(state.path, clock=lambda: 2000.0)
    again.lock()
    try:
        assert (again.identity(), again.next_incarnation()) == (seed, 2000)
        with pytest.raises(StateDirBusy):
            StateDir(state.path).lock()
    finally:
        again.unlock()


def test_a_new_node_needs_a_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(*_: object) -> int:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "open", read_only)
    with pytest.raises(StateDirUnusable, match="Read-only file system"):
        StateDir(tmp_path / "state").lock()


def test_a_planted_link_is_not_written_through(state: StateDir, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (state.path / f".token.{os.getpid()}").symlink_to(victim)
    state.save_token("secret")
    assert victim.read_text() == "precious"
    assert state.load_token() == "secret"


@pytest.mark.parametrize("name", ["identity", "token", "control.key", "banned.json"])
def test_a_secret_that_is_a_link_is_not_read(state: StateDir, tmp_path: Path, name: str) -> None:
    victim = tmp_path / "victim"
    victim.write_text("k" * 43)
    victim.chmod(0o644)
    (state.path / name).symlink_to(victim)
    read: list[Callable[[], object]] = [state.identity, state.load_token, state.load_control_key, state.load_bans]
    with pytest.raises(StateDirUnusable, match=f"{name}: it is a link, and none is followed here"):
        for call in read:
            call()
    assert mode(victim) == 0o644


@pytest.mark.parametrize("name", ["peers.json", "incarnation", "daemon.json", "rotation.json"])
def test_nor_is_anything_else(state: StateDir, tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    victim = tmp_path / "victim"
    victim.write_text('{"control": "192.0.2.1:1"}')
    (state.path / name).symlink_to(victim)
    assert (state.load_peers(), state.load_daemon(), state.load_rotation()) == ({}, None, {})
    assert state.next_incarnation() == 1000
    assert f"{name} is ignored: it is a link" in caplog.text


@pytest.mark.parametrize("exists", [True, False])
def test_a_lock_that_is_a_link_is_neither_taken_nor_created(tmp_path: Path, exists: bool) -> None:
    victim = tmp_path / "victim"
    if exists:
        victim.write_text("precious")
    (tmp_path / "s").mkdir(mode=0o700)
    (tmp_path / "s" / "lock").symlink_to(victim)
    state = StateDir(tmp_path / "s")
    with pytest.raises(StateDirUnusable, match="lock: it is a link"):
        state.lock()
    assert state.holder() is None
    assert victim.exists() == exists
    assert not exists or victim.read_text() == "precious"


def test_no_directory_that_is_made_on_the_way_is_for_others_to_write(tmp_path: Path) -> None:
    umask = os.umask(0)
    try:
        StateDir(tmp_path / "a/b/c").save_page("")
    finally:
        os.umask(umask)
    assert [mode(tmp_path / path) for path in ("a", "a/b", "a/b/c")] == [0o700] * 3


def test_a_pipe_in_a_files_place_keeps_nobody_waiting(state: StateDir) -> None:
    os.mkfifo(state.path / "token")
    with pytest.raises(StateDirUnusable, match="token: is no file"):
        state.load_token()


def test_a_file_of_another_user_is_not_believed(state: StateDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor the address where the dashboard is opened with a code: others may have been let into the directory."""
    state.control_key()
    state.save_daemon({"control": "127.0.0.1:1"})
    monkeypatch.setattr(os, "geteuid", lambda: 54321)
    state.path.chmod(0o755)
    if os.getuid() == 0:
        for name in ("control.key", "daemon.json"):
            (state.path / name).chmod(0o644)
            os.chown(state.path / name, 54322, -1)
    with pytest.raises(StateDirUnusable, match="it belongs to the user"):
        state.load_control_key()
    assert state.load_daemon() is None


def test_a_hard_link_is_not_made_private(state: StateDir, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("k" * 43)
    victim.chmod(0o644)
    os.link(victim, state.path / "control.key")
    assert state.load_control_key() == "k" * 43
    assert mode(victim) == 0o644


def test_who_holds_the_lock(state: StateDir) -> None:
    assert StateDir(state.path).holder() == f"{os.getpid()} on {socket.gethostname()}"
    state.unlock()
    assert StateDir(state.path).holder() is None
    state.lock()


def test_who_just_looks_stops_no_start(state: StateDir, monkeypatch: pytest.MonkeyPatch) -> None:
    state.unlock()
    look = os.open(state.path / "lock", os.O_RDONLY)
    fcntl.flock(look, fcntl.LOCK_SH)
    monkeypatch.setattr("federation.state.time.sleep", lambda _: fcntl.flock(look, fcntl.LOCK_UN))
    state.lock()
    os.close(look)


def test_the_socket_is_for_who_holds_the_lock(state: StateDir) -> None:
    listener = state.listen_control()
    assert listener is not None
    with listener, state.connect_control(5.0):
        assert mode(state.path / "control.sock") == 0o600
    state.remove_daemon()
    assert not (state.path / "control.sock").exists()
    with pytest.raises(StateDirUnusable, match="is not locked"):
        StateDir(state.path).listen_control()


def test_a_disk_that_takes_no_sockets_costs_a_warning(state: StateDir, caplog: pytest.LogCaptureFixture) -> None:
    (state.path / "control.sock").mkdir()
    assert state.listen_control() is None
    assert "no socket for the command line" in caplog.text


def test_no_identity_without_a_directory(tmp_path: Path) -> None:
    with pytest.raises(StateDirUnusable, match="No such file"):
        StateDir(tmp_path / "nowhere").identity()


def test_the_control_key_is_made_once_and_is_for_its_owner(state: StateDir) -> None:
    assert state.load_control_key() is None
    key = state.control_key()
    assert state.control_key() == state.load_control_key() == key
    assert len(key) == 43
    assert (state.path / "control.key").stat().st_mode & 0o777 == 0o600
    assert StateDir(state.path).control_key() == key


@pytest.mark.parametrize("damage", [b"", b"short", b"\xff" * 43, b"k" * 44, b"k k" + b"k" * 40])
def test_a_damaged_control_key_is_replaced(state: StateDir, damage: bytes) -> None:
    (state.path / "control.key").write_bytes(damage)
    assert state.load_control_key() is None
    key = state.control_key()
    assert key == state.load_control_key()


def test_the_page_with_the_key_is_as_private(state: StateDir) -> None:
    page = state.save_page("<a>")
    assert page.read_text() == "<a>"
    assert page.stat().st_mode & 0o777 == 0o600
