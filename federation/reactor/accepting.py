"""The rule for errors of accept(2), at the ports of clients, of peers and of the control API. A listener is never lost.

Linux reports in accept(2) the fate of the connection that it would have returned (a pending network error, a firewall's
verdict): that client is lost, and the listener takes the next one at once. Without a spare descriptor accepting pauses. Any
other error is logged, and the listener tries again after the same pause, so that it does not take a whole processor.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import structlog
import trio

if TYPE_CHECKING:
    from collections.abc import Callable

log = structlog.get_logger(__name__)

PAUSE_S = 0.1  # closing connections frees descriptors meanwhile
COMPLAIN_EVERY_S = 10.0
OUT_OF_DESCRIPTORS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
# The errors that trio's SocketListener ignores, too. Not every system has all of them.
ONE_CLIENT = frozenset(
    getattr(errno, name)
    for name in (
        *("EPERM", "ECONNABORTED", "ECONNRESET", "EPROTO", "ETIMEDOUT", "EINTR", "EOPNOTSUPP", "ENOPROTOOPT"),
        *("ENETDOWN", "ENETUNREACH", "EHOSTDOWN", "EHOSTUNREACH", "ENONET", "ENOSR", "ESOCKTNOSUPPORT", "EPROTONOSUPPORT"),
    )
    if hasattr(errno, name)
)


class Accepting:
    """The rule for listeners whose connections come from `whom`, as "a client". `clock`: seconds, monotonic."""

    def __init__(self, whom: str, clock: Callable[[], float] = trio.current_time) -> None:
        self._whom = whom
        self._clock = clock
        self._said_at: dict[str, float] = {}

    def pause_after(self, error: OSError) -> float:
        """Seconds to wait before accept is called again; 0 for at once."""
        if error.errno in ONE_CLIENT:
            return 0.0
        if error.errno in OUT_OF_DESCRIPTORS:
            return self.out_of_descriptors()
        name = errno.errorcode.get(error.errno or 0, "?")
        self._say(f"accepting {self._whom} failed; it is tried again", why=f"{name}: {os.strerror(error.errno or 0)}")
        return PAUSE_S

    def out_of_descriptors(self) -> float:
        self._say(f"no descriptor left for {self._whom}; accepting pauses", limit="ulimit -n")
        return PAUSE_S

    async def next(self, listener: trio.SocketListener) -> trio.SocketStream:
        """Accept the next connection, past any errors. Raises trio.ClosedResourceError if this node closed the listener."""
        while True:
            try:
                return await listener.accept()
            except OSError as error:  # noqa: PERF203
                await trio.sleep(self.pause_after(error))

    def _say(self, event: str, **details: str) -> None:
        now = self._clock()
        if now - self._said_at.get(event, -1e9) > COMPLAIN_EVERY_S:
            self._said_at[event] = now
            log.warning(event, **details)
