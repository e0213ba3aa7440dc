"""A network from before there were owners, with nodes of that version in it: it goes on, but nobody rotates its token.

What an old node hands over, the new ones refuse; an old node that rotates takes its own kind along and nobody else.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from harness import END_S, http_get, wait_until
from old_version import OldVersion, why_not

from federation.mesh.tokens import Token

if TYPE_CHECKING:
    from fleet import Fleet
    from harness import Daemon

ROTATOR = Path(__file__).with_name("rotator.py")
SETTLED_S = 12.0  # more than the old version leaves to those that it could not tell

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())


@pytest.fixture(scope="module")
def nodes(fleet: Fleet) -> dict[str, Daemon]:
    """Three of this version, two of the old one; the token is the old one's."""
    old = OldVersion(fleet)
    token_file = old.new_token("before")
    token_file.chmod(0o600)
    first = fleet.daemon("new1", token_file=token_file, backend=fleet.backend("http", "new1"))
    found = {"new1": first}
    for name in ("new2", "new3"):
        found[name] = fleet.daemon(name, token_file=token_file, peer=first, wait=False)
    found["old1"] = old.daemon("old1", token_file=token_file, peer=first, wait=False, backend=fleet.backend("http", "old1"))
    found["old2"] = old.daemon("old2", token_file=token_file, peer=first, wait=False)
    for node in found.values():
        node.wait_ready()
    for node in found.values():
        wait_until(lambda node=node: node.sees() == set(found), within=20, what=f"{node.name} sees all")
    return found


def run(node: Daemon, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A command, in the version of that node."""
    return subprocess.run(
        [sys.executable, "-m", "federation", *arguments, "--state-dir", str(node.state_dir)],
        env=node.environment, cwd=node.directory, capture_output=True, text=True, timeout=END_S, check=False,
    )  # fmt: skip


def saved(node: Daemon) -> Token:
    return Token.decode((node.state_dir / "token").read_text())


def test_all_serve_each_other(nodes: dict[str, Daemon]) -> None:
    for node in nodes.values():
        wait_until(lambda node=node: node.offers() == {"new1", "old1"}, within=20, what=f"{node.name} has both backends")
        assert {http_get(node.entry()).body for _ in range(8)} == {b"new1", b"old1"}


def test_a_node_of_this_version_says_why_it_does_not_rotate_and_how_to_move(nodes: dict[str, Daemon]) -> None:
    before = saved(nodes["new1"])
    done = run(nodes["new1"], "token", "rotate")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert "no owner key" in done.stderr
    assert "federation token new" in done.stderr
    assert {saved(node).secret for node in nodes.values()} == {before.secret}


def test_an_old_node_cannot_read_the_token_of_a_network_with_an_owner_and_says_so(fleet: Fleet, nodes) -> None:
    owned = fleet.new_token("owned", "owned")
    done = run(nodes["old2"], "token", "inspect", owned.read_text().strip())
    assert done.returncode == 2
    assert done.stderr == "federation: The token was made by a newer version of federation; upgrade this machine\n"


def test_what_a_member_hands_over_is_not_taken(nodes: dict[str, Daemon], figure) -> None:
    """As the old version takes it from any member; the member that tries is none of ours."""
    new = [node for name, node in nodes.items() if name.startswith("new")]
    before = saved(new[0])
    token_file = new[0].directory / "present"
    token_file.write_text(before.encode())
    taken = 0
    for seed, mode in ((21, "foreign"), (22, "highest"), (23, "one_each")):
        command = [sys.executable, str(ROTATOR), str(token_file), str(seed), mode, *[node.multiaddr for node in new]]
        done = subprocess.run(command, env=new[0].environment, capture_output=True, text=True, timeout=60, check=True)
        taken += sum(json.loads(done.stdout)["taken"])
    figure("rotations by a member, without an owner", f"{taken} of 9 taken by nodes of this version")
    assert taken == 0
    assert {saved(node).secret for node in new} == {before.secret}
    for node in new:
        assert node.log().count("not taken, since it has no owner") == 3  # once for each who hands it over


def test_an_old_node_that_rotates_takes_over_nobody_of_this_version(nodes: dict[str, Daemon], figure) -> None:
    new = [node for name, node in nodes.items() if name.startswith("new")]
    before = saved(new[0])
    done = run(nodes["old1"], "token", "rotate", "--grace", "0")
    assert done.returncode == 0, done.stderr
    wait_until(lambda: saved(nodes["old2"]).secret == saved(nodes["old1"]).secret, within=20, what="the old ones share it")
    assert saved(nodes["old1"]).secret != before.secret
    time.sleep(SETTLED_S)  # the old ones hang up on whom they could not tell
    taken = [node.name for node in new if saved(node).secret != before.secret]
    figure("rotation by a node of f919b4d, without an owner", f"taken by {len(taken)} of 3 nodes of this version")
    assert taken == []
    for node in new:
        assert {"new1", "new2", "new3"} <= node.sees()
        assert http_get(node.entry()).body == b"new1"
        refused = [line for line in node.log().splitlines() if "not taken, since it has no owner" in line]
        by_old = [line for line in refused if any(nodes[name].peer_id in line for name in ("old1", "old2"))]
        assert 1 <= len(by_old) <= 2  # once an hour for each who hands it over
