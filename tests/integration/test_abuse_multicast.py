"""A member that invents others by multicast does not keep those waiting that are known."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import END_S, federation, wait_until

if TYPE_CHECKING:
    from fleet import Fleet

INVENTOR = Path(__file__).with_name("inventor.py")
INVENTED = 150
BACK_S = 2.0  # without inventions it takes half a second


def test_whom_a_node_knows_is_dialled_before_what_is_invented(fleet: Fleet, figure: Any) -> None:
    exit_node = fleet.daemon("exit", "--mdns", backend=fleet.backend("http", "exit"))
    entry = fleet.daemon("entry", "--mdns", peer=exit_node)
    state = ("--state-dir", str(entry.state_dir))
    wait_until(lambda: entry.offers() == {"exit"}, within=10, what="the entry sees the exit")
    exit_id = exit_node.peer_id
    command = [sys.executable, str(INVENTOR), str(fleet.token_file), str(INVENTED)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=entry.environment
    ) as inventor:
        try:
            assert inventor.stdout is not None
            federation("ban", exit_id, *state, home=entry.directory)
            assert inventor.stdout.readline() == "announced\n"
            began = time.monotonic()
            federation("unban", exit_id, *state, home=entry.directory)
            try:
                wait_until(lambda: entry.offers() == {"exit"}, within=BACK_S, what="the entry has the exit again")
            finally:
                figure(
                    f"{INVENTED} members invented by multicast, and a link is lost",
                    f"{'back' if entry.offers() else 'not back'} after {time.monotonic() - began:.1f} s",
                )
        finally:
            inventor.kill()
            inventor.wait(END_S)
