"""A node as this process: how it ends, and what the signals do."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing
from structlog.testing import capture_logs

from federation import daemon as module
from federation.config import Settings
from federation.errors import FederationError, ListenFailed, UsageError
from federation.state import StateDir
from tests.support.nodes import TOKEN, only

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

if sys.version_info < (3, 11):
    from exceptiongroup import ExceptionGroup


pytestmark = pytest.mark.usefixtures("quiet")


@dataclass
class Daemon:
    settings: Settings
    state: StateDir
    notified: list[str] = field(default_factory=list)

    def serve(self, *signals: signal.Signals, read_settings: Any = None) -> int:
        """Run it; the signals come, one after the other, as soon as it is ready."""

        def on_ready(_status: object) -> None:
            for number in signals:
                os.kill(os.getpid(), number)

        return module.serve(self.settings, self.state, TOKEN, on_ready=on_ready, read_settings=read_settings)


@pytest.fixture
def daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Daemon]:
    settings = Settings(
        name="x", listens=("127.0.0.1:0",), p2p_listen="127.0.0.1:0", control="127.0.0.1:0", mdns=False,
        vram_bytes=1, state_dir=tmp_path / "x",
    )  # fmt: skip
    daemon = Daemon(settings, StateDir(settings.state_dir))
    monkeypatch.setattr(module, "notify", daemon.notified.append)
    daemon.state.lock()
    yield daemon
    daemon.state.unlock()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_in_order(daemon: Daemon, number: signal.Signals) -> None:
    assert daemon.serve(number) == 0
    assert sorted(daemon.notified) == sorted([module.READY, module.stopping(30.0)])
    assert not (daemon.settings.state_dir / "daemon.json").exists()


def test_one_that_comes_before_it_is_ready_ends_it_at_once(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    async def stuck(_node: object, _on_ready: object) -> None:
        await trio.testing.wait_all_tasks_blocked()  # the daemon listens to signals
        os.kill(os.getpid(), signal.SIGTERM)
        await trio.sleep_forever()

    monkeypatch.setattr(module.Node, "run", stuck)
    assert daemon.serve() == 0
    assert daemon.notified == [module.stopping(0.0)]


def test_a_second_one_ends_it_now(daemon: Daemon) -> None:
    with capture_logs() as logs:
        assert daemon.serve(signal.SIGTERM, signal.SIGINT) == 1
    assert "second signal: ending now" in [entry["event"] for entry in logs]


def test_sighup_reads_the_settings_again(daemon: Daemon) -> None:
    def read() -> Settings:
        return daemon.settings.model_copy(update={"hold_s": 7.0})

    with capture_logs() as logs:
        assert daemon.serve(signal.SIGHUP, signal.SIGTERM, read_settings=read) == 0
    assert [entry["changed"] for entry in logs if entry["event"] == "settings read again"] == [["hold"]]


def test_settings_that_are_wrong_change_nothing(daemon: Daemon) -> None:
    def read() -> Settings:
        raise UsageError("hold: what is that?")

    with capture_logs() as logs:
        assert daemon.serve(signal.SIGHUP, signal.SIGTERM, read_settings=read) == 0
    assert "the settings are wrong, and the old ones stay in force" in [entry["event"] for entry in logs]


def test_it_ends_with_the_error_of_the_start(daemon: Daemon) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        settings = Settings(
            name="x", listens=("127.0.0.1:0",), p2p_listen=f"127.0.0.1:{taken.getsockname()[1]}", control="127.0.0.1:0",
            mdns=False, state_dir=daemon.settings.state_dir,
        )  # fmt: skip
        with pytest.raises((FederationError, ExceptionGroup)) as caught:
            module.serve(settings, daemon.state, TOKEN, on_ready=lambda _: None)
    assert isinstance(only(caught.value), ListenFailed)


# The service manager


def test_the_manager_hears_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(1)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        assert module.notify(module.READY)
        assert manager.recv(100) == b"READY=1"
        assert module.notify(module.reloading())
        assert manager.recv(100).startswith(b"RELOADING=1\nMONOTONIC_USEC=")


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="abstract sockets are Linux's")
def test_in_the_abstract_namespace_too(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"\0federation-test-{os.getpid()}")
        manager.settimeout(1)
        monkeypatch.setenv("NOTIFY_SOCKET", f"@federation-test-{os.getpid()}")
        assert module.notify(module.STOPPING)
        assert manager.recv(100) == b"STOPPING=1"


@pytest.mark.parametrize("path", ["", "/nobody/is/there", "tcp:nonsense"])
def test_nobody_to_tell_is_fine(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", path)
    assert not module.notify(module.READY)
    monkeypatch.delenv("NOTIFY_SOCKET")
    assert not module.notify(module.READY)


def test_the_manager_hears_how_long_the_end_may_take() -> None:
    assert module.stopping(30.0) == "STOPPING=1\nEXTEND_TIMEOUT_USEC=40000000"


async def test_the_watchdog_is_fed_twice_in_its_time(monkeypatch: pytest.MonkeyPatch, autojump_clock: object) -> None:
    told: list[float] = []
    monkeypatch.setenv("WATCHDOG_USEC", "90000000")
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    monkeypatch.setattr(
        module, "notify", lambda message: told.append(trio.current_time()) if message == module.ALIVE else None
    )
    with trio.move_on_after(100):
        await module._feed_watchdog()
    assert [when - told[0] for when in told] == [0, 45, 90]


@pytest.mark.parametrize(
    ("environ", "every_s"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "60000000"}, 30),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "7"}, 30),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "8"}, None),  # meant for a parent
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_only_a_watchdog_that_means_this_process_is_fed(environ: dict[str, str], every_s: float | None) -> None:
    assert module.watchdog_s(environ, 7) == every_s


# The terminal

CHILD = """
import fcntl, os, signal, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGHUP])
signal.signal(signal.SIGHUP, signal.SIG_IGN if sys.argv[2] == "nohup" else signal.SIG_DFL)  # whatever pytest inherited
from federation.daemon import Terminal
terminal = Terminal()
signal.signal(signal.SIGHUP, lambda *_: None)  # as the daemon does
os.write(1, b"up")
signal.sigwait([signal.SIGHUP])
open(sys.argv[1], "w").write(str(terminal.was_closed()))
"""


@pytest.mark.parametrize(
    ("how", "is_closed", "expected"),
    [("foreground", True, "True"), ("foreground", False, "False"), ("nohup", True, "False")],
    ids=["closed", "a reload at a terminal", "closed under nohup"],
)
def test_a_closed_terminal_is_told_from_a_reload(tmp_path: Path, how: str, is_closed: bool, expected: str) -> None:
    said = tmp_path / "said"
    master, slave = os.openpty()
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(said), how],
        stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
    )  # fmt: skip
    try:
        assert b"up" in os.read(master, 4096)
        os.close(slave)
        if is_closed:
            os.close(master)  # the kernel tells the child
        else:
            child.send_signal(signal.SIGHUP)
        assert child.wait(30) == 0
    finally:
        child.kill()
        child.wait()
    assert said.read_text() == expected
