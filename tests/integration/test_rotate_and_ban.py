"""A token is rotated under four daemons, one is left out, one misses it; and one node bans another."""

from __future__ import annotations

import json
import re
import time
from typing import TYPE_CHECKING

import pytest
from fleet import owner_key
from harness import federation, http_get, wait_until

from federation.mesh.tokens import Token

if TYPE_CHECKING:
    from fleet import Fleet
    from harness import Daemon

GRACE_S = 2.0


@pytest.fixture(scope="module")
def nodes(fleet: Fleet) -> dict[str, Daemon]:
    """Everybody knows home's address; home has the owner's key; home and out have a backend."""
    home = fleet.daemon("home", backend=fleet.backend("http", "home"), owner=True)
    out = fleet.daemon("out", backend=fleet.backend("http", "out"), peer=home, wait=False)
    others = [fleet.daemon(name, peer=home, wait=False) for name in ("away", "third")]
    found = {"home": home, "out": out, **{node.name: node for node in others}}
    for node in (out, *others):
        node.wait_ready()
    for node in found.values():
        wait_until(lambda node=node: node.sees() == set(found), within=5, what=f"{node.name} sees all")
    return found


def run(node: Daemon, *arguments: str) -> str:
    return federation(*arguments, "--state-dir", str(node.state_dir), home=node.directory).stdout


def saved(node: Daemon) -> Token:
    return Token.decode((node.state_dir / "token").read_text())


def test_a_banned_peer_is_out_at_once_and_back_when_it_is_let_in(nodes, figure) -> None:
    third, out = nodes["third"], nodes["out"]
    assert run(third, "ban") == "nobody is banned here\n"
    start = time.monotonic()
    assert run(third, "ban", "out").startswith(f"banned out ({out.peer_id}): its connection is cut")
    wait_until(lambda: "third" not in out.sees(), within=2, what="out is cut off")
    figure("banned peer cut off, command included", f"{time.monotonic() - start:.2f} s")
    assert third.offers() == {"home"}
    assert {http_get(third.entry()).body for _ in range(6)} == {b"home"}
    assert {row["name"]: row["state"] for row in third.peers()}["out"] == "banned"
    wait_until(lambda: "has banned this node" in out.log(), within=5, what="out is told")
    assert run(third, "unban", out.peer_id[-6:]).startswith(f"no longer banned: out ({out.peer_id})")
    wait_until(lambda: third.offers() == {"home", "out"}, within=5, what="out is let in")
    assert third.log().count("a banned peer was refused") == 1
    run(third, "ban", "out")  # up to the next restart, and over it


def test_a_new_token_for_all_but_one_and_one_that_misses_it(nodes, fleet, figure) -> None:
    home, out, away, third = (nodes[name] for name in ("home", "out", "away", "third"))
    before = saved(home)
    assert away.stop() == 0
    assert run(away, "ban", out.peer_id) == f"banned {out.peer_id}, from the next start on\n"
    start = time.monotonic()
    said = run(home, "token", "rotate", "--except", "out")
    figure("token rotated, command included", f"{time.monotonic() - start:.2f} s")
    assert "told: third\n" in said
    assert f"left out: out ({out.peer_id})\n" in said
    after = saved(home)
    assert (after.network_id, after.topic(), after.rotations) == (before.network_id, before.topic(), 1)
    assert saved(third).secret == after.secret != before.secret
    assert saved(out).secret == before.secret

    # In the grace both admit, over restarts.
    invited = Token.decode(run(home, "invite").strip())
    assert invited.secret == after.secret
    newcomer = fleet.daemon("newcomer", token_file=written(fleet, "new", invited), wait=False)
    assert third.stop() == 0
    third.start()
    newcomer.wait_ready()
    three = {"home", "third", "newcomer"}
    wait_until(lambda: home.sees() == three | {"out"}, within=5, what="home has all, by either token")
    wait_until(lambda: third.sees() == newcomer.sees() == three, within=5, what="third still keeps out away")
    assert out.sees() == {"home", "out"}

    # Then only the new one; and whom the first rotation left out, the next one does not take back.
    # third has not the owner's key: it says who does; a person who brings the key signs there.
    done = federation("token", "rotate", "--state-dir", str(third.state_dir), home=third.directory, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert f"home ({home.peer_id}) says that it is there" in done.stderr
    key = owner_key(fleet.token_file)
    answer = json.loads(run(third, "token", "rotate", "--grace", f"{GRACE_S:g}s", "--json", "--owner-key", str(key)))
    assert (sorted(answer["told"]), answer["left_out"]) == (["home", "newcomer"], [])
    assert not list(third.state_dir.glob("owner-*"))
    wait_until(lambda: "out" not in home.sees() | third.sees(), within=GRACE_S + 3, what="out is out")
    wait_until(lambda: out.sees() == {"out"}, within=5, what="out is alone")
    assert home.sees() >= {"home", "third", "newcomer"}
    assert {http_get(third.entry()).body for _ in range(6)} == {b"home"}
    wait_until(lambda: warned(out), within=10, what="out says so in its status")

    # Who was off all that time is told, and joins by hand with what `invite` prints; nothing else is needed.
    away.start()
    wait_until(lambda: warned(away), within=10, what="away says that its token is no longer valid")
    assert away.sees() == {"away"}
    assert "federation invite" in away.log()
    wait_until(lambda: "from before the rotation" in home.log() + third.log(), within=2, what="the others' logs say it too")
    assert away.stop() == 0
    token_file = written(fleet, "by-hand", Token.decode(run(home, "invite").strip()))
    away.options = ["--token-file", str(token_file)]
    away.start()
    wait_until(lambda: {"home", "third", "newcomer", "away"} == away.sees(), within=5, what="away is back")
    assert not warned(away)
    assert out.peer_id in run(away, "ban")
    for node in nodes.values():
        assert_no_secret_in_its_log(node, before, after, saved(home))


def test_where_the_owners_key_is_and_its_backup(nodes, fleet) -> None:
    home, third = nodes["home"], nodes["third"]
    assert "key      here" in run(home, "owner", "show")
    shown = json.loads(run(third, "owner", "show", "--json"))
    assert (shown["owner_here"], shown["owner_at"]) == (False, [f"home ({home.peer_id})"])
    done = federation("owner", "export", "--state-dir", str(home.state_dir), home=home.directory)
    assert done.stdout == owner_key(fleet.token_file).read_text()
    assert "decides who is a member" in done.stderr
    done = federation("owner", "export", "--state-dir", str(third.state_dir), home=third.directory, check=False)
    assert (done.returncode, done.stdout) == (1, "")


def test_a_key_that_was_taken_away_is_not_said_to_be_here(nodes) -> None:
    def said() -> tuple[bool, list[str]]:
        own, others = (json.loads(run(nodes[name], "owner", "show", "--json")) for name in ("home", "third"))
        return own["owner_here"], others["owner_at"]

    home = nodes["home"]
    (key,) = home.state_dir.glob("owner-*.key")
    aside = key.rename(home.state_dir / "aside")
    wait_until(lambda: said() == (False, []), within=30, what="nobody has it")
    aside.rename(key)
    wait_until(lambda: said() == (True, [f"home ({home.peer_id})"]), within=30, what="it is back")


def test_a_service_file_with_the_first_token_does_not_undo_it(nodes) -> None:
    """third was given the first token by its options at each start."""
    third = nodes["third"]
    assert third.options[0] == "--token-file"
    assert "from before it was rotated" in third.log()
    assert saved(third).rotations == 2


def test_without_a_grace_who_is_left_out_is_out_at_once(nodes, figure) -> None:
    home, away, third = (nodes[name] for name in ("home", "away", "third"))
    start = time.monotonic()
    answer = json.loads(run(home, "token", "rotate", "--grace", "0", "--except", "third", "--json"))
    assert sorted(answer["told"]) == ["away", "newcomer"]
    assert (answer["rotations"], answer["former_until"], answer["not_told"]) == (3, None, [])
    wait_until(lambda: third.sees() == {"third"}, within=2, what="third is cut off by all")
    figure("left out without a grace, command included", f"{time.monotonic() - start:.2f} s")
    assert home.sees() == away.sees() == {"home", "away", "newcomer"}
    assert saved(away).secret == saved(home).secret != saved(third).secret
    wait_until(lambda: warned(third), within=10, what="third says so")


def warned(node: Daemon) -> bool:
    return any("no longer valid" in warning for warning in node.status()["warnings"])


def written(fleet: Fleet, name: str, token: Token):
    path = fleet.directory / name
    path.write_text(token.encode())
    return path


def assert_no_secret_in_its_log(node: Daemon, *tokens: Token) -> None:
    log = node.log()
    for token in tokens:
        for secret in (token.secret, token.admission_key()):
            assert secret.hex() not in log
        assert token.encode()[5:30] not in log
    assert not re.search(r"fed(key)?\d_", log)
