"""The daemon as a process: its signals, and its messages to a service manager (sd_notify(3), as systemd's Type=notify has
it; without a manager nothing happens).
"""

from __future__ import annotations

import os
import signal
import socket
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import structlog
import trio

from federation.errors import FederationError
from federation.node import Node

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from federation.config import Settings
    from federation.mesh.tokens import Token
    from federation.ops import schemas
    from federation.state import StateDir

log = structlog.get_logger(__name__)

READY = "READY=1"
STOPPING = "STOPPING=1"
ALIVE = "WATCHDOG=1"
LEAVING_S = 10.0  # the good-byes, beyond the drain


def serve(
    settings: Settings,
    state: StateDir,
    token: Token,
    *,
    on_ready: Callable[[schemas.Status], None],
    read_settings: Callable[[], Settings] | None = None,
) -> int:
    """Run a node until SIGTERM or SIGINT; a second signal ends it at once. Returns the exit code.

    At SIGHUP it takes over the result of `read_settings`, or ends as at SIGTERM if its terminal was closed. Raises
    FederationError, in an exception group where trio's nurseries wrapped it.
    """
    return trio.run(_serve, settings, state, token, on_ready, read_settings)


async def _serve(
    settings: Settings,
    state: StateDir,
    token: Token,
    on_ready: Callable[[schemas.Status], None],
    read_settings: Callable[[], Settings] | None,
) -> int:
    node = Node(settings, state, token)
    terminal = Terminal()
    code = 0
    is_ready = False
    async with trio.open_nursery() as nursery:

        async def watch_signals() -> None:
            nonlocal code
            with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
                first = True
                async for number in signals:
                    if number == signal.SIGHUP and not terminal.was_closed():
                        _reload(node, read_settings)
                        continue
                    if not first:
                        log.warning("second signal: ending now")
                        code = 1
                        nursery.cancel_scope.cancel()
                        return
                    first = False
                    log.info("signal received: leaving the network", signal=signal.Signals(number).name)
                    notify(stopping(node.facts.settings.drain_timeout_s if is_ready else 0.0))
                    if not is_ready:  # nobody was served, and what the start waits for may take ten seconds
                        nursery.cancel_scope.cancel()
                        return
                    node.stop()

        nursery.start_soon(watch_signals)
        nursery.start_soon(_feed_watchdog)

        def ready(status: schemas.Status) -> None:
            nonlocal is_ready
            is_ready = True
            on_ready(status)
            notify(READY)

        await node.run(ready)
        nursery.cancel_scope.cancel()
    return code


class Terminal:
    """The terminal that this process was started in, if any. `nohup` detaches a process from it, by ignoring SIGHUP."""

    def __init__(self) -> None:
        self._is_ours = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN and _has_terminal()

    def was_closed(self) -> bool:
        """Whether a SIGHUP came because it is gone. The kernel takes it away first, and then says so."""
        return self._is_ours and not _has_terminal()


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def _reload(node: Node, read_settings: Callable[[], Settings] | None) -> None:
    """Settings that are wrong leave the old ones in force."""
    notify(reloading())
    try:
        if read_settings is not None:
            node.reload(read_settings())
    except FederationError as error:
        log.error("the settings are wrong, and the old ones stay in force", why=str(error))
    notify(READY)


def reloading() -> str:
    """Tell of a reload, with the time, which Type=notify-reload asks for; Type=notify ignores it."""
    return f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}"


def stopping(drain_s: float) -> str:
    """Tell of the end, and how long it may take: the manager's own limit may be of another --drain-timeout."""
    return f"{STOPPING}\nEXTEND_TIMEOUT_USEC={round((drain_s + LEAVING_S) * 1e6)}"


async def _feed_watchdog() -> None:
    """Tell the manager that the node's thread still turns (WatchdogSec=), if it wants to know."""
    every_s = watchdog_s(os.environ, os.getpid())
    while every_s is not None:
        notify(ALIVE)
        await trio.sleep(every_s)


def watchdog_s(environ: Mapping[str, str], pid: int) -> float | None:
    """How often to tell, from sd_watchdog_enabled(3): twice within the time; None: never."""
    text, whose = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", str(pid))
    return int(text) / 2e6 if text.isascii() and text.isdigit() and int(text) and whose == str(pid) else None


def notify(message: str) -> bool:
    """Tell the service manager; returns whether it was told. A manager that is gone is no reason to fail."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path.startswith(("/", "@")):
        return False
    address = f"\0{path[1:]}" if path.startswith("@") else path  # @: the abstract namespace
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        sock.connect(address)
        sock.sendall(message.encode())
        return True
    return False
