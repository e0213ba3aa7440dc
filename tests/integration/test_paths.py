"""Nodes nobody can dial, in a made internet: two relays on it, two homes whose NATs keep ports, one whose NAT does not.

relay1, relay2    on the internet
home: ann, bob    behind one NAT; bob is told of nobody and finds ann by multicast
den: cat          behind another NAT
cell: dan         behind a symmetric NAT: nobody gets through to it but by a relay
eve               on the internet, knows nobody but a node of a DHT that strangers run
"""

from __future__ import annotations

import random
import socket
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import pytest
from harness import wait_until
from load import Load
from netfleet import NetFleet, inside
from topology import Topology, why_not

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from netfleet import NetDaemon
    from topology import Namespace

SERVICES = ("default", "near", "far")  # the last two echo: near's only backend is cat's, far's is dan's
pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not() or "-")


@dataclass
class World:
    topology: Topology
    fleet: NetFleet
    nodes: dict[str, NetDaemon] = field(default_factory=dict)
    ready_at: float = 0.0
    dht: tuple[str, ...] = ()

    def __getattr__(self, name: str) -> NetDaemon:
        return self.nodes[name]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with Topology() as net, ExitStack() as stack:
        fleet = NetFleet(tmp_path_factory.mktemp("paths"))
        stack.callback(lambda: _check(fleet))
        home, den, cell = net.nat("home"), net.nat("den"), net.nat("cell", symmetric=True)
        places = {
            "relay1": net.public("relay1"), "relay2": net.public("relay2"), "ann": net.host(home, "ann"),
            "bob": net.host(home, "bob"), "cat": net.host(den, "cat"), "dan": net.host(cell, "dan"),
        }  # fmt: skip
        world = World(net, fleet)
        world.dht = ("--dht", f"--bootstrap={fleet.dht(net.public('stranger'))}")
        world.nodes["relay1"] = fleet.node("relay1", places["relay1"], *world.dht, wait=False)
        backends = {name: fleet.server("http", places[name]) for name in ("ann", "bob", "cat", "dan")}
        fleet.server("echo", places["dan"], port=8081)
        fleet.server("echo", places["cat"], port=8081)
        world.relay1.wait_ready()
        for name in ("relay2", "ann", "cat", "dan"):
            extra = {"ann": ("--mdns",), "cat": ("--backend=near=127.0.0.1:8081",), "dan": ("--backend=far=127.0.0.1:8081",)}
            world.nodes[name] = fleet.node(
                name, places[name], *extra.get(name, ()), services=SERVICES,
                backend=backends.get(name), peer=world.relay1, wait=False,
            )  # fmt: skip
        for node in world.nodes.values():
            node.wait_ready()
        world.ready_at = time.monotonic()
        world.nodes["bob"] = fleet.node(
            "bob", places["bob"], "--mdns", services=SERVICES, backend=backends["bob"], wait=False
        )
        yield world


def _check(fleet: NetFleet) -> None:
    wrong = fleet.close()
    assert not wrong, "\n".join(wrong)


def serves(entry: NetDaemon, names: set[str]) -> bool:
    return names <= entry.offers()


def answered(entry: NetDaemon, by: Namespace) -> bool:
    return entry.get().body.decode() == by.name


def echoes(sock: socket.socket, data: bytes) -> bool:
    sock.sendall(data)
    back = b""
    while len(back) < len(data) and (chunk := sock.recv(65536)):
        back += chunk
    return back == data


def open_echo(entry: NetDaemon, service: str) -> socket.socket:
    with inside(entry.namespace):
        return socket.create_connection(entry.entry(service), timeout=15)


def test_each_side_serves_the_others_then_directly_where_the_nat_allows(
    world: World, figure: Callable[[str, str], None]
) -> None:
    """Nothing fails while the path changes."""
    ann, cat, dan = world.ann, world.cat, world.dan
    with Load(ann.entry(), clients=2, every_s=0.05, where=partial(inside, ann.namespace)) as load:
        everybody = {"ann", "cat", "dan"}
        wait_until(
            lambda: all(serves(node, everybody) for node in (ann, cat, dan, world.relay1)),
            within=10, since=world.ready_at, what="everybody is served by everybody",
        )  # fmt: skip
        figure("hidden nodes: all serve all after ready", f"{time.monotonic() - world.ready_at:.1f} s")
        assert dan.path_to("cat") == cat.path_to("dan") == "relayed"
        wait_until(
            lambda: ann.path_to("cat") == cat.path_to("ann") == "punched", within=20, what="ann and cat are linked directly"
        )
        figure("hidden nodes: punched after ready", f"{time.monotonic() - world.ready_at:.1f} s")
        now = time.monotonic()
        wait_until(lambda: all(load.answered_by(node.namespace.name, since=now) for node in (ann, cat, dan)), within=5,
                   what="all of them answer")  # fmt: skip
    assert load.failed == []
    assert dan.path_to("ann") == ann.path_to("dan") == "relayed"


def test_on_one_lan_multicast_is_enough(world: World, figure: Callable[[str, str], None]) -> None:
    """Wildcard listeners, a multicast socket on each interface, no address known: then the rest of the network by gossip."""
    ready = world.bob.wait_ready()
    wait_until(lambda: world.bob.path_to("ann") == "direct", within=3, what="bob finds ann")
    figure("same LAN: found by multicast after ready", f"{time.monotonic() - ready:.1f} s")
    wait_until(lambda: serves(world.bob, {"ann", "cat", "dan"}), within=10, what="bob reaches the others through relays")


def test_in_a_dht_that_strangers_run(world: World, figure: Callable[[str, str], None]) -> None:
    """relay1 has left its address there, under a key that only members know."""
    eve = world.fleet.node("eve", world.topology.public("eve"), *world.dht)
    ready = time.monotonic()
    world.nodes["eve"] = eve
    wait_until(lambda: serves(eve, {"ann", "cat", "dan"}), within=20, what="eve finds the network")
    figure("found through a DHT after ready", f"{time.monotonic() - ready:.1f} s")
    assert "the DHT could not be asked" not in eve.log() + world.relay1.log()


def test_who_disappears_takes_nobody_along(world: World) -> None:
    """50 tunnels of three entries to dan, through relays; one entry is killed."""
    entries = [world.ann, world.cat, world.bob]
    wait_until(
        lambda: all(node.path_to("dan") == "relayed" for node in entries), within=10, what="all have a circuit to dan"
    )
    chance = random.Random(6)
    with ExitStack() as stack:
        sockets = []
        for number in range(50):
            entry = entries[number % 3]
            sock = stack.enter_context(open_echo(entry, "far"))
            sock.settimeout(15)
            sockets.append((entry, sock))
        wait_until(lambda: world.dan.status()["node"]["in_flight"] == 50, within=10, what="they have arrived")
        for round_number in range(6):
            if round_number == 3:
                world.bob.kill()
            for entry, sock in sockets:
                if entry is not world.bob or round_number < 3:
                    assert echoes(sock, chance.randbytes(20_000)), f"round {round_number}, {entry.name}"
    world.bob.start()


def test_a_laptop_moves(world: World, figure: Callable[[str, str], None]) -> None:
    """bob goes from one home to another: served there through its new address in under 10 s."""
    net, bob = world.topology, world.bob
    den = next(n for n in net.namespaces if n.name.endswith("-den"))
    wait_until(lambda: serves(world.relay2, {"bob"}), within=10, what="bob is back")
    bob.namespace.run("ip", "link", "delete", "eth0")
    moved = time.monotonic()
    address = net.move(bob.namespace, den)
    bob.namespace.run("ip", "route", "add", "default", "via", f"{address.rpartition('.')[0]}.1")
    wait_until(lambda: address in str(world.relay2.peer("bob").get("addresses")), within=5, what="it is announced")
    figure("a laptop that moves: announced after", f"{time.monotonic() - moved:.1f} s")
    wait_until(lambda: answered(world.relay2, bob.namespace), within=10, since=moved, what="bob serves again")
    wait_until(lambda: serves(world.cat, {"bob"}) and world.cat.path_to("bob") == "direct",
               within=10, since=moved, what="its new neighbour reaches it directly")  # fmt: skip
    figure("a laptop that moves: served at its new address after", f"{time.monotonic() - moved:.1f} s")
    wait_until(
        lambda: world.ann.path_to("bob") in ("punched", "relayed"), within=10, since=moved, what="its old one goes round"
    )


def test_the_relay_is_killed(world: World, figure: Callable[[str, str], None]) -> None:
    """The other relay takes over in under 3 s; who is linked directly is not disturbed."""
    ann, dan = world.ann, world.dan
    wait_until(lambda: len(dan.status()["node"]["via"]) == 2, within=10, what="dan has places at both relays")
    with open_echo(ann, "near") as direct, open_echo(ann, "far") as relayed:
        assert echoes(direct, b"before")
        assert echoes(relayed, b"before")
        through = ann.peer("dan")["via"]
        victim = world.relay1 if through == world.relay1.peer_id else world.relay2
        victim.kill()
        killed = time.monotonic()
        wait_until(lambda: answered(ann, dan.namespace), within=3, what="dan answers ann through the other relay")
        figure("relay killed: served through the other after", f"{time.monotonic() - killed:.1f} s")
        assert ann.peer("dan")["via"] not in ("", through)
        assert echoes(direct, b"after")
    assert ann.path_to("cat") == "punched"
    victim.start()
    wait_until(lambda: len(dan.status()["node"]["via"]) == 2, within=10, what="dan has a place at the restarted relay")
