"""Rotations given on another node than the one before: whom an earlier one left out stays out."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from fleet import owner_key
from harness import federation, wait_until

from federation.mesh.tokens import Token

if TYPE_CHECKING:
    from fleet import Fleet
    from harness import Daemon

TOLD_S = 3.0  # a member that may be told has the new token long before


def run(node: Daemon, *arguments: str) -> str:
    return federation(*arguments, "--state-dir", str(node.state_dir), home=node.directory).stdout


def saved(node: Daemon) -> Token:
    return Token.decode((node.state_dir / "token").read_text())


def sees(node: Daemon, names: set[str]) -> None:
    wait_until(lambda: node.sees() >= names, within=20, what=f"{node.name} sees {sorted(names)}")


def test_whom_a_rotation_left_out_is_not_told_by_order_of_a_newcomer(fleet: Fleet, figure) -> None:
    """In the grace it is still linked with the others. The newcomer was given the token, and knows of no order."""
    key = owner_key(fleet.token_file)
    home = fleet.daemon("home", owner=True)
    other, bad = (fleet.daemon(name, peer=home, wait=False) for name in ("other", "bad"))
    for node in (other, bad):
        node.wait_ready()
    for node in (home, other, bad):
        sees(node, {"home", "other", "bad"})
    run(home, "token", "rotate", "--except", bad.peer_id)
    wait_until(lambda: saved(other).secret == saved(home).secret, within=10, what="the other one has the new token")
    given = fleet.directory / "given"
    given.write_text((home.state_dir / "token").read_text())
    given.chmod(0o600)
    newcomer = fleet.daemon("newcomer", peer=home, token_file=given)
    sees(newcomer, {"home", "other"})
    wait_until(lambda: "bad" in {row["name"] for row in newcomer.peers()}, within=10, what="the newcomer has heard of bad")
    run(newcomer, "token", "rotate", "--owner-key", str(key))
    wait_until(lambda: saved(other).secret == saved(home).secret == saved(newcomer).secret, within=10, what="all have it")
    time.sleep(TOLD_S)
    has_it = saved(bad).secret == saved(newcomer).secret
    figure("left out, then a rotation by a newcomer in the grace", f"{'has' if has_it else 'does not have'} the new token")
    assert not has_it
