"""A home router that forwards ports by UPnP, a real one (miniupnpd), and a node behind it that others shall dial.

outside     two members on the internet
home        NAT and miniupnpd
box         behind it, with --port-mapping
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from harness import Server, wait_until
from netfleet import P2P_PORT, NetFleet, NetServer
from topology import Topology, why_not

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from netfleet import NetDaemon
    from topology import Namespace

MINIUPNPD = shutil.which("miniupnpd") or ""
pytestmark = pytest.mark.skipif(
    bool(why_not()) or not MINIUPNPD, reason=why_not() or "no miniupnpd (Debian's package miniupnpd-nftables)"
)
RULES = """\
table inet filter {
    chain forward {
        type filter hook forward priority 0; policy accept
        jump miniupnpd
    }
    chain miniupnpd {
    }
    chain prerouting {
        type nat hook prerouting priority -100
        jump prerouting_miniupnpd
    }
    chain prerouting_miniupnpd {
    }
    chain postrouting_miniupnpd {
    }
}
"""
CONFIG = """\
ext_ifname=wan
ext_ip=11.1.2.3
listening_ip=lan
http_port=5555
enable_natpmp=no
enable_upnp=yes
secure_mode=yes
uuid=00000000-0000-0000-0000-000000000001
allow 1024-65535 0.0.0.0/0 1024-65535
"""


@pytest.fixture
def net(tmp_path: Path) -> Iterator[tuple[Topology, NetFleet]]:
    with Topology() as topology:
        fleet = NetFleet(tmp_path)
        yield topology, fleet
        wrong = fleet.close()
        assert not wrong, "\n".join(wrong)


def router(fleet: NetFleet, home: Namespace, inside: Namespace) -> Server:
    home.run("nft", "-f", "-", given=RULES)
    home.run("nft", "insert", "rule", "ip", "filter", "through", "ct", "status", "dnat", "accept")
    directory = fleet.directory / "router"  # which NetServer makes
    config, leases, pid = (directory / name for name in ("conf", "leases", "pid"))
    made = NetServer(
        "router", directory, [*home.prefix, MINIUPNPD, "-d", "-f", str(config), "-P", str(pid)], fleet.environment
    )
    made.namespace, made.address = home, (f"{inside.address.rpartition('.')[0]}.1", 5555)
    config.write_text(f"{CONFIG}lease_file={leases}\n")
    fleet.processes.append(made)
    made.start()
    return made


def two_outside(topology: Topology, fleet: NetFleet) -> list[NetDaemon]:
    first = fleet.node("outside0", topology.public("outside0"))
    return [first, fleet.node("outside1", topology.public("outside1"), peer=first)]


def asked(node: NetDaemon, *command: str) -> str:
    whole = [*node.namespace.prefix, sys.executable, "-m", "federation", *command, "--state-dir", str(node.state_dir)]
    done = subprocess.run(whole, capture_output=True, text=True, env=node.environment, cwd=node.directory, timeout=60)
    assert done.stdout, done.stderr
    return done.stdout


def netcheck(node: NetDaemon) -> Any:
    return node.api("netcheck")


def test_a_node_behind_a_router_with_upnp_is_dialled(net: tuple[Topology, NetFleet]) -> None:
    topology, fleet = net
    home = topology.nat("home")
    here = topology.host(home, "box")
    router(fleet, home, here)
    outside = two_outside(topology, fleet)
    box = fleet.node("box", here, "--port-mapping", peer=outside[0])
    wait_until(lambda: netcheck(box)["dialable"] is True, within=60, what="members outside dial it")
    told = netcheck(box)
    assert told["mapping"] == {"asked": True, "way": "UPnP", "port": P2P_PORT, "problem": ""}
    assert {one["host"] for one in told["seen"]} == {home.address}
    assert f"forwards its port {P2P_PORT} to this node, asked by UPnP" in asked(box, "netcheck")
    assert f"dnat ip to {here.address}:{P2P_PORT}" in home.run("nft", "list", "ruleset")
    late = fleet.node("late", topology.public("late"), peer=outside[1])
    wait_until(lambda: late.path_to("box") == "direct", within=30, what="a newcomer is linked with it")
    box.stop()
    assert "dnat" not in home.run("nft", "list", "chain", "inet", "filter", "prerouting_miniupnpd")


def test_a_node_behind_a_router_that_forwards_nothing(net: tuple[Topology, NetFleet]) -> None:
    topology, fleet = net
    here = topology.host(topology.nat("home", symmetric=True), "box")
    outside = two_outside(topology, fleet)
    box = fleet.node("box", here, "--port-mapping", peer=outside[0])
    wait_until(lambda: netcheck(box)["nat"] == "hard", within=60, what="two members say how they see it")
    wait_until(
        lambda: "UPnP: no router answers" in netcheck(box)["mapping"]["problem"], within=60, what="the router was asked"
    )
    told = netcheck(box)
    assert told["dialable"] is False
    assert {relay["name"] for relay in told["relays"] if relay["used"]} == {"outside0", "outside1"}
    assert "NAT-PMP: the router" in told["mapping"]["problem"]
    assert "forwards no port to this node" in asked(box, "doctor")
