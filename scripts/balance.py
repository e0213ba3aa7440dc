"""How evenly real daemons spread load when every node is an entry: time-averaged most load of a backend over the mean.

N daemons with a backend each; requests arrive at all entries by a Poisson process. Beside them an all-knowing dispatcher and
dice, computed on the same arrivals. With --delay the nodes are in network namespaces, so far apart that a round trip takes
so many milliseconds; a client and its entry are still on one machine.

Everything started here is ended here; only 127.0.0.0/8 and namespaces of its own are addressed.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import re
import sys
import tempfile
import threading
import time
import urllib.request
from contextlib import ExitStack, nullcontext
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "tests" / "integration"), str(HERE)]

from balancing import (  # noqa: E402
    Field,
    Hub,
    all_knowing,
    arrivals,
    balance_of,
    dice,
    dispatched,
    summary,
    write_checksums,
)  # fmt: skip

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness import Daemon

SIZES = ("3x3", "8x3", "16x2")
WARM_UP_S = 5.0
PREFIX = "10.77.0"


def main() -> int:
    given = parse(sys.argv[1:])
    rows: list[dict[str, Any]] = []
    for nodes, per_node in given.sizes:
        for hold_s in given.hold:
            rows += measure(nodes, per_node, hold_s, given)
    print(table(rows))
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 1 if any(row["errors"] for row in rows) else 0


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/balance", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--sizes", type=_sizes, default=_sizes(",".join(SIZES)), metavar="NxM,...",
        help=f"N nodes with M requests in flight each on average (default {','.join(SIZES)})",
    )  # fmt: skip
    parser.add_argument("--hold", type=_numbers, default=[0.6], metavar="S,...", help="seconds that a request takes")
    parser.add_argument(
        "--seconds", type=float, default=25.0, help=f"of arrivals in a run, {WARM_UP_S:g} of warm-up included"
    )
    parser.add_argument("--runs", type=int, default=1, help="of each, each with arrivals of its own")
    parser.add_argument("--delay", type=float, default=0.0, metavar="MS", help="of a round trip between nodes; needs root")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--checkout", type=Path, metavar="DIR", help="another checkout whose daemons are to be measured")
    parser.add_argument("--json", type=Path, metavar="FILE")
    given = parser.parse_args(arguments)
    if given.seconds <= WARM_UP_S + 1:
        parser.error(f"--seconds: more than {WARM_UP_S + 1:g}")
    return given


def _sizes(text: str) -> list[tuple[int, float]]:
    found = [re.fullmatch(r"(\d+)x([\d.]+)", part) for part in text.split(",")]
    if not all(found) or any(int(match[1]) not in range(2, 33) for match in found if match):
        raise argparse.ArgumentTypeError(f"{text}: not as 8x3,16x2, with 2 to 32 nodes")
    return [(int(match[1]), float(match[2])) for match in found if match]


def _numbers(text: str) -> list[float]:
    numbers = [float(part) for part in text.split(",")]
    if min(numbers) <= 0:
        raise argparse.ArgumentTypeError(f"{text}: not positive")
    return numbers


def measure(nodes: int, per_node: float, hold_s: float, given: argparse.Namespace) -> list[dict[str, Any]]:
    """One network of daemons, all runs."""
    rows = []
    with tempfile.TemporaryDirectory(prefix="federation-balance-") as directory, ExitStack() as stack:
        network = Delayed(nodes, given.delay, stack) if given.delay else Loopback()
        field = Field(nodes, network.inside)
        stack.callback(field.close)
        daemons = start(Path(directory), field, network, nodes, given.checkout, stack)
        entries = [daemon.entry() for daemon in daemons]
        for run in range(given.runs):
            rng = random.Random(f"{given.seed} {run} {nodes} {hold_s}")
            wanted = arrivals(nodes, per_node, hold_s, given.seconds, rng)
            before, own_s, daemons_s = picked_again(daemons, network), time.process_time(), cpu_s(daemons)
            outcome = field.run(wanted, entries)
            took = time.monotonic() - outcome.began
            used = (cpu_s(daemons) - daemons_s) / took, (time.process_time() - own_s) / took
            again = picked_again(daemons, network) - before
            window = (WARM_UP_S, given.seconds)
            changes = [(at - outcome.began, node, by) for at, node, by in outcome.changes]
            row = {
                "nodes": nodes, "per_node": per_node, "hold_s": hold_s, "delay_ms": given.delay, "run": run + 1,
                "requests": len(wanted), "errors": outcome.errors, "picked_again": again / len(wanted),
                "ours": balance_of(changes, nodes, *window).ratio,
                "all_knowing": balance_of(dispatched(wanted, nodes, all_knowing(rng)), nodes, *window).ratio,
                "dice": balance_of(dispatched(wanted, nodes, dice(rng)), nodes, *window).ratio,
                "way_ms": summary(outcome.took_s), "daemons_cores": used[0], "generator_cores": used[1],
            }  # fmt: skip
            rows.append(row)
            print(table([row], head=not rows[1:]), file=sys.stderr, flush=True)
    return rows


class Loopback:
    """All on 127.0.0.1."""

    def inside(self, _node: int) -> Any:
        return nullcontext()


class Delayed:
    """A namespace a node, on a switch that holds each frame for half a round trip."""

    def __init__(self, nodes: int, delay_ms: float, stack: ExitStack) -> None:
        import netfleet
        from topology import Namespace, run

        self.namespaces = [Namespace(f"node{n}", f"{PREFIX}.{n + 1}") for n in range(nodes)]
        ports = [f"port{n}" for n in range(nodes)]
        for namespace, port in zip(self.namespaces, ports, strict=True):
            run("ip", "netns", "add", namespace.name)
            stack.callback(run, "ip", "netns", "delete", namespace.name)
            run("ip", "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", namespace.name)
            stack.callback(run, "ip", "link", "delete", port)  # a namespace goes some time after it was deleted
            run("ip", "link", "set", port, "up")
            namespace.run("ip", "link", "set", "lo", "up")
            namespace.run("ip", "link", "set", "eth0", "gso_max_segs", "1", "up")
            namespace.run("ip", "address", "add", f"{namespace.address}/24", "dev", "eth0")
            run("sysctl", "-qw", f"net.ipv6.conf.{port}.disable_ipv6=1")
            with netfleet.inside(namespace):
                write_checksums("eth0")
        hub = multiprocessing.Process(target=lambda: Hub(ports, delay_ms / 2e3).run(), daemon=True)
        hub.start()
        stack.callback(hub.terminate)

    def inside(self, node: int) -> Any:
        import netfleet

        return netfleet.inside(self.namespaces[node])


def start(
    directory: Path, field: Field, network: Loopback | Delayed, nodes: int, checkout: Path | None, stack: ExitStack
) -> list[Daemon]:
    """The daemons, when each would send a connection to every other."""
    if checkout is not None:
        sys.executable = str(checkout.resolve() / ".venv" / "bin" / "python")
    import harness
    from fleet import Fleet
    from harness import Server, wait_until
    from netfleet import NetFleet

    if checkout is not None:
        os.environ["PYTHONPATH"] = str(checkout.resolve())
    fleet = NetFleet(directory) if isinstance(network, Delayed) else Fleet(directory)
    stack.callback(fleet.close)
    daemons: list[Daemon] = []
    done = threading.Event()  # health checks are answered while daemons start: by this thread, as ever
    answering = threading.Thread(target=field.serve_while, args=(lambda: not done.is_set(),))
    answering.start()
    try:
        for node in range(nodes):
            server = Server(f"backend{node}", directory / f"backend{node}", [], {})
            server.address = ("127.0.0.1", field.ports[node])
            options = ("--log-level", "warning", "--no-detect")
            first: Any = daemons[0] if daemons else None
            if isinstance(fleet, NetFleet):
                assert isinstance(network, Delayed)
                daemon: Daemon = fleet.node(
                    f"node{node}", network.namespaces[node], *options, backend=server, peer=first, wait=not daemons
                )
            else:
                daemon = fleet.daemon(f"node{node}", *options, backend=server, peer=first, wait=not daemons)
            daemons.append(daemon)
            if node % 4 == 3:
                daemon.wait_ready()
        for daemon in daemons:
            daemon.wait_ready(harness.START_S)
        for daemon in daemons:
            wait_until(lambda d=daemon: len(d.offers()) == nodes, within=60, what=f"{daemon.name} reaches everybody")
    finally:
        done.set()
        answering.join()
    return daemons


def cpu_s(daemons: Sequence[Daemon]) -> float:
    return sum(daemon.cpu_s() for daemon in daemons)


def picked_again(daemons: Sequence[Daemon], network: Loopback | Delayed) -> int:
    total = 0
    for node, daemon in enumerate(daemons):
        with network.inside(node):
            url = f"http://{daemon.control[0]}:{daemon.control[1]}/metrics"
            text = urllib.request.urlopen(url, timeout=10).read().decode()
        found = re.search(r"^federation_picks_again_total (\S+)$", text, re.M)
        total += int(float(found[1])) if found else 0
    return total


def table(rows: Sequence[dict[str, Any]], *, head: bool = True) -> str:
    lines = [
        "nodes x in flight  hold  delay  run | ours  best dice | ours/best | sent back | way ms p50/p99 | cores | errors"
    ] * head
    for row in rows:
        lines.append(
            f"{row['nodes']:>5} x {row['per_node']:<9g} {row['hold_s']:>5g} s {row['delay_ms']:>3g} ms {row['run']:>3} | "
            f"{row['ours']:.2f}     {row['all_knowing']:.2f}     {row['dice']:.2f} | "
            f"{row['ours'] / row['all_knowing']:>9.2f} | {row['picked_again']:>9.2f} | {row['way_ms']:>14} | "
            f"{row['daemons_cores']:.1f}+{row['generator_cores']:.1f} | {row['errors']}"
        )
    if len(rows) > 1 and head:
        ratios = [row["ours"] / row["all_knowing"] for row in rows]
        lines.append(f"ours/all-knowing: {mean(ratios):.2f} on average, {max(ratios):.2f} at most, in {len(rows)} runs")
    return "\n".join(lines)


if __name__ == "__main__":
    began = time.monotonic()
    code = main()
    print(f"{time.monotonic() - began:.0f} s", file=sys.stderr)
    sys.exit(code)
