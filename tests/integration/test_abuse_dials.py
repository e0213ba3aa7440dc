"""Members cannot use nodes as scanners or hammers: what a bad one (evil_guide.py) has honest daemons dial, counted where it
leaves their machine.

victim      on the internet, alone: no private network of its own
hidden      behind a NAT, reached through relay
mark        a stranger on the internet: one port open and silent, one that drops what comes, the others closed
10.99.0.1   a private network to which the victim's router knows the way, and the victim is in none
"""

from __future__ import annotations

import itertools
import json
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from harness import wait_until
from netfleet import NetFleet, inside
from topology import Topology, why_not

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from netfleet import NetDaemon
    from topology import Namespace

GUIDE = Path(__file__).with_name("evil_guide.py")
PRIVATE = "10.99.0.1"
OPEN, DROPS, CLOSED = 7001, 7002, 7003
DROP_RULES = f"""\
table ip t {{
    chain i {{
        type filter hook input priority 0
        tcp dport {DROPS} drop
    }}
}}
"""
STAGGER_S = 0.25
SILENCE_S = 5.0  # for how long a node waits for an answer
pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not() or "-")


@dataclass
class World:
    net: Topology
    fleet: NetFleet
    evil: Namespace
    mark: Namespace
    relay: NetDaemon
    victim: NetDaemon
    hidden: NetDaemon
    where: dict[str, str]  # asked for once: the question is a connection too

    def guide(self, whom: NetDaemon, mode: str, *addresses: str, seconds: float, relay: NetDaemon | None = None) -> Any:
        command = [*self.evil.prefix, sys.executable, str(GUIDE), str(self.fleet.token_file), self.where[whom.name], mode]
        command += [self.evil.address, *addresses, "--seconds", str(seconds)]
        command += [] if relay is None else ["--relay", self.where[relay.name]]
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 60, env=self.victim.environment)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


class Syns:
    """Counts what a namespace sends to begin connections, by (name, nft's words for where)."""

    def __init__(self, namespace: Namespace, **places: str) -> None:
        self._namespace = namespace
        rules = "".join(f"counter {name} {{\n}}\n" for name in places)
        rules += "chain out {\ntype filter hook output priority 0\n"
        rules += "".join(f"{where} tcp flags & (syn | ack) == syn counter name {name}\n" for name, where in places.items())
        namespace.run("nft", "-f", "-", given=f"table inet syns {{\n{rules}}}\n}}\n")

    def __getitem__(self, name: str) -> int:
        listed = json.loads(self._namespace.run("nft", "-j", "list", "counter", "inet", "syns", name))
        return next(int(item["counter"]["packets"]) for item in listed["nftables"] if "counter" in item)

    def end(self) -> None:
        self._namespace.run("nft", "delete", "table", "inet", "syns")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with Topology() as net, ExitStack() as stack:
        fleet = NetFleet(tmp_path_factory.mktemp("dials"))
        stack.callback(lambda: _check(fleet))
        evil, mark = net.public("evil"), net.public("mark")
        net.internet.run("ip", "address", "add", f"{PRIVATE}/32", "dev", "lo")
        mark.run("nft", "-f", "-", given=DROP_RULES)
        with inside(mark):
            stack.enter_context(socket.create_server((mark.address, OPEN), backlog=1024))
        relay = fleet.node("relay", net.public("relay"))
        victim = fleet.node("victim", net.public("victim"), peer=relay)
        hidden = fleet.node("hidden", net.host(net.nat("home"), "hidden"), peer=relay)
        names = {"relay", "victim", "hidden"}
        wait_until(lambda: all(node.sees() == names for node in (relay, victim, hidden)), within=30, what="they have met")
        wait_until(lambda: hidden.status()["node"]["via"], within=30, what="hidden has a place at a relay")
        where = {node.name: node.multiaddr for node in (relay, victim, hidden)}
        yield World(net, fleet, evil, mark, relay, victim, hidden, where)


def _check(fleet: NetFleet) -> None:
    wrong = fleet.close()
    assert not wrong, "\n".join(wrong)


def test_places_that_make_no_sense_are_not_dialled(world: World, figure: Callable[[str, str], None]) -> None:
    """Neither this machine's own services, nor a private network that it is not in, nor where a name leads."""
    own = {name: world.victim.facts[name].rpartition(":")[2] for name in ("control", "p2p")}
    own["client"] = world.victim.facts["listens"]["default"].rpartition(":")[2]
    syns = Syns(
        world.victim.namespace,
        loopback=f"ip daddr 127.0.0.1 tcp dport {{ 22, {own['client']}, {own['control']} }}", private=f"ip daddr {PRIVATE}",
        link_local="ip daddr 169.254.0.0/16", documentation="ip daddr 192.0.2.0/24", mapped="ip daddr 127.9.9.9",
        own=f"ip daddr {world.victim.namespace.address} tcp dport {own['p2p']}", guide=f"ip daddr {world.evil.address}",
    )  # fmt: skip
    try:
        world.guide(
            world.victim, "between", "/ip4/127.0.0.1/tcp/22", f"/ip4/127.0.0.1/tcp/{own['client']}",
            f"/ip4/127.0.0.1/tcp/{own['control']}", "/dns/localhost/tcp/22", f"/ip4/{PRIVATE}/tcp/22",
            "/ip4/169.254.169.254/tcp/80", "/ip4/192.0.2.1/tcp/80", "/ip6/::ffff:127.9.9.9/tcp/22",
            f"/ip4/{world.victim.namespace.address}/tcp/{own['p2p']}", seconds=8,
        )  # fmt: skip
        seen = {
            name: syns[name] for name in ("loopback", "private", "link_local", "documentation", "mapped", "own", "guide")
        }
    finally:
        syns.end()
    figure("hearsay that makes no sense, dialled in 8 s", json.dumps(seen))
    assert seen.pop("guide") >= 2  # what makes sense is dialled
    assert not any(seen.values()), seen


@pytest.mark.parametrize("port", [CLOSED, OPEN, DROPS])
def test_when_the_next_address_is_dialled_tells_nothing(world: World, port: int, figure: Callable[[str, str], None]) -> None:
    """Neither the gap between two ports of its own that a member names around another's, nor when they are dialled again."""
    dialled = world.guide(world.victim, "between", f"/ip4/{world.mark.address}/tcp/{port}", seconds=8)["dialled"]
    own = world.victim.namespace.address  # others dial, too
    first, second = ([at for host, which, at in dialled if host == own and which == one] for one in (0, 1))
    gaps = [min(at - before for at in second if at > before) for before in first if any(at > before for at in second)]
    rounds = [later - earlier for earlier, later in itertools.pairwise(first)]
    kind = {CLOSED: "closed", OPEN: "open", DROPS: "silent"}[port]
    figure(f"{kind} port", f"gaps {[round(g * 1e3) for g in gaps]} ms, again after {[round(r, 1) for r in rounds]} s")
    assert gaps
    assert rounds
    assert min(gaps) > 1.8 * STAGGER_S
    assert min(rounds) > SILENCE_S


def test_a_crowd_of_inventions_is_a_connect_a_second(world: World, figure: Callable[[str, str], None]) -> None:
    """A hundred peers, each at sixteen ports of somebody who has nothing to do with it."""
    syns = Syns(world.victim.namespace, third_party=f"ip daddr {world.mark.address}")
    began = time.monotonic()
    try:
        world.guide(world.victim, "crowd", world.mark.address, seconds=10)
        count, lasted = syns["third_party"], time.monotonic() - began
    finally:
        syns.end()
    figure("1,600 invented addresses at one host", f"{count} connects in {lasted:.0f} s")
    assert 0 < count <= 32 + lasted + 5


def test_who_is_linked_directly_meets_nobody(world: World, figure: Callable[[str, str], None]) -> None:
    syns = Syns(world.victim.namespace, third_party=f"ip daddr {world.mark.address} tcp dport 40000-40011")
    try:
        result = world.guide(world.victim, "punch", world.mark.address, seconds=10)
        count = syns["third_party"]
    finally:
        syns.end()
    figure("punching over a direct link", f"{count} connects in 10 s, {result}")
    assert count == 0
    assert result["refused"] > 0


def test_a_meeting_in_ten_seconds_with_few_knocks(world: World, figure: Callable[[str, str], None]) -> None:
    syns = Syns(world.hidden.namespace, third_party=f"ip daddr {world.mark.address} tcp dport 40000-40011")
    try:
        result = world.guide(world.hidden, "punch", world.mark.address, seconds=12, relay=world.relay)
        count = syns["third_party"]
    finally:
        syns.end()
    figure("punching over a relayed link", f"{count} connects in 12 s, {result}")
    assert 1 <= result["meetings"] <= 2
    assert 0 < count <= 2 * 2 * 20


def test_thirty_behind_one_address_are_all_reached(world: World, figure: Callable[[str, str], None]) -> None:
    """They are told to the victim all at once, by ports of one host, as behind a NAT that forwards them."""
    reached = world.guide(world.victim, "honest", seconds=30)["reached"]
    figure("thirty members at one address", f"the last was dialled after {max(reached):.1f} s")
    assert len(reached) == 30
