"""Models and placements as text: nothing is printed here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from federation.cli.render.connections import seconds
from federation.cli.render.text import duration, paint, plain, size
from federation.units import DEFAULT_SERVICE

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

MAX_NAME = 60
MAX_PLACES = 8


def models(answer: Mapping[str, Any], *, color: bool) -> str:
    """A line a model: where it is, a star behind those that have it in memory."""
    rows = [
        (
            plain(model.get("name"), MAX_NAME),
            _places(model.get("places") or []),
            _size(model.get("size")),
            str(sum(busy.values()) if (busy := _busy(model)) else 0),
            str(model.get("requests") or ""),
            "" if model.get("first_token_s") is None else seconds(model["first_token_s"]),
        )
        for model in answer.get("models") or []
    ]
    heads = ("MODEL", "WHERE", "SIZE", "BUSY", "REQUESTS", "FIRST TOKEN")
    lines = table(heads, rows, right=(2, 3, 4, 5), color=color) if rows else ["no models"]
    if incomplete := _named(answer.get("incomplete")):
        lines.append(paint(f"more than are shown at {incomplete}: its record is full", "yellow", color))
    if silent := _named(answer.get("silent")):
        lines.append(f"no models told by {silent}")
    return "\n".join(lines)


def placement(answer: Mapping[str, Any], *, color: bool) -> str:
    """The best node in a sentence, then a line a node."""
    best, needed = answer.get("best"), answer.get("needed_vram") or 0
    if best:
        first = paint(f"{plain(best.get('name'))}: {_free(best)}, {plain(best.get('why'))}", "green", color)
    else:
        first = paint(f"no node has room{f' for {size(needed)}' if needed else ''}", "yellow", color)
    rows = [
        (
            plain(node.get("name")),
            plain(node.get("peer_id"))[-6:],
            _vram(node),
            str(node.get("in_flight", 0)),
            "" if node.get("last_used_age_s") is None else f"{duration(node['last_used_age_s'])} ago",
            ("" if node.get("fits") else "no: ") + plain(node.get("why")),
        )
        for node in answer.get("nodes") or []
    ]
    return "\n".join([first, *table(("NODE", "PEER", "VRAM FREE", "BUSY", "USED", "WHY"), rows, right=(2, 3), color=color)])


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], *, right: Iterable[int] = (), color: bool) -> list[str]:
    """Lines with columns as wide as their widest cell; the columns in `right` hold numbers."""
    widths = [max(len(row[at]) for row in (heads, *rows)) for at in range(len(heads))]

    def line(row: Sequence[str]) -> str:
        cells = [
            text.rjust(width) if at in right else text.ljust(width)
            for at, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        return "  ".join(cells).rstrip()

    return [paint(line(heads), "bold", color), *map(line, rows)]


def _places(places: Sequence[Mapping[str, Any]]) -> str:
    texts = []
    for place in places[:MAX_PLACES]:
        text = plain(place.get("name")) + ("*" if place.get("warm") else "")
        service, state = place.get("service"), place.get("state")
        if service not in (None, DEFAULT_SERVICE):
            text += f" as {plain(service)}"
        if state not in (None, "online"):
            text += f" ({plain(state)})"
        texts.append(text)
    if len(places) > MAX_PLACES:
        texts.append(f"and {len(places) - MAX_PLACES} more")
    return ", ".join(texts)


def _busy(model: Mapping[str, Any]) -> dict[str, int]:
    """Each node once, however many of its services have the model."""
    return {str(place.get("peer_id")): int(place.get("in_flight") or 0) for place in model.get("places") or []}


def _size(value: Any) -> str:
    return size(value) if isinstance(value, int) and value > 0 else ""


def _free(node: Mapping[str, Any]) -> str:
    total = node.get("total_vram") or 0
    return f"{size(node.get('available_vram') or 0)} of {size(total)} free" if total else "tells no VRAM"


def _vram(node: Mapping[str, Any]) -> str:
    total, free = node.get("total_vram") or 0, node.get("available_vram") or 0
    return f"{free / 1024**3:.1f}/{total / 1024**3:.1f} GiB" if total else ""


def _named(peers: Sequence[Mapping[str, Any]] | None) -> str:
    names = [plain(peer.get("name")) or plain(peer.get("peer_id"))[-6:] for peer in peers or []]
    return ", ".join(names[:MAX_PLACES]) + (f" and {len(names) - MAX_PLACES} more" if len(names) > MAX_PLACES else "")
