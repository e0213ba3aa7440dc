"""netcheck in words."""

from __future__ import annotations

from typing import Any

import pytest

from federation.cli.render.netcheck import netcheck

QUIET: dict[str, Any] = {
    "nat": "unknown", "seen": [], "dialable": None, "relays": [], "addresses": [], "ipv6": [], "ipv6_links": 0, "links": 0,
    "mapping": {"asked": False, "way": "", "port": None, "problem": ""},
}  # fmt: skip


def seen(*ports: int | None) -> list[dict[str, Any]]:
    return [{"peer_id": f"p{n}", "name": f"n{n}", "host": "198.51.100.1", "port": port} for n, port in enumerate(ports)]


def lines(**given: Any) -> dict[str, str]:
    text = netcheck({**QUIET, **given}, color=False)
    return {line[:10].strip(): line[11:] for line in text.splitlines()}


def test_a_node_that_knows_nothing_yet() -> None:
    assert lines() == {
        "nat": "not known: no member outside this machine's networks was asked",
        "reachable": "not known: no member outside this machine's networks has tried",
        "router": "not asked for a forwarding (join with --port-mapping)",
        "relays": "none: no member that this node dialled relays",
        "ipv6": "no address of the world's on this machine; 0 of 0 links use it",
    }


@pytest.mark.parametrize(
    ("kind", "ports", "said"),
    [
        ("none", (4484,), "none: members outside see 198.51.100.1"),
        ("easy", (61000, 61000), "easy: all 2 members outside see 198.51.100.1:61000"),
        ("hard", (61000, 61001), "hard: each member outside sees another port (198.51.100.1:61000, 198.51.100.1:61001)"),
        ("some", (None,), "there is one: a member outside sees 198.51.100.1;"),
        ("some", (4484,), "there is one: a member outside sees 198.51.100.1:4484;"),
    ],
)
def test_kinds_of_nat(kind: str, ports: tuple[int | None, ...], said: str) -> None:
    assert lines(nat=kind, seen=seen(*ports))["nat"].startswith(said)


def test_ways_in() -> None:
    relays = [
        {"peer_id": "r", "name": "athens\x1b", "rtt_ms": 12.34, "used": True},
        {"peer_id": "s", "name": "b", "rtt_ms": None},
    ]
    said = lines(dialable=False, relays=relays, ipv6=["2001:db8::1"], ipv6_links=1, links=3)
    assert said["reachable"].startswith("no: members outside come through athens")
    assert "12.3 ms (in use), b" in said["relays"]
    assert "\x1b" not in said["relays"]
    assert said["ipv6"] == "2001:db8::1; 1 of 3 links use it"
    assert lines(dialable=False)["reachable"] == "no, and no relay has a place for it"
    assert lines(dialable=True)["reachable"] == "yes: members outside dial this node"


def test_the_router() -> None:
    asked = {"asked": True, "way": "UPnP", "port": 4485, "problem": ""}
    assert lines(mapping=asked)["router"] == "forwards its port 4485 to this node, asked by UPnP"
    refused = {"asked": True, "way": "", "port": None, "problem": "UPnP: no router answers"}
    assert lines(mapping=refused)["router"] == "forwards no port: UPnP: no router answers"
