"""`scripts/bench --paths`: what a connection costs on a direct, a punched and a relayed path.

Six namespaces make an internet (tests/integration/topology.py): two relays on it, two hosts behind NATs that keep ports, one
behind a NAT that does not. Every node is one daemon; the clients are wrk and curl, the backends nginx. All of it shares this
machine's cores, and there is no delay on the wires: what is seen is what the code costs, not what a distance does.

--long adds what takes minutes: 1 GiB each way through the relay, checksummed, and a token stream of two minutes.
Needs root (for the namespaces), nft, nginx, wrk and curl.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "integration"))

from fleet import NGINX_CONF  # noqa: E402
from harness import wait_until  # noqa: E402
from netfleet import NetFleet, NetServer, inside  # noqa: E402
from topology import Namespace, Topology, why_not  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Sequence

    from netfleet import NetDaemon

PORT = 8080
ECHO_PORT = 8081
MIB = 1 << 20
PINGS = 20
LONG_BYTES = 1 << 30
STREAM_S = 120
TOKEN_EVERY_S = 0.05


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench --paths", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--rounds", type=int, default=3, help="each is measured so often; medians are shown [3]")
    parser.add_argument("--mib", type=int, default=256, help="size of one bulk transfer [256]")
    parser.add_argument("--seconds", type=int, default=5, help="how long new connections are made [5]")
    parser.add_argument("--long", action="store_true", help="1 GiB each way and a stream of two minutes, relayed")
    given = parser.parse_args(arguments)
    if why := why_not():
        print(f"bench: {why}", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="federation-paths-") as directory, Topology() as net:
        fleet = NetFleet(Path(directory))
        try:
            return _measure(fleet, net, given)
        finally:
            for complaint in fleet.close():
                print(f"bench: {complaint}", file=sys.stderr)


def _measure(fleet: NetFleet, net: Topology, given: argparse.Namespace) -> int:
    client_place, relay_place = net.host(net.nat("den"), "entry"), net.public("relay")
    exits = {
        "direct": net.public("direct"),
        "punched": net.host(net.nat("home"), "punched"),
        "relayed": net.host(net.nat("cell", symmetric=True), "relayed"),
    }
    relay = fleet.node("relay", relay_place, "--relay-rate=0")  # else that limit is what is measured
    nodes: dict[str, NetDaemon] = {}
    for name, place in exits.items():
        _nginx(fleet, place, max(given.mib * MIB, LONG_BYTES if given.long and name == "relayed" else 0))
        fleet.server("echo", place, port=ECHO_PORT)
        echo = f"--backend=echo-{name}=127.0.0.1:{ECHO_PORT}"
        nodes[name] = fleet.node(name, place, f"--backend={name}=127.0.0.1:{PORT}", echo, "--no-relay", peer=relay)
    services = [*exits, *(f"echo-{name}" for name in exits)]
    entry = fleet.node("entry", client_place, peer=relay, services=services)
    for name in exits:
        wait_until(lambda name=name: entry.path_to(name) == name, within=30, what=f"{name}: {entry.path_to(name)}")
    print(f"{'path':<10} {'rtt ms':>8} {'down MB/s':>10} {'up MB/s':>9} {'new conn/s':>11}   median of {given.rounds}")
    for name in exits:
        rounds = [_one_round(entry, name, given) for _ in range(given.rounds)]
        rtt, down, up, new = (statistics.median(column) for column in zip(*rounds, strict=True))
        print(f"{name:<10} {rtt:>8.2f} {down:>10.1f} {up:>9.1f} {new:>11.0f}", flush=True)
    return _long(entry, nodes["relayed"]) if given.long else 0


def _one_round(entry: NetDaemon, name: str, given: argparse.Namespace) -> tuple[float, float, float, float]:
    """Round trip in ms, MB/s down, MB/s up, new connections per second."""
    asked = [*entry.namespace.prefix, sys.executable, "-m", "federation", "ping", name, "--count", str(PINGS), "--json",
             "--state-dir", str(entry.state_dir)]  # fmt: skip
    answer = json.loads(subprocess.run(asked, capture_output=True, text=True, check=True, timeout=60).stdout)
    url = f"http://127.0.0.1:{entry.entry(name)[1]}"
    size = given.mib * MIB
    down = _curl(entry.namespace, "speed_download", "-r", f"0-{size - 1}", f"{url}/blob")
    up = _curl(entry.namespace, "speed_upload", "-T", "-", f"{url}/upload/blob", given=b"u" * size)
    wrk = ["wrk", "-t1", "-c8", f"-d{given.seconds}s", "-H", "Connection: close", f"{url}/name"]
    done = subprocess.run([*entry.namespace.prefix, *wrk], capture_output=True, text=True, timeout=given.seconds + 30)
    rate = re.search(r"Requests/sec:\s+([\d.]+)", done.stdout)
    assert rate, done.stdout + done.stderr
    return statistics.median(answer["rtt_ms"]), down / 1e6, up / 1e6, float(rate[1])


def _curl(place: Namespace, what: str, *arguments: str, given: bytes | None = None) -> float:
    command = ["curl", "-sS", "--fail", "-o", "/dev/null", "-w", f"%{{{what}}}", *arguments]
    done = subprocess.run([*place.prefix, *command], input=given, capture_output=True, timeout=600)
    assert done.returncode == 0, done.stderr.decode()
    return float(done.stdout)


def _nginx(fleet: NetFleet, place: Namespace, size: int) -> None:
    directory = fleet.directory / f"nginx-{place.name}"
    www = directory / "www"
    (www / "upload").mkdir(parents=True)
    (www / "name").write_text(f"{place.name}\n")
    block = hashlib.shake_256(place.name.encode()).digest(MIB)
    with (www / "blob").open("wb") as blob:
        for number in range(size // MIB):  # no block twice: one that is lost or doubled changes the digest
            blob.write(number.to_bytes(8, "big") + block[8:])
    (directory / "nginx.conf").write_text(
        NGINX_CONF.format(user="user root;", directory=directory, port=PORT, name=place.name)
    )
    command = [*place.prefix, "nginx", "-p", str(directory), "-e", str(directory / "log")]
    command += ["-c", str(directory / "nginx.conf")]
    server = NetServer(f"nginx-{place.name}", directory / "process", command, fleet.environment)
    server.namespace, server.address = place, ("127.0.0.1", PORT)
    fleet.processes.append(server)
    server.start()


def _long(entry: NetDaemon, exit_: NetDaemon) -> int:
    """1 if something was wrong."""
    www = entry.directory.parent / f"nginx-{exit_.namespace.name}" / "www"
    url = f"http://127.0.0.1:{entry.entry('relayed')[1]}"
    expected = _digest(www / "blob")
    got = entry.directory / "got"
    curl = [*entry.namespace.prefix, "curl", "-sS", "--fail"]
    started = time.monotonic()
    subprocess.run([*curl, "-o", str(got), f"{url}/blob"], check=True, timeout=600)
    took = time.monotonic() - started
    right = [_digest(got) == expected]
    print(f"1 GiB down, relayed: {LONG_BYTES / took / 1e6:.1f} MB/s, {'intact' if right[-1] else 'DAMAGED'}", flush=True)
    started = time.monotonic()
    subprocess.run([*curl, "-T", str(got), f"{url}/upload/got"], check=True, timeout=600)
    took = time.monotonic() - started
    right.append(_digest(www / "upload" / "got") == expected)
    print(f"1 GiB up, relayed: {LONG_BYTES / took / 1e6:.1f} MB/s, {'intact' if right[-1] else 'DAMAGED'}", flush=True)
    with inside(entry.namespace):
        sock = socket.create_connection(entry.entry("echo-relayed"), timeout=30)
    gaps: list[float] = []
    with sock:
        for number in range(int(STREAM_S / TOKEN_EVERY_S)):
            token = f"{number:08}".encode()
            sent = time.monotonic()
            sock.sendall(token)
            back = b""
            while len(back) < len(token):
                back += sock.recv(len(token) - len(back)) or sys.exit("the stream broke off")
            right.append(back == token)
            gaps.append(time.monotonic() - sent)
            time.sleep(max(0.0, TOKEN_EVERY_S - gaps[-1]))
    gaps.sort()
    print(f"{len(gaps)} tokens in two minutes, relayed: there and back p50 {gaps[len(gaps) // 2] * 1e3:.2f} ms,"
          f" p99 {gaps[len(gaps) * 99 // 100] * 1e3:.2f} ms, longest {gaps[-1] * 1e3:.1f} ms;"
          f" {'intact' if all(right[2:]) else 'DAMAGED'}")  # fmt: skip
    return 0 if all(right) else 1


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":
    sys.exit(main())
