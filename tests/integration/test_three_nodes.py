"""Three daemons in front of three real nginx find each other, share the work evenly, and cost next to nothing idle."""

from __future__ import annotations

import re
import subprocess
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from harness import federation, http_get, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from fleet import Fleet
    from harness import Address, Daemon

NAMES = ("a", "b", "c")
IDLE_S = 60.0
HEADER_BYTES = 52  # of an IPv4 TCP segment with timestamps; `ss` counts payload


@pytest.fixture(scope="module")
def nodes(fleet: Fleet, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Daemon]:
    """The first starts a network; the others get nothing but the line that `federation invite` printed there."""
    first = fleet.daemon("a", backend=fleet.nginx("a"))
    invitation = fleet.directory / "invitation"
    invitation.write_text(federation("invite", "--state-dir", str(first.state_dir), home=fleet.directory).stdout)
    others = {n: fleet.daemon(n, backend=fleet.nginx(n), token_file=invitation, wait=False) for n in NAMES[1:]}
    nodes = {"a": first, **others}
    for node in others.values():
        node.wait_ready()
    # "Start" is the moment from which the last one serves; importing took it a second or more before that.
    begun = time.monotonic()
    wait_until(lambda: all(node.sees() == set(NAMES) for node in nodes.values()), within=2.0, what="all see all")
    (fleet.directory / "seen_after").write_text(f"{time.monotonic() - begun:.2f} s")
    return nodes


def backend_of(address: Address, path: str = "/name") -> str:
    response = http_get(address, path)
    assert response.status == 200
    return response.headers["x-backend"]


def test_all_see_each_other_within_two_seconds(nodes, fleet, figure) -> None:
    figure("three nodes see each other", (fleet.directory / "seen_after").read_text())
    for node in nodes.values():
        rows = node.peers()
        assert {row["name"]: row["self"] for row in rows} == {name: name == node.name for name in NAMES}
        assert {row["state"] for row in rows} == {"online"}
        assert {row["peer_id"] for row in rows} == {other.peer_id for other in nodes.values()}


@pytest.mark.parametrize("entry", NAMES)
def test_sequential_requests_spread_evenly(nodes, entry: str) -> None:
    address = nodes[entry].entry()
    served = Counter(backend_of(address) for _ in range(300))
    assert set(served) == set(NAMES)
    assert all(0.25 * 300 <= count <= 0.42 * 300 for count in served.values()), served


def concurrent_shares(nodes: dict[str, Daemon], addresses: list[Address]) -> Counter[str]:
    def at_rest() -> bool:  # and everybody has heard so
        return all(row["in_flight"] == 0 for node in nodes.values() for row in node.peers())

    wait_until(at_rest, within=5, what="nothing is in flight any more")
    with ThreadPoolExecutor(len(addresses)) as pool:
        return Counter(pool.map(lambda address: backend_of(address, "/slow"), addresses))


def test_sixty_concurrent_slow_requests_through_one_port_spread_20_20_20(nodes) -> None:
    served = concurrent_shares(nodes, [nodes["a"].entry()] * 60)
    assert set(served) == set(NAMES)
    assert all(18 <= count <= 22 for count in served.values()), served


def test_sixty_concurrent_slow_requests_through_three_ports_spread_too(nodes) -> None:
    """Looser than through one port: within a burst an entry knows of the others' picks only what gossip told it."""
    served = concurrent_shares(nodes, [nodes[name].entry() for name in NAMES] * 20)
    assert set(served) == set(NAMES)
    assert all(15 <= count <= 25 for count in served.values()), served


def p2p_traffic(node: Daemon, ports: set[int]) -> dict[tuple[str, str], int]:
    """Bytes so far, both directions and headers included, of each of the node's connections to other nodes."""
    command = ["ss", "-tinpOH", "state", "established"]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    traffic = {}
    for line in listing.splitlines():
        local, remote = line.split()[2:4]
        if f"pid={node.pid}," not in line or not {int(end.rpartition(":")[2]) for end in (local, remote)} & ports:
            continue
        counters = {name: int(value) for name, value in re.findall(r"\b(bytes_\w+|segs_\w+):(\d+)", line)}
        segments = counters.get("segs_out", 0) + counters.get("segs_in", 0)
        payload = counters.get("bytes_sent", 0) + counters.get("bytes_received", 0)
        traffic[local, remote] = payload + segments * HEADER_BYTES
    return traffic


def test_idle_nodes_cost_next_to_nothing(nodes, figure: Callable[[str, str], None]) -> None:
    """After all the traffic above: 60 s with nothing to do."""
    ports = {node.p2p[1] for node in nodes.values()}
    begun = time.monotonic()
    cpu_before = {name: node.cpu_s() for name, node in nodes.items()}
    traffic_before = {name: p2p_traffic(node, ports) for name, node in nodes.items()}
    assert all(len(connections) == 2 for connections in traffic_before.values()), traffic_before

    time.sleep(IDLE_S)  # the idle minute is the subject

    took = time.monotonic() - begun
    for name, node in nodes.items():
        cpu_share = (node.cpu_s() - cpu_before[name]) / took
        traffic = p2p_traffic(node, ports)
        # A connection that was replaced meanwhile would hide its bytes, and has no business to be.
        assert traffic.keys() == traffic_before[name].keys()
        rate = (sum(traffic.values()) - sum(traffic_before[name].values())) / took
        rss = node.rss_bytes()
        figure(f"idle node {name}", f"{cpu_share:.2%} of a core, {rate / 1e3:.2f} kB/s, RSS {rss / 1e6:.0f} MB")
        assert cpu_share < 0.01
        assert rate < 2_000
        assert rss < 130_000_000
