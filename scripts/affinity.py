"""How much of their prompts chats find in the caches of boxes behind real daemons, each turn through an entry by chance.

Daemons with a model server each that keeps prompts in blocks, and people with one system prompt who chat for six turns.
Printed: the share of the prompts' blocks that were cached, and the busiest box's load over the mean. Beside it, computed on
the very turns that the daemons had: one box alone (the most that there is to find), and dice. And the daemons again with
--affinity off. Exit code 1 if a request failed.

Everything started here is ended here; only 127.0.0.0/8 is addressed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "tests" / "integration"), str(HERE)]

from chatting import Box, Crowd, elsewhere, found_by  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fleet import Fleet
    from harness import Daemon


def main() -> int:
    given = parse(sys.argv[1:])
    rows = asyncio.run(measure(given))
    print(table(rows))
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 1 if any(row.get("errors") for row in rows) else 0


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/affinity", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    number = counted(1, 4096)
    parser.add_argument("--nodes", type=counted(1, 16), default=3, metavar="N", help="each an entry, with a box (3)")
    parser.add_argument("--chats", type=counted(1, 200), default=36, metavar="N", help="at once (36)")
    parser.add_argument("--total", type=number, default=108, metavar="N", help="chats in a run, one after the other (108)")
    parser.add_argument("--blocks", type=counted(32, 1 << 20), default=2048, metavar="N", help="that a box keeps (2048)")
    parser.add_argument("--pace", type=float, default=1.0, metavar="X", help="0.5: everything takes half as long (1)")
    parser.add_argument("--runs", type=number, default=1, metavar="N")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="FILE")
    given = parser.parse_args(arguments)
    if not 0.05 <= given.pace <= 10:
        parser.error("--pace: 0.05 to 10")
    return given


def counted(least: int, most: int) -> Any:
    def number(text: str) -> int:
        if not text.isdecimal() or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"{text}: a number from {least} to {most}")
        return int(text)

    return number


async def measure(given: argparse.Namespace) -> list[dict[str, Any]]:
    from fleet import Fleet

    boxes = [Box(n, given.blocks, random.Random(f"{given.seed} box {n}"), given.pace) for n in range(given.nodes)]
    servers = [await box.start() for box in boxes]
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="federation-affinity-") as directory:
        for affinity in ("on", "off"):
            fleet = Fleet(Path(directory) / affinity)
            fleet.directory.mkdir()
            try:
                daemons = await asyncio.to_thread(start, fleet, boxes, affinity)
                for run in range(given.runs):
                    rows += await one_run(boxes, daemons, affinity, run + 1, given)
            finally:
                wrong = await asyncio.to_thread(fleet.close)
            for complaint in wrong:
                print(f"affinity: {complaint}", file=sys.stderr)
    for server in servers:
        server.close()
    return rows


def start(fleet: Fleet, boxes: Sequence[Box], affinity: str) -> list[Daemon]:
    """The daemons, when each knows the model of every other."""
    from harness import START_S, wait_until

    daemons: list[Daemon] = []
    for box in boxes:
        options = ("--listen", "http://127.0.0.1:0", "--backend", f"http://127.0.0.1:{box.port}", "--affinity", affinity)
        first = daemons[0] if daemons else None
        options += ("--log-level", "warning", "--no-detect")
        daemons.append(fleet.daemon(f"{affinity}{box.number}", *options, services=(), peer=first, wait=not daemons))
    for daemon in daemons:
        daemon.wait_ready(START_S)
    for daemon in daemons:
        wait_until(lambda d=daemon: knows(d) == len(boxes), within=60, what=f"{daemon.name} knows every box's model")
    return daemons


def knows(daemon: Daemon) -> int:
    return sum(len(row["places"]) for row in daemon.api("models")["models"])


async def one_run(
    boxes: Sequence[Box], daemons: Sequence[Daemon], affinity: str, run: int, given: argparse.Namespace
) -> list[dict[str, Any]]:
    for box in boxes:
        box.forget()
    rng = random.Random(f"{given.seed} {run}")
    crowd = Crowd([daemon.entry() for daemon in daemons], given.chats, given.total, rng, given.pace)
    await crowd.run()
    for error in crowd.errors[:5]:
        print(f"affinity: {error}", file=sys.stderr)
    turns = [turn for box in boxes for turn in box.turns]
    real = {
        "run": run, "what": f"daemons, --affinity {affinity}", **found_by(turns, len(boxes))._asdict(),
        "turn_s": median(crowd.took_s), "turns_by_box": [len(box.turns) for box in boxes], "errors": len(crowd.errors),
    }  # fmt: skip
    if affinity == "off":
        return [real]
    dice = random.Random(f"{given.seed} {run} dice")
    alone = elsewhere(turns, 1, given.blocks, lambda: 0)
    thrown = elsewhere(turns, len(boxes), given.blocks, lambda: dice.randrange(len(boxes)))
    computed = {"one box alone (computed)": alone, "dice (computed)": thrown}
    return [real, *({"run": run, "what": what, **found._asdict()} for what, found in computed.items())]


def table(rows: Sequence[dict[str, Any]]) -> str:
    lines = ["run  what                        cached  busiest/mean  median turn  turns by box      errors"]
    for row in rows:
        line = f"{row['run']:>3}  {row['what']:<27} {row['cached']:>6.3f}  {row['busiest']:>12.2f}"
        if "turn_s" in row:
            line += f"  {row['turn_s']:>9.2f} s  {' '.join(map(str, row['turns_by_box'])):<16}  {row['errors']:>6}"
        lines.append(line)
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
