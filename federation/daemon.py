"""The daemon as a process: what its signals mean, and what the service manager hears."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import structlog
import trio

from federation import sdnotify
from federation.errors import FederationError
from federation.node import Node

if TYPE_CHECKING:
    from collections.abc import Callable

    from federation.config import Settings
    from federation.mesh.tokens import Token
    from federation.node import ControlServer
    from federation.ops import schemas
    from federation.state import StateDir

log = structlog.get_logger(__name__)


def serve(
    settings: Settings,
    state: StateDir,
    token: Token,
    *,
    serve_control: ControlServer,
    on_ready: Callable[[schemas.Status], None],
    read_settings: Callable[[], Settings] | None = None,
) -> int:
    """Run a node until SIGTERM or SIGINT; a second signal ends it at once. Returns the exit code.

    SIGHUP has it take over what `read_settings` returns. Raises FederationError, in an exception group where trio's
    nurseries wrapped it.
    """
    return trio.run(_serve, settings, state, token, serve_control, on_ready, read_settings)


async def _serve(
    settings: Settings,
    state: StateDir,
    token: Token,
    serve_control: ControlServer,
    on_ready: Callable[[schemas.Status], None],
    read_settings: Callable[[], Settings] | None,
) -> int:
    node = Node(settings, state, token, serve_control)
    code = 0
    async with trio.open_nursery() as nursery:

        async def watch_signals() -> None:
            nonlocal code
            with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
                first = True
                async for number in signals:
                    if number == signal.SIGHUP:
                        _reload(node, read_settings)
                        continue
                    if not first:
                        log.warning("second signal: ending now")
                        code = 1
                        nursery.cancel_scope.cancel()
                        return
                    first = False
                    log.info("signal received: leaving the network", signal=signal.Signals(number).name)
                    sdnotify.notify(sdnotify.STOPPING)
                    node.stop()

        nursery.start_soon(watch_signals)

        def ready(status: schemas.Status) -> None:
            on_ready(status)
            sdnotify.notify(sdnotify.READY)

        await node.run(ready)
        nursery.cancel_scope.cancel()
    return code


def _reload(node: Node, read_settings: Callable[[], Settings] | None) -> None:
    """Settings that are wrong leave the old ones in force."""
    sdnotify.notify(sdnotify.reloading())
    try:
        if read_settings is not None:
            node.reload(read_settings())
    except FederationError as error:
        log.error("the settings are wrong, and the old ones stay in force", why=str(error))
    sdnotify.notify(sdnotify.READY)
