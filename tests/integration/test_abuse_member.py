"""A member that does its worst (evil.py) can lose its own connection, and nothing else."""

from __future__ import annotations

import faulthandler
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from harness import wait_until
from load import Load

if TYPE_CHECKING:
    from fleet import Fleet

EVIL = Path(__file__).with_name("evil.py")
MiB = 1024 * 1024
MEMORY = 96 * MiB  # a daemon may grow by, with all of it together
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


@pytest.mark.skipif("FEDERATION_LONG_TESTS" not in os.environ, reason="takes minutes: set FEDERATION_LONG_TESTS=1")
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
