"""Members, and whom a rotation left out, want the network for themselves (rotator.py). None of it is theirs to give.

Each test begins with a network that is whole, and ends with it as it was.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from fleet import owner_key
from harness import federation, wait_until

from federation.mesh.rotation import TAKEN_AT_ONCE
from federation.mesh.tokens import Token
from federation.state import MAX_PREVIOUS

if TYPE_CHECKING:
    from fleet import Fleet
    from harness import Daemon

ROTATOR = Path(__file__).with_name("rotator.py")
SETTLED_S = 12.0  # more than a node without a grace leaves to those that it could not tell (rotation.UNTOLD_STAY_S)


@pytest.fixture(scope="module")
def nodes(fleet: Fleet) -> list[Daemon]:
    """home, where the network's owner key is, and two more."""
    home = fleet.daemon("home", owner=True)
    others = [fleet.daemon(name, peer=home, wait=False) for name in ("second", "third")]
    for node in others:
        node.wait_ready()
    found = [home, *others]
    assert_whole(found)
    return found


def assert_whole(nodes: list[Daemon]) -> None:
    names = {node.name for node in nodes}
    for node in nodes:
        wait_until(lambda node=node: node.sees() >= names, within=20, what=f"{node.name} sees all")


def run(node: Daemon, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return federation(*arguments, "--state-dir", str(node.state_dir), home=node.directory, check=check)


def saved(node: Daemon) -> Token:
    return Token.decode((node.state_dir / "token").read_text())


def attacked(token_file: Path, seed: int, mode: str, nodes: list[Daemon], *options: str) -> dict[str, Any]:
    command = [sys.executable, str(ROTATOR), str(token_file), str(seed), mode, *[node.multiaddr for node in nodes], *options]
    environment = nodes[0].environment if nodes else None
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, env=environment)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def present_token(fleet: Fleet, node: Daemon, name: str) -> Path:
    path = fleet.directory / name
    path.write_text(saved(node).encode())
    return path


def test_a_member_cannot_rotate(fleet: Fleet, nodes: list[Daemon], figure) -> None:
    before = saved(nodes[0])
    result = attacked(present_token(fleet, nodes[0], "foreign"), 11, "foreign", nodes)
    figure("foreign rotation by a member", f"taken by {sum(result['taken'])} of {len(nodes)}")
    assert result["reached"] == len(nodes)
    assert result["taken"] == [False] * len(nodes)
    assert {saved(node).secret for node in nodes} == {before.secret}
    for node in nodes:
        assert "did not sign" in node.log(), node.name  # what no honest member hands on costs it its link


def test_the_highest_number_ends_nothing(fleet: Fleet, nodes: list[Daemon], figure) -> None:
    before = saved(nodes[0])
    result = attacked(present_token(fleet, nodes[0], "highest"), 12, "highest", nodes)
    figure("rotation 2^32-1", f"taken by {sum(result['taken'])} of {len(nodes)}")
    assert result["reached"] == len(nodes)
    assert result["taken"] == [False] * len(nodes)
    answer = json.loads(run(nodes[0], "token", "rotate", "--json").stdout)
    assert answer["rotations"] == before.rotations + 1
    wait_until(lambda: len({saved(node).secret for node in nodes}) == 1, within=10, what="all have the owner's new token")


def test_a_token_for_each_node_takes_nobody_apart(fleet: Fleet, nodes: list[Daemon], figure) -> None:
    result = attacked(present_token(fleet, nodes[0], "each"), 13, "one_each", nodes)
    time.sleep(SETTLED_S)  # they would be cut off by now
    names = {node.name for node in nodes}
    apart = [node.name for node in nodes if not node.sees() >= names]
    figure(
        "a token of its own for each node", f"taken by {sum(result['taken'])}; see no others {SETTLED_S:g} s later: {apart}"
    )
    assert result["reached"] == len(nodes)
    assert apart == []
    assert len({saved(node).secret for node in nodes}) == 1


def test_forged_rotations_without_end(fleet: Fleet, nodes: list[Daemon], figure) -> None:
    victim = nodes[1]
    before = saved(victim)
    result = attacked(present_token(fleet, victim, "flood"), 14, "flood", [victim])
    figure("forged rotations without end", f"{result['taken']} of {result['sent']} taken in {result['seconds']} s")
    assert result["reached"] >= 1
    assert result["taken"] == 0
    assert saved(victim).secret == before.secret
    assert_whole(nodes)


def test_the_owner_s_rotations_without_end(fleet: Fleet, figure) -> None:
    """Genuine ones: a node that is told takes a few, and its disk keeps the tokens that a person gave it."""
    token_file = fleet.new_token("flood-token", "flood")
    head = fleet.daemon("flood-head", token_file=token_file, owner=True)
    victim = fleet.daemon("told", token_file=token_file, peer=head)
    assert_whole([head, victim])
    previous = victim.state_dir / "token.previous"
    given = [f"given-{n}" for n in range(MAX_PREVIOUS)]
    previous.write_text("\n".join(given) + "\n")
    previous.chmod(0o600)
    before = saved(victim)
    options = ("--owner-key", str(owner_key(token_file)), "--grace-ms", "600000")
    result = attacked(present_token(fleet, victim, "genuine"), 17, "flood", [victim, head], *options)
    newest, *rest = previous.read_text().split()
    figure(
        "the owner's rotations without end",
        f"{result['taken']} of {result['reached']} taken in {result['seconds']} s; token.previous has {1 + len(rest)} lines",
    )
    assert result["taken"] == TAKEN_AT_ONCE
    assert result["reached"] > TAKEN_AT_ONCE
    assert "too many" in victim.log()
    assert saved(victim).secret != before.secret
    assert before.is_same_network(newest)
    assert rest == given[: MAX_PREVIOUS - 1]
    wait_until(lambda: saved(head).secret == saved(victim).secret, within=20, what="both have one token")
    assert_whole([head, victim])


def test_whom_a_rotation_left_out_hands_over_nothing_by_hanging_up(fleet: Fleet, nodes: list[Daemon], figure) -> None:
    """In the grace it still has links; what it sends behind the last of them counts no more than the rest.

    The second time the owner's signature is genuine: nothing but the hang-up speaks against it.
    """
    home, second, _ = nodes
    former = present_token(fleet, home, "former")
    out = attacked(former, 15, "id", [])["peer_id"]
    run(home, "token", "rotate", "--except", out)
    wait_until(lambda: len({saved(node).secret for node in nodes}) == 1, within=10, what="all have the new token")
    before = saved(home)
    genuine = ("--owner-key", str(owner_key(fleet.token_file)))
    for victim, *options in ((home,), (second,), (home, *genuine), (second, *genuine)):
        result = attacked(former, 15, "hangs_up", [victim], "--pid", str(victim.pid), *options)
        assert result["reached"] == 1, (victim.name, options)
    time.sleep(2)
    taken = [node.name for node in nodes if saved(node).secret != before.secret]
    figure("left out, and hangs up behind its message", f"its token is taken by {len(taken)} of {len(nodes)}")
    assert taken == []
    assert_whole(nodes)


def test_whom_a_rotation_left_out_has_no_deputy(fleet: Fleet, figure) -> None:
    """It tells a member that was not told yet, which would hand it on with full rights."""
    token_file = fleet.new_token("deputy-token", "deputy")
    home = fleet.daemon("head", token_file=token_file, owner=True)
    late = fleet.daemon("late", token_file=token_file, peer=home)
    assert_whole([home, late])
    former = present_token(fleet, home, "former-2")
    out = attacked(former, 16, "id", [])["peer_id"]
    run(late, "ban", home.peer_id)  # so that it is not told
    wait_until(lambda: late.sees() == {"late"}, within=10, what="late is alone")
    run(home, "token", "rotate", "--except", out)
    told = saved(home)
    result = attacked(former, 16, "foreign", [late, home], "--grace-ms", "3600000")
    assert result["reached"] == 2
    assert result["taken"] == [False, False]
    assert "did not sign" in late.log()
    run(late, "unban", home.peer_id)
    assert_whole([home, late])
    wait_until(lambda: saved(late).secret == saved(home).secret, within=20, what="both have one token")
    figure(
        "left out, by a deputy",
        f"the owner's node has {'the' if saved(home).secret == told.secret else 'NOT the'} owner's token",
    )
    assert saved(home).secret == told.secret


@pytest.fixture(scope="module")
def bad_ones(fleet: Fleet) -> dict[str, Daemon]:
    """A network with its owner, a bad node, another one, and one that is named as `peers` shows the bad one's id."""
    token_file = fleet.new_token("bad-token", "bad")
    origin = fleet.daemon("origin", token_file=token_file, owner=True)
    found = {"origin": origin}
    for name in ("bad", "other"):
        found[name] = fleet.daemon(name, token_file=token_file, peer=origin, wait=False)
    for node in found.values():
        node.wait_ready()
    found["decoy"] = fleet.daemon(found["bad"].peer_id[-6:], token_file=token_file, peer=origin)
    assert_whole(list(found.values()))
    return found


def test_who_is_named_like_the_end_of_an_id_is_not_guessed(bad_ones: dict[str, Daemon], figure) -> None:
    """Nobody is left out or banned before a person said who is meant."""
    origin, bad, decoy = (bad_ones[name] for name in ("origin", "bad", "decoy"))
    before = saved(origin)
    done = run(origin, "token", "rotate", "--grace", "0", "--except", bad.peer_id[-6:], check=False)
    figure("--except by the end of an id that is a decoy's name", f"exit {done.returncode}; {done.stdout or done.stderr!r}")
    assert (done.returncode, done.stdout) == (2, "")
    for answer in (done, run(origin, "ban", bad.peer_id[-6:], check=False)):
        assert answer.returncode == 2
        assert answer.stderr.count("\n") == 1
        assert bad.peer_id in answer.stderr
        assert decoy.peer_id in answer.stderr
    assert saved(origin).secret == before.secret


def test_a_damaged_id_leaves_out_and_bans_nobody(bad_ones: dict[str, Daemon], figure) -> None:
    """Pasted without its end, or with a letter too much: the person hears of it, and the bad node is told nothing."""
    origin, bad = bad_ones["origin"], bad_ones["bad"]
    before = saved(origin)
    asked = [("--except", text) for text in (bad.peer_id[:48], bad.peer_id[:-1], bad.peer_id[1:-1], f"{bad.peer_id}x")]
    done = [run(origin, "token", "rotate", "--grace", "0", *option, check=False) for option in asked]
    done += [run(origin, "ban", text, check=False) for text in (bad.peer_id[:48], bad.peer_id[:-1])]
    figure("--except with a damaged id", f"exit {done[0].returncode}; {done[0].stdout or done[0].stderr!r}")
    for answer in done:
        assert (answer.returncode, answer.stdout, answer.stderr.count("\n")) == (1, "", 1)
    assert saved(origin).secret == before.secret
    assert run(origin, "ban").stdout == "nobody is banned here\n"


def test_who_is_banned_is_not_told(bad_ones: dict[str, Daemon], figure) -> None:
    origin, bad, other, decoy = (bad_ones[name] for name in ("origin", "bad", "other", "decoy"))
    run(origin, "ban", bad.peer_id)
    said = run(origin, "token", "rotate", "--grace", "0").stdout
    wait_until(lambda: saved(other).secret == saved(decoy).secret == saved(origin).secret, within=20, what="others have it")
    time.sleep(3)  # by way of another node it would have it by now
    has_it = saved(bad).secret == saved(origin).secret
    figure("banned peer after a rotation", "has the new token" if has_it else "does not have the new token")
    assert not has_it
    assert f"left out: bad ({bad.peer_id})\n" in said
    wait_until(lambda: other.sees() == {"origin", "other", decoy.name}, within=20, what="bad is out, at all nodes")
