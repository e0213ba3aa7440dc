"""The answer of netcheck as text: nothing is printed here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from federation.cli.render.text import paint, plain

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_SHOWN = 4


def netcheck(answer: Mapping[str, Any], *, color: bool) -> str:
    """A line for each of NAT, reachability, router, relays and IPv6."""
    lines = (
        ("nat", _nat(answer)),
        ("reachable", _reachable(answer)),
        ("router", _router(answer.get("mapping") or {})),
        ("relays", _relays(answer)),
        ("ipv6", _ipv6(answer)),
    )
    return "\n".join(f"{paint(f'{name:<10}', 'bold', color)} {text}" for name, text in lines)


def _nat(answer: Mapping[str, Any]) -> str:
    seen = answer.get("seen") or []
    hosts = list(dict.fromkeys(plain(one.get("host")) for one in seen))[:MAX_SHOWN]
    shown = [one for one in seen if one.get("port")]
    places = list(dict.fromkeys(_place(one) for one in shown))[:MAX_SHOWN]
    match answer.get("nat"):
        case "none":
            return f"none: members outside see {', '.join(hosts)}, an address of this machine"
        case "easy":
            return f"easy: all {len(shown)} members outside see {places[0]}, so holes can be punched"
        case "hard":
            return f"hard: each member outside sees another port ({', '.join(places)}), so a relay or a forwarding is needed"
        case "some":
            return f"there is one: a member outside sees {', '.join(places or hosts)}; it takes two to tell its kind"
    return "not known: no member outside this machine's networks was asked"


def _place(one: Mapping[str, Any]) -> str:
    host = plain(one.get("host"))
    return f"[{host}]:{one.get('port')}" if ":" in host else f"{host}:{one.get('port')}"


def _reachable(answer: Mapping[str, Any]) -> str:
    dialable, used = answer.get("dialable"), [plain(r.get("name")) for r in answer.get("relays") or [] if r.get("used")]
    if dialable:
        return "yes: members outside dial this node"
    if dialable is None:
        return "not known: no member outside this machine's networks has tried"
    return f"no: members outside come through {', '.join(used)}" if used else "no, and no relay has a place for it"


def _router(mapping: Mapping[str, Any]) -> str:
    if not mapping.get("asked"):
        return "not asked for a forwarding (join with --port-mapping)"
    if mapping.get("port"):
        return f"forwards its port {mapping['port']} to this node, asked by {plain(mapping.get('way'))}"
    return f"forwards no port: {plain(mapping.get('problem'))}"


def _relays(answer: Mapping[str, Any]) -> str:
    relays = answer.get("relays") or []
    if not relays:
        return "none: no member that this node dialled relays"
    shown = [
        plain(relay.get("name"))
        + ("" if relay.get("rtt_ms") is None else f" {relay['rtt_ms']:.1f} ms")
        + (" (in use)" if relay.get("used") else "")
        for relay in relays[:MAX_SHOWN]
    ]
    more = len(relays) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


def _ipv6(answer: Mapping[str, Any]) -> str:
    addresses, links = [plain(address) for address in answer.get("ipv6") or []], answer.get("links") or 0
    own = ", ".join(addresses[:MAX_SHOWN]) or "no address of the world's on this machine"
    return f"{own}; {answer.get('ipv6_links') or 0} of {links} links use it"
