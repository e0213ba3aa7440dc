"""Three machines, two networks that do not lead to each other: one machine is in both, and what each offers serves all."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from harness import wait_until
from netfleet import P2P_PORT, NetFleet
from topology import Topology, why_not

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not() or "-")


def test_the_machine_in_both_relays(tmp_path: Path) -> None:
    with Topology() as net:
        fleet = NetFleet(tmp_path)
        try:
            desk, rack = net.lan("desk"), net.lan("rack")
            places = {"ann": net.host(desk, "ann"), "mid": net.host(desk, "mid"), "zoe": net.host(rack, "zoe")}
            there = net.move(places["mid"], rack, interface="eth1")
            backends = {name: fleet.server("http", places[name]) for name in ("ann", "zoe")}
            mid = fleet.node("mid", places["mid"])
            ann = fleet.node("ann", places["ann"], backend=backends["ann"], peer=mid)
            zoe = fleet.node(
                "zoe", places["zoe"], "--peer", f"/ip4/{there}/tcp/{P2P_PORT}/p2p/{mid.peer_id}", backend=backends["zoe"]
            )
            wait_until(lambda: ann.path_to("zoe") == zoe.path_to("ann") == "relayed", within=30, what="mid relays")
            wait_until(lambda: {"ann", "zoe"} <= ann.offers() & zoe.offers(), within=5, what="all offers are everywhere")
            assert {ann.get().body.decode() for _ in range(6)} == {places[name].name for name in ("ann", "zoe")}
            assert {zoe.get().body.decode() for _ in range(6)} == {places[name].name for name in ("ann", "zoe")}
            assert mid.path_to("ann") == mid.path_to("zoe") == "direct"
        finally:
            wrong = fleet.close()
        assert wrong == []
