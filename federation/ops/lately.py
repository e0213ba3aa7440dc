"""Keeps the node's history (history.py) while it runs, and answers from it."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING

import trio

from federation.mesh.bans import find_peer
from federation.ops import status
from federation.ops.history import MIB, SAMPLE_EVERY_S, STEP_S, Sample

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from federation.ops import shapes
    from federation.ops.history import Machine, Ring
    from federation.ops.parts import Parts

TOTALS = ("connections", "failed", "retried", "received", "delivered")  # as status.traffic has them
WELL = ("online", "draining", "no backend")
LINES = 7  # machines by name in an answer about all, as many as the dashboard has colours; the others are one sum


async def keep(node: Parts) -> None:
    """Take samples until cancelled."""
    while True:
        sample(node)
        await trio.sleep(SAMPLE_EVERY_S)


def sample(node: Parts) -> None:
    at = node.clock.utc_now().timestamp()
    node.history.sample(at, status.traffic(node), len(node.frontend.active), _machines(node))


def _machines(node: Parts) -> Iterator[Sample]:
    own = node.own_record(node.backends.in_flight)
    others = [record for record in node.ledger.records() if record.peer_id != node.peer_id]
    for record in (own, *others):
        is_known = record.peer_id in node.history.machines
        if record is own or is_known or record.peer_id in node.host.links:
            is_well = status.state_of(node, record) in WELL
            load = status.in_flight(node, record) if is_well else 0
            yield Sample(record.peer_id, record.name, load, is_well, record.available_vram)


def answer(node: Parts, peer: str | None) -> shapes.History:
    """The node's traffic; and its machines' loads, or all that is known of the one that a person calls `peer`.

    Raises NotFound or UsageError for a name that is none here.
    """
    history = node.history
    if history.last < 0:
        sample(node)
    now = node.clock.utc_now()
    began = datetime.fromtimestamp(history.first * STEP_S, timezone.utc)
    found: shapes.History = {
        "at": round((node.clock.by_the_wall(began)).timestamp()),
        "step_s": STEP_S,
        "covers_s": round(max(timedelta(0), now - began).total_seconds(), 3),
        "memory": history.bytes,
        "open": _read(node, history.open, 2),
        "totals": {name: _read(node, ring, 0) for name, ring in history.growth.items()},
        "machines": [],
        "others": None,
        "machine": None,
    }
    if peer is not None:
        names = {each: machine.name for each, machine in history.machines.items()}
        names |= {record.peer_id: record.name for record in node.ledger.records()}
        peer_id = find_peer(peer, names, among="the nodes of this network")
        found["machine"] = _machine(node, peer_id)
        return found
    named = history.busiest(LINES)
    found["machines"] = [
        {"peer_id": each, "name": history.machines[each].name, "load": _read(node, history.machines[each].load, 2)}
        for each in named
    ]
    rest = [machine for each, machine in history.machines.items() if each not in named]
    found["others"] = _sum(node, rest) if rest else None
    return found


def _machine(node: Parts, peer_id: str) -> shapes.MachineHistory | None:
    machine = node.history.machines.get(peer_id)
    if machine is None:
        return None
    return {
        "peer_id": peer_id,
        "name": machine.name,
        "load": _read(node, machine.load, 2),
        "well": _read(node, machine.well, 2),
        "available_vram": [None if mib is None else round(mib) * MIB for mib in _read(node, machine.free_mib, 0)],
    }


def _sum(node: Parts, machines: Iterable[Machine]) -> list[float | None]:
    columns = zip(*(_read(node, machine.load, 2) for machine in machines), strict=True)
    return [round(sum(value or 0.0 for value in column), 2) for column in columns]


def _read(node: Parts, ring: Ring, digits: int) -> list[float | None]:
    values = ring.read(node.history.first, node.history.last)
    return [None if value is None else round(value, digits) for value in values]
