"""The command line's answers as text: nothing is printed here.

Names and versions come from other machines: whatever could move a terminal's cursor is replaced before it is shown.
Colours mean something: green is usable, yellow is there but takes nothing new, red is gone.
"""

from __future__ import annotations

from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from federation.units import visible

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from federation.mesh.invite_codes import InviteCode
    from federation.mesh.tokens import Token

MAX_SHOWN = 4  # warnings, so that `status` fits on one screen
MAX_TEXT = 64
WIDE = 110  # columns from which `peers` shows all that it has
BAR = 8

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_COLORS = {"green": 32, "yellow": 33, "red": 31, "bold": 1, "dim": 2}
_NUMBERS = ("VRAM FREE", "HERE", "BUSY", "SERVED", "RTT", "SEEN")
_STATES = {
    "online": "green",
    "no backend": "",
    "draining": "yellow",
    "backend down": "yellow",
    "suspect": "yellow",
    "unreachable": "red",
    "offline": "red",
    "left": "red",
    "banned": "red",
}


def status(answer: Mapping[str, Any], *, color: bool) -> str:
    """The running node on one screen."""
    node, network, connections = (answer.get(part) or {} for part in ("node", "network", "connections"))
    title = f"{plain(node.get('name'))}  {plain(node.get('peer_id'))}"
    title += f"  federation {plain(node.get('version'))}, up {duration(node.get('uptime_s', 0))}"
    online, known = network.get("peers_online", 0), network.get("peers_known", 0)
    rows = [
        ("network", f"{_network(network)}, {online} of {known} nodes online{_paths(network)}"),
        ("services", _network_services(network, color=color)),
        ("clients", ", ".join(f"{plain(at)} ({plain(service)})" for service, at in _listeners(node)) or "none"),
        ("offers", _offers(node, color=color)),
        ("gpu", _gpu(node.get("gpu") or {})),
        ("p2p", f"{plain(node.get('p2p'))}, announced as {_addresses(node)}{_reach(node)}"),
        ("control", f"{plain(node.get('control'))}, state in {plain(node.get('state_dir'), 200)}"),
        (
            "traffic",
            f"{connections.get('now', 0)} connections now, {connections.get('total', 0)} in all, "
            f"{connections.get('failed', 0)} failed, {connections.get('retried', 0)} retried; "
            f"{node.get('in_flight', 0)} at this node's backends",
        ),
    ]
    if rates := answer.get("rates"):
        up, down = size(rates.get("received_per_s", 0)), size(rates.get("delivered_per_s", 0))
        rows.append(("rates", f"{rates.get('connections_per_s', 0):.1f} connections/s, {up}/s up, {down}/s down"))
    lines = [paint(title, "bold", color), *(f"{label:<8} {text}" for label, text in rows if text)]
    if node.get("draining"):
        lines.append(paint("draining: this node takes no new connections", "yellow", color))
    warnings = answer.get("warnings") or []
    lines += [paint(f"warning: {plain(warning, 150)}", "yellow", color) for warning in warnings[:MAX_SHOWN]]
    if len(warnings) > MAX_SHOWN:
        lines.append(paint(f"and {len(warnings) - MAX_SHOWN} more warnings", "yellow", color))
    return "\n".join(lines)


def peers(answer: Mapping[str, Any], *, color: bool, width: int) -> str:
    """A line a node: this one first, with a star, then those online, by name."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    rows = sorted(answer["peers"], key=lambda p: (not p.get("self"), not p.get("online"), str(p.get("name"))))
    columns = _peer_columns(rows, wide=width >= WIDE)
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0))
    for heading in columns:
        table.add_column(
            heading,
            justify="right" if heading in _NUMBERS else "left",
            min_width=max(map(len, _STATES)) if heading == "STATE" else None,  # the last thing to be cut
            no_wrap=True,
            overflow="ellipsis",
        )
    for peer in rows:
        state = plain(peer.get("state"))
        # As Text, because rich reads [brackets] in a plain string as markup.
        cells = {heading: Text(cell(peer)) for heading, cell in columns.items()}
        cells["STATE"].stylize(_STATES.get(state, ""))
        table.add_row(*cells.values())
    console = Console(width=width, force_terminal=color, no_color=not color, color_system="standard" if color else None)
    with console.capture() as capture:
        console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def _peer_columns(rows: Sequence[Mapping[str, Any]], *, wide: bool) -> dict[str, Callable[[Mapping[str, Any]], str]]:
    """Heading -> cell. Values that are alike for all peers show only where there is room."""
    columns: dict[str, Callable[[Mapping[str, Any]], str]] = {
        "  NAME": lambda peer: ("* " if peer.get("self") else "  ") + plain(peer.get("name")),
        "PEER": lambda peer: plain(peer.get("peer_id"))[-6:],
        "STATE": lambda peer: plain(peer.get("state")),
        "SERVICES": _services,
    }
    if wide and any(peer.get("total_vram") for peer in rows):
        columns["VRAM USED"] = _vram_bar
    columns["VRAM FREE"] = _vram
    if wide:
        columns["HERE"] = lambda peer: str(peer.get("in_flight_here", 0))
    columns["BUSY"] = lambda peer: str(peer.get("in_flight", 0))
    columns["SERVED"] = lambda peer: str(peer.get("served", 0))
    if wide or any(peer.get("path") not in ("self", "direct", "none", None) for peer in rows):
        columns["PATH"] = lambda peer: "" if peer.get("self") else plain(peer.get("path"))
    columns["RTT"] = lambda peer: "" if peer.get("rtt_ms") is None else f"{peer['rtt_ms']:.1f} ms"
    if wide or len({peer.get("version") for peer in rows}) > 1:
        columns["VERSION"] = lambda peer: plain(peer.get("version"))
    columns["SEEN"] = lambda peer: duration(peer.get("last_seen_age_s", 0))
    return columns


def token(token: Token) -> str:
    """A token's contents, without its secret."""
    rows = [("network", token.network_id), ("name", token.name or "none")]
    rows.append(("owner", token.owner.hex() or "none; it cannot be rotated"))
    addresses = list(token.addresses) or ["none; the next machine needs --peer, or to be on the same LAN"]
    rows += [("address", plain(address, 256)) for address in addresses]
    return "\n".join(f"{label:<8} {text}" for label, text in rows)


def invite_code(code: InviteCode) -> str:
    """An invite's contents, without its secret."""
    expires = datetime.fromtimestamp(code.expires_at, timezone.utc).isoformat(timespec="seconds")
    rows = [("invite", code.short), ("expires", f"{expires}, by the clock of the node that made it")]
    rows += [("address", str(address)) for address in code.addresses]
    return "\n".join(f"{label:<8} {text}" for label, text in rows)


def ready(answer: Mapping[str, Any], next_step: str, *, token_file: str = "") -> str:
    """The text for a person once the node runs; `token_file`: the place of a new network's token."""
    node = answer["node"]
    lines = [f"ready: {plain(node['name'])} ({plain(node['peer_id'])})"]
    lines += [f"  clients  {plain(at)} (service {plain(service)})" for service, at in _listeners(node)]
    lines.append(f"  offers   {_offers(node, color=False)}")
    network = _network(answer["network"])
    lines.append(
        f"  network  {network}"
        + (f", new; its token is saved in {token_file}, its owner key beside it" if token_file else "")
    )
    return "\n".join([*lines, next_step])


def _listeners(node: Mapping[str, Any]) -> list[tuple[Any, Any]]:
    """Service and address of the clients' ports. A daemon of an older version tells one of each service."""
    every = [
        (at.get("service"), f"{'https://' if at.get('scheme') == 'https' else ''}{at.get('address')}")
        for at in node.get("listeners") or ()
    ]
    return every or list(_items(node, "listens"))


def next_machine(token_text: str) -> str:
    """Tell a person how the next machine joins. A person pastes the token: no shell's history or process list shows it."""
    return (
        "  next     on another machine (add --backend HOST:PORT to offer its server):\n"
        "federation join --token-file -\n"
        "           and when it asks for the token, paste this line:\n"
        f"{token_text}"
    )


def next_invite(options: str) -> str:
    """How the next machine joins, where the token is known already, or would go into a service's log."""
    return f"  next     `federation invite{options}` prints the token; on another machine: federation join --token-file -"


def plain(value: object, limit: int = MAX_TEXT) -> str:
    """One line without control characters, bounded."""
    text = "" if value is None else str(value)
    text = visible(text[: limit + 1])
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def paint(text: str, style: str, color: bool) -> str:
    return f"\x1b[{_COLORS[style]}m{text}\x1b[0m" if color and style else text


def size(n: float) -> str:
    power = 0
    while n >= 1024 and power < len(_UNITS) - 1:
        n, power = n / 1024, power + 1
    return f"{n:.1f} {_UNITS[power]}" if power else f"{n:.0f} B"


def duration(seconds: float) -> str:
    """Two units at most: 4 s, 12 min, 3 h 5 min, 2 d 4 h."""
    whole = max(int(seconds), 0)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min"
    if whole < 86400:
        return f"{whole // 3600} h {whole // 60 % 60} min"
    return f"{whole // 86400} d {whole // 3600 % 24} h"


def _items(node: Mapping[str, Any], key: str) -> list[tuple[str, Any]]:
    return sorted((node.get(key) or {}).items())


def _network(network: Mapping[str, Any]) -> str:
    name, short = plain(network.get("name")), plain(network.get("id"))
    return f"{name} ({short})" if name else short


def _paths(network: Mapping[str, Any]) -> str:
    """The number of links of each path (direct, punched, relayed), or nothing if all are direct."""
    paths = network.get("paths") or {}
    if not paths.keys() - {"direct"}:
        return ""
    return "; links: " + ", ".join(f"{count} {plain(path)}" for path, count in sorted(paths.items()))


def _offers(node: Mapping[str, Any], *, color: bool) -> str:
    services = _items(node, "services")
    if not services:
        return "nothing, it is an entry only (--backend HOST:PORT offers a server)"
    return ", ".join(
        f"{plain(service)} {paint('up', 'green', color) if healthy else paint('down', 'yellow', color)}"
        for service, healthy in services
    )


def _network_services(network: Mapping[str, Any], *, color: bool) -> str:
    """Where this node can send clients: default up on 2 of 3 nodes, embed down, chat offered by nobody."""
    found = _items(network, "services")
    texts = []
    for service, count in found[:MAX_SHOWN]:
        if count["up"]:
            state = f"{paint('up', 'green', color)} on {count['up']} of {count['nodes']} node{'s' * (count['nodes'] != 1)}"
        else:
            state = paint("down" if count["nodes"] else "offered by nobody", "yellow", color)
        texts.append(f"{plain(service)} {state}")
    more = [f"and {len(found) - MAX_SHOWN} more"] if len(found) > MAX_SHOWN else []
    return ", ".join([*texts, *more])


def _services(peer: Mapping[str, Any]) -> str:
    return ",".join(plain(service) + ("" if healthy else "!") for service, healthy in _items(peer, "services"))


def _gpu(gpu: Mapping[str, Any]) -> str:
    note = plain(gpu.get("note"), 120)
    if not gpu.get("total_vram") and not gpu.get("available_vram"):
        return f"none ({note})" if note else "none"
    text = f"{size(gpu.get('available_vram', 0))} of {size(gpu.get('total_vram', 0))} free ({plain(gpu.get('source'))})"
    return f"{text}; {note}" if note else text


def _vram(peer: Mapping[str, Any]) -> str:
    """Free of all, with the unit once: 18.0/24.0 GiB."""
    free, total = size(peer.get("available_vram", 0)), size(peer.get("total_vram", 0))
    if not peer.get("total_vram"):
        return free if peer.get("available_vram") else ""
    unit = total.split()[1]
    return f"{free.removesuffix(f' {unit}')}/{total}"


def _vram_bar(peer: Mapping[str, Any]) -> str:
    """A bar of the VRAM in use: ####...."""
    total = peer.get("total_vram") or 0
    if not total:
        return ""
    used: float = min(max(1 - peer.get("available_vram", 0) / total, 0.0), 1.0)
    filled: int = round(used * BAR)
    return "#" * filled + "." * (BAR - filled)


def _reach(node: Mapping[str, Any]) -> str:
    """Reachability, if unusual: others need a relay to get here, or this node relays for them."""
    via, relay = node.get("via") or (), node.get("relay") or {}
    if via:
        return f", reached through {len(via)} relay{'s' if len(via) > 1 else ''}"
    if node.get("dialable") is False:
        return ", others cannot dial it and no member relays"
    return f", relays for {relay['places']}" if relay.get("places") else ""


def _addresses(node: Mapping[str, Any]) -> str:
    """Without the peer id that each ends with: the title has it."""
    addresses = [plain(str(address).partition("/p2p/")[0]) for address in node.get("addresses") or ()]
    shown = ", ".join(addresses[:2]) or "nothing"
    return shown if len(addresses) <= 2 else f"{shown} and {len(addresses) - 2} more"
