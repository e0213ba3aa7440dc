"""The node's state as plain data, for the control API. Reads all parts, changes none."""

from __future__ import annotations

import os
from collections import Counter
from heapq import nsmallest
from typing import TYPE_CHECKING, get_args

import trio

from federation import __version__
from federation.errors import IdentityCopied, TokenRetired
from federation.forward.attempts import State
from federation.forward.backends import OUTSIDE
from federation.metrics import Snapshot
from federation.ops import idle, invitation, schemas
from federation.units import visible

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from federation.forward.counters import Answer, Busier, Ending
    from federation.mesh.records import Gpu, NodeData
    from federation.net.link.link import Link
    from federation.ops.parts import Parts
    from federation.units import Place


COPIED = "runs on two machines with one identity, one of them a copy of the other; the first one stays"
ROTATED_BY_OTHERS = (
    "members of an earlier version have rotated this network's token, which has no owner: "
    "nodes of this version stay with the present one. "
    "To follow the others, run `federation invite` on one of them, and here `federation join --token-file -`"
)


# A client's state in words for people; it leaves the list of the active as it is closed.
STATES: dict[State, schemas.ClientState] = {
    State.IDLE: "idle",
    State.WAITING: "waiting",
    State.DIALLING: "opening",
    State.OPENING: "opening",
    State.OPENED: "opening",
    State.COMMITTED: "opening",
    State.STREAMING: "open",
    State.REJECTED: "turned away",
}


def status(node: Parts) -> schemas.Status:
    now = node.clock.utc_now()
    totals = node.frontend.counters.totals
    received, delivered = node.frontend.bytes_moved()
    online = [r for r in node.ledger.online(now) if r.peer_id == node.peer_id or r.peer_id in node.host.links]
    return {
        "node": {
            "peer_id": node.peer_id,
            "name": node.facts.settings.name,
            "version": __version__,
            "addresses": [str(address) for address in node.addresses],
            "listens": {service: str(address) for service, address in node.facts.listens.items()},
            "listeners": [_listener(node, service, at) for service, at in node.facts.listeners],
            "p2p": str(node.facts.p2p),
            "control": str(node.facts.control),
            "services": node.backends.services(),
            "gpu": {
                "source": node.facts.gpu.source,
                "note": node.facts.gpu.note,
                "total_vram": node.facts.gpu.total_vram,
                "available_vram": node.facts.gpu.available_vram,
            },
            "in_flight": node.backends.in_flight,
            "draining": node.facts.draining,
            "dialable": node.connectivity.reachability.dialable,
            "via": list(node.connectivity.reachability.via),
            "relay": _relaying(node),
            "uptime_s": round(trio.current_time() - node.facts.started_at, 3),
            "tasks": trio.lowlevel.current_statistics().tasks_living,
            "state_dir": str(node.state.path),
            "pid": os.getpid(),
        },
        "network": {
            "id": node.token.network_id,
            "name": node.token.name,
            "peers_online": len(online),
            "peers_known": len(node.ledger),
            "paths": dict(Counter(link.path for link in node.host.links.values())),
            "services": _services(node, online),
            "invite_addresses": invitation.addresses(node),
            "rotations": node.token.rotations,
            "former_until": _former_until(node),
            "owner": node.token.owner.hex(),
            "owner_here": node.facts.has_owner_key,
            "owner_at": owner_at(node),
        },
        "connections": {
            "now": len(node.frontend.active),
            "total": totals.started,
            "failed": totals.failed,
            "retried": totals.retried,
            "received": received,
            "delivered": delivered,
        },
        "rates": rates(node),
        "warnings": _warnings(node),
    }


def peers(node: Parts) -> list[schemas.Peer]:
    """The nodes: this one first, then the others by name."""
    own = node.own_record(node.backends.in_flight)  # not the ledger's: that is as announced, or not there yet
    others = [record for record in node.ledger.records() if record.peer_id != node.peer_id]
    return [_peer_row(node, record) for record in (own, *sorted(others, key=lambda r: (r.name, r.peer_id)))]


def explain(node: Parts, last: int, connection: int | None = None) -> list[schemas.Decision]:
    """The newest `last` picks, or all that are still known of one connection; the newest at the end."""
    counters = node.frontend.counters
    decisions = list(counters.decisions)
    decisions = decisions[-last:] if connection is None else [d for d in decisions if d.flow.connection == connection]
    failures = {(failure.flow, failure.attempt): failure.why for failure in counters.failures}
    busier = {(row.flow, row.attempt, row.again): row for row in counters.busier}
    wanted = {decision.flow for decision in decisions}
    endings = {ending.flow: ending for ending in counters.endings if ending.flow in wanted}
    return [
        {
            "id": decision.flow.connection,
            "request": decision.flow.request,
            "at": node.clock.utc_of(decision.at).isoformat(),
            "service": decision.route.service,
            "model": visible(decision.route.model),
            "client": decision.client,
            "attempt": decision.attempt,
            "chosen": decision.pick.chosen.peer_id,
            "name": node.name_of(decision.pick.chosen.peer_id),
            "tier": decision.pick.tier,
            "loads": decision.pick.chosen.is_cold,
            "failed": None if decision.key in busier else failures.get((decision.flow, decision.attempt)),
            "sent_back": _sent_back(busier.get(decision.key)),
            "ended": _ended(endings.get(decision.flow)),
            "candidates": [
                {
                    "peer_id": c.peer_id,
                    "name": node.name_of(c.peer_id),
                    "in_flight": c.in_flight,
                    "last_used_age_s": round(decision.at - c.last_used, 3) if c.last_used >= 0 else None,
                    "available_vram": c.available_vram,
                    "served": c.served,
                    "far": c.is_distant,
                    "path": _path_to(node, c.peer_id),
                    "rtt_ms": _rtt_ms(node.host.links.get(c.peer_id)),
                }
                for c in decision.pick.candidates
            ],
        }
        for decision in decisions
    ]


def _sent_back(row: Busier | None) -> schemas.SentBack | None:
    return None if row is None else {"had": row.had, "believed": row.believed}


def turned_away(node: Parts, last: int, connection: int | None = None) -> list[schemas.TurnedAway]:
    """The newest `last` connections that no peer had at their end, or the one of that number."""
    endings = [e for e in node.frontend.counters.endings if not e.peer_id and connection in (None, e.flow.connection)]
    return [
        {
            "id": ending.flow.connection,
            "request": ending.flow.request,
            "at": node.clock.utc_of(ending.ended_at).isoformat(),
            "service": ending.route.service,
            "model": visible(ending.route.model),
            "client": ending.client,
            "attempts": ending.attempts,
            "seconds": round(ending.seconds, 3),
            "why": ending.error or "the client went away while it waited for a peer",
            **_key(ending),
        }
        for ending in endings[-last:]
    ]


def _ended(ending: Ending | None) -> schemas.Ended | None:
    """The end of a connection; None while it is open."""
    if ending is None:
        return None
    return {
        "peer_id": ending.peer_id,
        "seconds": round(ending.seconds, 3),
        "received": ending.received,
        "delivered": ending.delivered,
        "error": ending.error,
        "answer": _answer(ending.answer),
        **_key(ending),
    }


def _answer(answer: Answer | None) -> schemas.Answer | None:
    if answer is None:
        return None
    tokens = answer.tokens
    return {
        "status": answer.status,
        "queued_s": round(answer.queued_s, 3),
        "first_s": None if answer.first_s is None else round(answer.first_s, 3),
        "is_stream": answer.is_stream,
        "tokens": None if tokens is None else {"taken": tokens.taken, "made": tokens.made, "cached": tokens.cached},
    }


def _key(ending: Ending) -> schemas.Keyed:
    return {"key": ending.key} if ending.key else {}


def traffic(node: Parts) -> tuple[float, ...]:
    """The counters whose rates the API tells."""
    totals = node.frontend.counters.totals
    return (totals.started, totals.failed, totals.retried, *node.frontend.bytes_moved())


def rates(node: Parts) -> schemas.Rates:
    total, failed, retried, received, delivered = node.rates.per_second(trio.current_time(), traffic(node))
    return {
        "connections_per_s": round(total, 3),
        "failed_per_s": round(failed, 3),
        "retried_per_s": round(retried, 3),
        "received_per_s": round(received),
        "delivered_per_s": round(delivered),
        "bytes_per_s": round(received + delivered),
    }


def metrics(node: Parts) -> Snapshot:
    """The gauges and counters at a scrape."""
    frontend, links = node.frontend, node.host.links
    received, delivered = frontend.bytes_moved()
    utc_now = node.clock.utc_now()
    records = [record for record in node.ledger.records() if record.peer_id != node.peer_id]
    states = Counter(
        _state_of(node, record, utc_now, links.get(record.peer_id)) for record in (node.own_record(0), *records)
    )
    known = (node.peer_id, *links)
    return Snapshot(
        received=received,
        delivered=delivered,
        open=len(frontend.active),
        waiting=len(frontend.dispatcher.waiting),
        in_flight={peer_id: node.selector.own_in_flight(peer_id) for peer_id in known},
        serving=node.backends.in_flight,
        backends=node.backends.services(),
        peers={state: states[state] for state in get_args(schemas.State)},
        ledger_records=len(node.ledger),
        total_vram=node.facts.gpu.total_vram,
        available_vram=node.facts.gpu.available_vram,
        draining=node.facts.draining,
        key_requests=node.client_keys.requests_by_name(),
        key_refusals=node.client_keys.refused,
    )


def connections(node: Parts, most: int) -> schemas.OpenConnections:
    frontend = node.frontend
    now = trio.current_time()
    oldest = nsmallest(most, frontend.active, key=lambda client: client.flow)
    return {
        "total": len(frontend.active),
        "connections": [
            {
                "id": client.flow.connection,
                "request": client.flow.request,
                "service": client.route.service,
                "model": visible(client.route.model),
                "client": client.client_name,
                "peer": client.peer_id,
                "name": node.name_of(client.peer_id),
                "since_s": round(now - client.started_at, 3),
                "received": client.socket.received,
                "delivered": client.socket.delivered,
                "attempts": client.attempts_made,
                "state": STATES[client.state],
            }
            for client in oldest
        ],
    }


def _listener(node: Parts, service: str, at: Place) -> schemas.Listener:
    port = node.frontend.port_at(at)
    names = list(node.certificate.names) if port.scheme == "https" else []
    return {"service": service, "address": str(at), "scheme": port.scheme, "names": names, "asks_key": port.asks_key}


def owner_at(node: Parts) -> list[str]:
    """The other nodes that say that they have the owner's key."""
    return sorted(
        f"{record.name} ({record.peer_id})"
        for record in node.ledger.records()
        if record.owner and not record.left and record.peer_id != node.peer_id
    )


def named_rows(node: Parts, peers: Iterable[str]) -> list[schemas.NamedPeer]:
    return [{"peer_id": peer, "name": node.name_of(peer)} for peer in sorted(peers)]


def rotated(node: Parts, not_told: list[str], out: frozenset[str]) -> schemas.Rotated:
    def named(peers: Iterable[str]) -> list[str]:
        return sorted(node.name_of(peer) or peer for peer in peers)

    left_out = node.rotation.left_out()
    return {
        "network": node.token.network_id,
        "rotations": node.token.rotations,
        "former_until": _former_until(node),
        "told": named(node.host.links.keys() - {*not_told, *left_out}),
        "not_told": named(not_told),
        "left_out": named(left_out),
        "excepted": named_rows(node, out.union(left_out)),
        "open_invites": sum(invite.state(node.newcomers.now_ms) == "open" for invite in node.newcomers.invites),
    }


def _services(node: Parts, online: Iterable[NodeData]) -> dict[str, schemas.ServiceNodes]:
    found: dict[str, schemas.ServiceNodes] = {service: {"nodes": 0, "up": 0} for service in node.facts.listens}
    own = node.own_record(node.backends.in_flight)
    for record in (own, *(record for record in online if record.peer_id != own.peer_id)):
        link = node.host.links.get(record.peer_id)
        takes = not record.draining and not (link and link.suspect)
        for service, healthy in record.services.items():
            count = found.setdefault(service, {"nodes": 0, "up": 0})
            count["nodes"] += 1
            count["up"] += healthy and takes
    return found


def _former_until(node: Parts) -> str | None:
    end = node.rotation.keyring.grace_end(node.clock.utc_now())
    return None if end is None else node.clock.by_the_wall(end).isoformat(timespec="seconds")


def draining(node: Parts) -> schemas.Draining:
    entries = [peer_id for peer_id in node.backends.load.by_entry if peer_id not in ("", OUTSIDE)]
    return {
        "draining": node.facts.draining,
        "in_flight": node.backends.in_flight,
        "clients": node.frontend.busy,
        "entries": sorted(node.name_of(peer_id) for peer_id in entries),
        "idle": min(idle.at_backends(node.backends), node.backends.in_flight),
        "idle_clients": min(idle.of_clients(node.frontend.active), node.frontend.busy),
    }


def in_flight(node: Parts, record: NodeData) -> int:
    """The load that the peer's link told last, which is newer than the peer's record."""
    told = None if record.peer_id == node.peer_id else node.selector.in_flight(record.peer_id)
    return record.in_flight if told is None else told


def _peer_row(node: Parts, record: NodeData) -> schemas.Peer:
    is_self = record.peer_id == node.peer_id
    now = node.clock.utc_now()
    link = node.host.links.get(record.peer_id)
    state = _state_of(node, record, now, link)
    return {
        "peer_id": record.peer_id,
        "name": record.name,
        "self": is_self,
        "online": record.is_online_at(now) and (is_self or link is not None),
        "state": state,
        "last_seen": node.clock.by_the_wall(record.last_seen).isoformat(),
        "last_seen_age_s": round((now - record.last_seen).total_seconds(), 3),
        "available_vram": record.available_vram,
        "total_vram": record.total_vram,
        "gpus": [_gpu(gpu) for gpu in record.gpus],
        "in_flight": in_flight(node, record),
        "in_flight_here": node.selector.own_in_flight(record.peer_id),
        "served": node.selector.total_served(record.peer_id),
        "capacity": record.capacity,
        "services": record.services,
        "draining": record.draining,
        "path": _path_to(node, record.peer_id),
        "via": "" if link is None else link.via_peer_id,
        "rtt_ms": _rtt_ms(link),
        "version": record.version,
        "addresses": list(record.addresses),
    }


def _path_to(node: Parts, peer_id: str) -> schemas.Path:
    link = node.host.links.get(peer_id)
    return "self" if peer_id == node.peer_id else link.path if link is not None else "none"


def _rtt_ms(link: Link | None) -> float | None:
    return round(link.rtt_s * 1000, 3) if link is not None and link.rtt_s is not None else None


def _gpu(gpu: Gpu) -> schemas.PeerGpu:
    return {"name": gpu.name, "total_vram": gpu.total_vram, "available_vram": gpu.available_vram}


def _relaying(node: Parts) -> schemas.Relaying | None:
    relay = node.host.relay
    if not node.connectivity.relays:
        return None
    return {"places": len(relay.reserved), "circuits": relay.circuits, "bytes": relay.bytes_relayed}


def state_of(node: Parts, record: NodeData) -> schemas.State:
    """The node's state now, as people are told it."""
    return _state_of(node, record, node.clock.utc_now(), node.host.links.get(record.peer_id))


def _state_of(node: Parts, record: NodeData, now: datetime, link: Link | None) -> schemas.State:
    """The peer's state: of the reasons that keep connections from the peer, the worst one."""
    if record.peer_id in node.bans:
        return "banned"
    if record.left:
        return "left"
    if not record.is_online_at(now):
        return "offline"
    if record.peer_id != node.peer_id:
        if link is None:
            return "unreachable"
        if link.suspect:
            return "suspect"
    if record.draining:
        return "draining"
    if not record.services:
        return "no backend"
    return "online" if any(record.services.values()) else "backend down"


def _warnings(node: Parts) -> list[str]:
    warnings = [str(IdentityCopied())] if node.host.is_copied else []
    warnings += [f"{node.name_of(peer) or peer} {COPIED}" for peer in node.copied()[:5]]
    warnings += [
        f"backend {b.endpoint.address} ({b.endpoint.service}) does not answer: {b.why}"
        for b in node.backends.all
        if b.healthy is False
    ]
    if count := len(node.newcomers.waiting):
        names = ", ".join(waiting.name or peer_id for peer_id, waiting in list(node.newcomers.waiting.items())[:5])
        warnings.append(
            f"{count} newcomer{'s wait' if count > 1 else ' waits'} for somebody's yes: {names} (federation approve)"
        )
    expected = [
        r for r in node.ledger.online(node.clock.utc_now()) if r.peer_id != node.peer_id and r.peer_id not in node.bans
    ]
    unreachable = [r.name or r.peer_id for r in expected if r.peer_id not in node.host.links]
    if unreachable:
        warnings.append(f"known but not reachable from here: {', '.join(unreachable[:5])}")
    if namesakes := node.roster.namesakes():
        named = f"{len(namesakes)} nodes are named {node.facts.settings.target!r}, as --target says, and all get connections"
        warnings.append(f"{named}; give the id of one: {', '.join(namesakes[:5])}")
    if node.host.token_retired_at is not None:
        warnings.append(str(TokenRetired()) if node.token.owner else ROTATED_BY_OTHERS)
    if without := [node.name_of(peer) or peer for peer in node.rotation.left_out()]:
        warnings.append(f"still here with the former token, until {_former_until(node)}: {', '.join(without[:5])}")
    if refused := node.host.rejected["old token"]:
        warnings.append(f"{refused} connections from nodes with the token from before the rotation were refused")
    if refused := node.host.rejected["other token"]:
        warnings.append(f"{refused} connections from nodes with another token were refused")
    return warnings
