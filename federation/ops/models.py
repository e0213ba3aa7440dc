"""The network's models and where one more would fit, as plain data for the control API. Reads all parts, changes none."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING, TypedDict, cast

import trio

from federation.errors import NotFound
from federation.forward.http.paths import ollama_name
from federation.mesh.bans import find_peer
from federation.mesh.models import is_called, unpack
from federation.ops import placement, schemas, status

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Literal

    from federation.mesh.models import Catalog, Model
    from federation.mesh.records import NodeData
    from federation.metrics import OfModel
    from federation.ops.parts import Parts

# What the states are of nodes that are there: their models are shown.
_THERE = ("online", "draining", "backend down", "suspect", "no backend")


class _OfRequests(TypedDict):
    requests: int
    first_token_s: float | None
    tokens_per_s: float | None


def models(node: Parts) -> schemas.Models:
    found: dict[str, list[schemas.ModelPlace]] = {}
    incomplete, silent = [], []
    for record in _there(node):
        catalogs = unpack(record.models)
        if not all(listed.is_listed for listed in catalogs.values()):
            incomplete.append(record.peer_id)
        if record.services and not catalogs:
            silent.append(record.peer_id)
        for service, listed in catalogs.items():
            for model in listed.models:
                found.setdefault(model.name, []).append(
                    {
                        "peer_id": record.peer_id,
                        "name": record.name,
                        "state": status.state_of(node, record),
                        "service": service,
                        "kind": listed.kind,
                        "warm": model.warm,
                        "size": model.size,
                        "slots": model.slots,
                        "in_flight": status.in_flight(node, record),
                    }
                )
    asked = _Asked(node.metrics.models)
    rows: list[schemas.Model] = [
        {
            "name": name,
            "size": max(place["size"] for place in places),
            **_of_requests(asked(name, is_ollama=any(place["kind"] == "ollama" for place in places))),
            "places": sorted(places, key=lambda place: (not place["warm"], place["in_flight"], place["name"])),
        }
        for name, places in sorted(found.items())
    ]
    return {
        "models": rows,
        "incomplete": status.named_rows(node, incomplete),
        "silent": status.named_rows(node, silent),
    }


class _Asked:
    """What this entry's clients asked for, by the names that they wrote."""

    def __init__(self, counts: Mapping[str, OfModel]) -> None:
        self._exactly = counts
        self._at_ollama: dict[str, list[OfModel]] = {}
        for name, of_model in counts.items():
            self._at_ollama.setdefault(ollama_name(name), []).append(of_model)

    def __call__(self, name: str, *, is_ollama: bool) -> Sequence[OfModel]:
        if is_ollama:
            return self._at_ollama.get(ollama_name(name), ())
        return (self._exactly[name],) if name in self._exactly else ()


def _of_requests(asked: Sequence[OfModel]) -> _OfRequests:
    newest = [seconds for of_model in asked for seconds in of_model.newest]
    paces = [pace for of_model in asked for pace in of_model.paces]
    return {
        "requests": sum(of_model.requests.total() for of_model in asked),
        "first_token_s": round(median(newest), 3) if newest else None,
        "tokens_per_s": round(median(paces), 1) if paces else None,
    }


def place(node: Parts, needed_vram: int, among: Sequence[str], model: str | None) -> schemas.Placement:
    """Where to run something that needs so many bytes of VRAM, or that model. Raises NotFound or UsageError.

    Without `needed_vram` a model needs its own size, where a node tells it. `among`: ids or names of the nodes to look at.
    """
    records = {record.peer_id: record for record in (_own(node), *_others(node)) if not record.left}
    if among:
        names = {peer_id: record.name for peer_id, record in records.items()}
        wanted = {find_peer(text, names, among="the nodes of this network") for text in among}
        if unknown := wanted - records.keys():
            raise NotFound(f"no node {min(unknown)} in this network")
        records = {peer_id: record for peer_id, record in records.items() if peer_id in wanted}
    catalogs = {peer_id: unpack(record.models) for peer_id, record in records.items()} if model is not None else {}
    sizes = [row.size for listed in catalogs.values() for row in _called(listed, model or "")]
    if model is not None and not sizes and not needed_vram:
        raise NotFound(f"no node here tells of a model {model!r}: say how much VRAM it needs")
    needed = needed_vram or max(sizes, default=0)
    now = trio.current_time()
    places = []
    for peer_id, record in records.items():
        last_used = node.selector.last_used(peer_id)
        places.append(
            placement.Place(
                peer_id, status.state_of(node, record), record.available_vram, record.total_vram,
                status.in_flight(node, record), record.capacity, round(now - last_used, 3) if last_used >= 0 else None,
                placement.UNKNOWN if model is None else _has(catalogs[peer_id], model),
            )
        )  # fmt: skip
    nodes = [_row(ranked, records[ranked.place.peer_id].name) for ranked in placement.rank(places, needed)]
    return {"needed_vram": needed, "best": next((row for row in nodes if row["fits"]), None), "nodes": nodes}


def _has(catalogs: dict[str, Catalog], model: str) -> str:
    rows = _called(catalogs, model)
    if rows:
        return placement.WARM if any(row.warm for row in rows) else placement.COLD
    is_known = catalogs and all(listed.is_whole and not listed.may_have(model) for listed in catalogs.values())
    return placement.NO if is_known else placement.UNKNOWN


def _called(catalogs: dict[str, Catalog], asked: str) -> list[Model]:
    return [row for listed in catalogs.values() for row in listed.models if is_called(row.name, asked, listed.kind)]


def _row(ranked: placement.Ranked, name: str) -> schemas.PlacementNode:
    at = ranked.place
    return {
        "peer_id": at.peer_id,
        "name": name,
        "state": at.state,
        "fits": ranked.fits,
        "why": ranked.why,
        "model": cast('Literal["warm", "cold", "no", "unknown"]', at.model),
        "available_vram": at.available_vram,
        "total_vram": at.total_vram,
        "in_flight": at.in_flight,
        "last_used_age_s": at.idle_s,
    }


def _there(node: Parts) -> Iterable[NodeData]:
    yield from (record for record in (_own(node), *_others(node)) if status.state_of(node, record) in _THERE)


def _own(node: Parts) -> NodeData:
    return node.own_record(node.backends.in_flight)  # not the ledger's: that is as announced, or not there yet


def _others(node: Parts) -> list[NodeData]:
    others = [record for record in node.ledger.records() if record.peer_id != node.peer_id]
    return sorted(others, key=lambda record: (record.name, record.peer_id))
