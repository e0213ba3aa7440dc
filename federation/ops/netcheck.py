"""How other machines can reach this one, for `federation netcheck`: NAT, router, relays, IPv6.

What kind of NAT is between, its outsiders tell: a member of another network than ours says which address and port it sees
for the port where this node listens (reachability.py). No machine beyond the network's members is asked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from federation.net.nat.reachability import Seen
    from federation.ops import schemas
    from federation.ops.parts import Parts

Nat = Literal["none", "easy", "hard", "some", "unknown"]


def nat_kind(seen: Iterable[Seen], own_hosts: Collection[str]) -> Nat:
    """`easy`: all outsiders see one address and port, so that a hole can be punched. `hard`: each sees another one.
    `some`: too few have told. `unknown`: nobody has."""
    told = list(seen)
    if not told:
        return "unknown"
    if all(one.host in own_hosts for one in told):
        return "none"
    places = [(one.host, one.port) for one in told if one.port is not None]
    if len(set(places)) > 1:
        return "hard"
    return "easy" if len(places) > 1 else "some"


def check(node: Parts) -> schemas.Netcheck:
    reach, mapping = node.connectivity.reachability, node.connectivity.mapping
    own_hosts = {address.host for address in node.addresses}
    links = node.host.links
    return {
        "nat": nat_kind(reach.seen.values(), own_hosts),
        "seen": [
            {"peer_id": peer, "name": node.name_of(peer), "host": one.host, "port": one.port}
            for peer, one in reach.seen.items()
        ],
        "dialable": reach.dialable,
        "mapping": {
            "asked": mapping is not None,
            "way": mapping.way if mapping is not None else "",
            "port": mapping.external if mapping is not None else None,
            "problem": mapping.problem if mapping is not None else "",
        },
        "relays": sorted(
            (_relay(node, peer) for peer in links if links[peer].path != "relayed" and node.connectivity.is_relay(peer)),
            key=lambda relay: (not relay["used"], relay["rtt_ms"] or 0.0),
        ),
        "addresses": [str(address) for address in node.addresses],
        "ipv6": [a.host for a in node.addresses if a.ip is not None and a.ip.version == 6 and a.ip.is_global],
        "ipv6_links": sum(link.remote_address is not None and ":" in link.remote_address[0] for link in links.values()),
        "links": len(links),
    }  # fmt: skip


def _relay(node: Parts, peer: str) -> schemas.Relay:
    rtt_s = node.host.links[peer].least_rtt_s
    return {
        "peer_id": peer,
        "name": node.name_of(peer),
        "rtt_ms": None if rtt_s is None else rtt_s * 1000,
        "used": peer in node.connectivity.reachability.via,
    }
