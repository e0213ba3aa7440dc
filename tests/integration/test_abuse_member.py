"""A member that does its worst (evil.py) can lose its own connection, and nothing else."""

from __future__ import annotations

import faulthandler
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from harness import wait_until
from load import Load

if TYPE_CHECKING:
    from fleet import Fleet
    from harness import Daemon

EVIL = Path(__file__).with_name("evil.py")
MiB = 1024 * 1024
MEMORY = 96 * MiB  # a daemon may grow by, with all of it together
CONTROL_MEMORY = 10 * MiB  # by one kind of what is said beside records; what is on its way, and what an allocator keeps
LONG = pytest.mark.skipif("FEDERATION_LONG_TESTS" not in os.environ, reason="takes long: set FEDERATION_LONG_TESTS=1")
FLOOD_S = 4.0
RSA_SHARE = 0.1  # of a core; it was a quarter to a half of one
LOG_LINES = 250  # 64 invented peers that join at once are named, and a handful of lines for each mode

CUT = {
    "speaks_for_another": "a record that is not its own",
    "forges": "a wrong signature",
    "hands_over_a_forgery": "not genuine",
    "megabyte_record": "MessageTooLarge",
    "thousand_a_second": "gossips without end",
    "opens_and_takes_back": "floods",
    "opens_what_is_not_there": "floods|does not read",
    "grants_too_much": "more CREDIT than a window holds",
    "sends_ungranted": "DATA",
    "speaks_of_unknown_streams": "never opened",
    "never_reads": "floods|does not read",
    "prunes_other_topics": "a topic that this network does not have",
    "has_of_other_topics": "a topic that this network does not have",
}
BORNE = ("highest_numbers", "megabyte_row", "invents_peers", "never_reads_tunnels")  # and of no effect


def test_it_loses_its_own_connection_and_nothing_else(fleet: Fleet, figure) -> None:
    victim = fleet.daemon("victim", backend=fleet.backend("http", "victim"), wait=True)
    entry = fleet.daemon("entry", peer=victim)
    wait_until(lambda: entry.offers() == {"victim"}, within=10, what="the entry sees the exit")
    # Each mode is another identity.
    command = [sys.executable, str(EVIL), str(fleet.token_file), victim.multiaddr, *CUT, *BORNE]
    with Load(entry.entry(), clients=2, every_s=0.04) as load:
        wait_until(lambda: len(load.requests) >= 100, within=30, what="a steady load")
        before = {daemon.name: daemon.rss_bytes() for daemon in (victim, entry)}
        done = subprocess.run(command, capture_output=True, text=True, timeout=80, env=victim.environment)
        grown = {daemon.name: daemon.rss_bytes() - before[daemon.name] for daemon in (victim, entry)}
        quiet_again = len(load.requests)
        wait_until(lambda: len(load.requests) >= quiet_again + 50, within=30, what="it goes on")
    assert done.returncode == 0, done.stderr
    results = {result["mode"]: result for result in map(json.loads, done.stdout.splitlines())}
    took = sorted(request.took_s for request in load.requests)
    figure(
        "malicious member",
        f"{len(load.requests)} requests of others, {len(load.failed)} failed, p99 {took[len(took) * 99 // 100] * 1e3:.0f} ms"
        + "".join(f"; {mode} {r['sent']} sent{', cut' * r['cut']} in {r['lasted_s']} s" for mode, r in results.items())
        + "; memory " + ", ".join(f"{name} {size / MiB:+.0f} MiB" for name, size in grown.items()),
    )  # fmt: skip
    assert {mode for mode, result in results.items() if result["cut"]} == set(CUT)
    assert [mode for mode in CUT if results[mode]["comes_back"]] == []
    assert load.failed == []
    assert max(grown.values()) < MEMORY
    log = victim.log().splitlines()
    for mode, what in CUT.items():
        said = [line for line in log if "it is kept away" in line and results[mode]["peer_id"] in line]
        assert len(said) == 1, (mode, said)
        assert any(word in said[0] for word in what.split("|")), (mode, said)
    assert len(log) < LOG_LINES
    # Whoever is real is known and linked as before, and a newcomer is let in.
    assert {"victim", "entry"} <= entry.sees() & victim.sees()
    assert {row["name"] for row in entry.peers() if row["state"] == "online"} == {"victim"}
    newcomer = fleet.daemon("newcomer", peer=victim)
    wait_until(lambda: newcomer.offers() == {"victim"}, within=5, what="a newcomer is let in and served")
    wait_until(lambda: "newcomer" in entry.sees(), within=10, what="and known to the others")


@pytest.fixture(scope="module")
def three(fleet: Fleet) -> list[Daemon]:
    """Nodes that are all linked to each other; the first one has the backend."""
    a = fleet.daemon("a", backend=fleet.backend("http", "a"))
    nodes = [a, fleet.daemon("b", peer=a), fleet.daemon("c", peer=a)]
    names = {node.name for node in nodes}
    wait_until(lambda: all(linked(node) >= names - {node.name} for node in nodes), within=20, what="all are linked")
    return nodes


def linked(node: Daemon) -> set[str]:
    return {row["name"] for row in node.peers() if row["path"] == "direct"}


def misbehave(fleet: Fleet, victim: Daemon, mode: str, seconds: float) -> dict[str, Any]:
    command = [sys.executable, str(EVIL), str(fleet.token_file), victim.multiaddr, mode, "--seconds", str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 60, env=victim.environment)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def test_no_record_has_honest_nodes_cut_each_other_off(fleet: Fleet, three: list[Daemon], figure) -> None:
    """Genuine ones, with up to 100 kB added that their signatures do not cover, handed to one node, which passes them on."""
    a, *others = three
    result = misbehave(fleet, a, "hands_over_padded_records", 3)
    said = [line for node in three for line in node.log().splitlines() if "broke the rules" in line]
    figure("padded record", f"{len(said)} times a node said that a peer broke the rules")
    for node in others:
        wait_until(lambda node=node: result["peer_id"] in str(node.peers()), within=10, what="it was passed on")
    assert said == []
    for node in three:
        assert linked(node) >= {other.name for other in three} - {node.name}
    assert not result["cut"]


def test_whom_a_member_names_nobody_dials(fleet: Fleet, three: list[Daemon], figure) -> None:
    """Peer exchange, and the sender's own record: each with an address of the member's choice."""
    result = misbehave(fleet, three[0], "exchanges_peers", 5)
    figure("peer exchange", f"{result['noted']} connects to an address of the member's choice, {result['sent']} messages")
    assert result["sent"] >= 4
    assert result["noted"] == 0


def test_a_key_that_takes_long_to_read_is_not_read(fleet: Fleet, three: list[Daemon], figure) -> None:
    """Four identities, whose "public keys" are RSA keys of 4096 bits with huge exponents, speak four times a second."""
    before = [node.cpu_s() for node in three]
    result = misbehave(fleet, three[0], "rsa_identities", 10)
    shares = [(node.cpu_s() - cpu_s) / result["lasted_s"] for node, cpu_s in zip(three, before, strict=True)]
    figure(
        "RSA identities",
        f"{result['sent']} messages in {result['lasted_s']:.0f} s; nodes used "
        + ", ".join(f"{node.name} {share:.0%}" for node, share in zip(three, shares, strict=True)) + " of a core",
    )  # fmt: skip
    assert result["sent"] >= 40
    assert not result["cut"]
    assert max(shares) < RSA_SHARE
    assert not any(row["peer_id"].startswith("Qm") for node in three for row in node.peers())


@pytest.mark.parametrize(
    "mode",
    [
        "prunes_other_topics",
        "has_of_other_topics",
        pytest.param("has_without_end", marks=LONG),
        pytest.param("wants_without_end", marks=LONG),
        "subscribes_without_end",
        pytest.param("announces_a_gigabyte", marks=LONG),
        "long_numbers",
        "digests_of_nothing",
    ],
)
def test_what_is_said_beside_records_takes_no_memory(mode: str, fleet: Fleet, three: list[Daemon], figure) -> None:
    a, b, _ = three
    with Load(b.entry(), clients=2, every_s=0.04) as load:
        wait_until(lambda: len(load.requests) >= 100, within=30, what="a steady load")
        before, cpu_s = a.rss_bytes(), a.cpu_s()
        result = misbehave(fleet, a, mode, FLOOD_S)
        grown, cpu_s = a.rss_bytes() - before, a.cpu_s() - cpu_s
    took = sorted(request.took_s for request in load.requests)
    figure(
        mode,
        f"{result['sent']} sent in {result['lasted_s']:.1f} s{', cut' * result['cut']}; memory {grown / MiB:+.0f} MiB; "
        f"{cpu_s:.1f} s of CPU; {len(load.requests)} requests of others, {len(load.failed)} failed, "
        f"p99 {took[len(took) * 99 // 100] * 1e3:.0f} ms, the longest {took[-1] * 1e3:.0f} ms",
    )
    assert load.failed == []
    assert grown < CONTROL_MEMORY
    assert result["cut"] == (mode in CUT)


@LONG
def test_100_000_invented_peers(fleet: Fleet, figure) -> None:
    """All of them, one by one, at the pace that the victim reads them at."""
    faulthandler.cancel_dump_traceback_later()  # pytest's, for tests that hang
    victim = fleet.daemon("crowded", backend=fleet.backend("http", "crowded"), wait=True)
    entry = fleet.daemon("next", peer=victim)
    wait_until(lambda: entry.offers() == {"crowded"}, within=10, what="the entry sees the exit")
    command = [sys.executable, str(EVIL), str(fleet.token_file), victim.multiaddr, "invents_peers", "--seconds", "500"]
    with Load(entry.entry(), clients=2, every_s=0.04) as load:
        wait_until(lambda: len(load.requests) >= 100, within=30, what="a steady load")
        before = {daemon.name: daemon.rss_bytes() for daemon in (victim, entry)}
        cpu_s, lines = victim.cpu_s(), len(victim.log().splitlines())
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=victim.environment)
        cpu_s = victim.cpu_s() - cpu_s
        grown = {daemon.name: daemon.rss_bytes() - before[daemon.name] for daemon in (victim, entry)}
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    rows = {daemon.name: len(daemon.peers()) for daemon in (victim, entry)}
    took = sorted(request.took_s for request in load.requests)
    share = cpu_s / result["lasted_s"]
    said = len(victim.log().splitlines()) - lines
    figure(
        "invented peers",
        f"{result['sent']} in {result['lasted_s']:.0f} s; {len(load.requests)} requests of others, {len(load.failed)} "
        f"failed, p99 {took[len(took) * 99 // 100] * 1e3:.0f} ms; the victim used {share:.0%} of a core "
        f"and said {said} lines; rows " + ", ".join(f"{name} {count}" for name, count in rows.items())
        + "; memory " + ", ".join(f"{name} {size / MiB:+.0f} MiB" for name, size in grown.items()),
    )  # fmt: skip
    assert result["sent"] == 100_000
    assert load.failed == []
    assert max(grown.values()) < MEMORY
    assert said < LOG_LINES + 2 * result["lasted_s"]
    assert {row["name"] for row in entry.peers() if row["state"] == "online"} == {"crowded"}
