"""Pings a peer, and hands out the log: for the person who looks after this node. doctor.py finds faults."""

from __future__ import annotations

from typing import TYPE_CHECKING

from federation import logs
from federation.errors import ProbeFailed
from federation.mesh.probe import MAX_BULK_S

if TYPE_CHECKING:
    from federation.mesh.probe import Moved
    from federation.ops import schemas
    from federation.ops.parts import Parts


async def ping(node: Parts, text: str, count: int, bulk_bytes: int) -> schemas.Ping:
    """Ping a peer. Raises NotFound, UsageError or ProbeFailed."""
    peer = node.find_other(text)
    link = node.host.links.get(peer)
    if link is None:
        why = node.host.dial_loop.not_reached.get(peer)
        raise ProbeFailed(f"no connection to {node.name_of(peer) or peer}{f': {why}' if why else ''}")
    address = link.remote_address
    times = await node.probe.echo(peer, count)
    up = down = None
    if bulk_bytes:
        up = await node.probe.send(peer, bulk_bytes, MAX_BULK_S)
        down = await node.probe.fetch(peer, bulk_bytes, MAX_BULK_S)
    return {
        "peer_id": peer,
        "name": node.name_of(peer),
        "path": link.path,
        "address": None if address is None else f"{address[0]}:{address[1]}",
        "rtt_ms": [round(seconds * 1000, 3) for seconds in times],
        "up": _moved(up),
        "down": _moved(down),
    }


def log_lines(after: int, last: int) -> schemas.LogLines:
    lines = logs.recent.after(after, last)
    return {"lines": lines, "next": logs.recent.last}


def _moved(moved: Moved | None) -> schemas.Bulk | None:
    return None if moved is None else {"bytes": moved.bytes, "seconds": round(moved.seconds, 6)}
