"""The model servers on this machine, for `join`: looks once before the node starts, and says what it found."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from federation.forward.models import finding

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from federation.forward.models.finding import Found


def find(*, without: Collection[int] = ()) -> list[Found]:
    """The servers that answer now; ports in `without` are not asked."""

    async def look() -> list[Found]:
        return await finding.find(without=without)

    return trio.run(look)


def in_words(found: Sequence[Found]) -> list[str]:
    """The servers found, a line each, for the person."""
    left = [
        f"found {server.title} on {server.address} and leaves it alone: it is another user's (uid "
        f"{', '.join(map(str, server.other_owners))}); if you trust it, offer it with --backend {server.address}"
        for server in found
        if server.other_owners
    ]
    found = [server for server in found if not server.other_owners]
    if not found:
        return left
    first, *others = found
    lines = [f"found {first.title} on {first.address} and offers it (--no-detect: do not look; --backend: offer another)"]
    lines += [
        f"found {other.title} on {other.address} too and offers it as the service {other.kind}; "
        f"clients ask for it at a node with --listen {other.kind}=127.0.0.1:PORT"
        for other in others
    ]
    return lines + left
