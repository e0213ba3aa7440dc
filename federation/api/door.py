"""The way in to the control API: its sockets listen before the node serves, and the server behind them is imported later.

Starlette, Hypercorn and our own routes are a fifth of all that a daemon imports, and no client of the node waits for them.
Requests that come meanwhile wait in the sockets' queues. The import runs on a thread, and right after the start: a daemon
whose files are replaced by those of a newer version would not find what it needs there an hour later.
"""

from __future__ import annotations

import ctypes
import gc
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import trio

from federation.errors import ListenFailed, listen_problem
from federation.reactor import listening
from federation.units import HostPort

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator, Sequence
    from types import ModuleType

    from trio_typing import TaskStatus

    from federation.api.server import KeyedNode

BACKLOG = 128
PATIENCE_S = 3.0  # with a start that takes long: a person who asks why gets an answer


async def serve_node(
    node: KeyedNode, address: HostPort, *, task_status: TaskStatus[HostPort] = trio.TASK_STATUS_IGNORED
) -> None:
    """Serve the node's API until cancelled. Counts as started, with the address in use, once it listens and has its key.

    Raises ListenFailed where the port cannot be had.
    """
    with opened(address, node.control_socket) as (listeners, own):
        node.control_key()  # a script that read `ready:` reads control.key next
        task_status.started(address_in_use(address, listeners))
        with trio.move_on_after(PATIENCE_S):
            await node.has_started()
        server = await trio.to_thread.run_sync(_import)
        gc.freeze()  # what came in lives for good, as all that the start made
        await server.serve_node(node, address, listeners, own)


def _import() -> ModuleType:
    from federation.api import server

    # The last step of a start. What it needed and no longer needs goes back to the system: 3 MB of glibc's heap.
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # other C libraries have no such call
    if trim is not None:
        trim(0)
    return server


@contextmanager
def opened(
    address: HostPort, own: Callable[[], socket.socket | None]
) -> Iterator[tuple[Sequence[socket.socket], socket.socket | None]]:
    """The listening sockets of that address, and the one of the daemon's own user. Raises ListenFailed."""
    with ExitStack() as stack:
        try:
            listeners = [stack.enter_context(listener) for listener in listening.listen(address, BACKLOG)]
        except OSError as error:
            raise ListenFailed(listen_problem("the control API", str(address), "--control", error)) from None
        own_listener = own()
        if own_listener is not None:
            stack.enter_context(own_listener)
        yield listeners, own_listener


def address_in_use(address: HostPort, listeners: Sequence[socket.socket]) -> HostPort:
    """The port, too, where 0 was asked for."""
    return HostPort(address.host, listeners[0].getsockname()[1])
