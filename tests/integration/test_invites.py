"""Invites on real daemons: by code, expired, used, raced, approved, refused, revoked; over restarts and a rotation; and
with an older version."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from harness import END_S, Daemon, clean_environment, federation, free_port, wait_until
from old_version import OldVersion, why_not

from federation.errors import TokenError
from federation.mesh.invite_codes import InviteCode
from tests.support.secret_parts import found_in

if TYPE_CHECKING:
    from pathlib import Path

    from fleet import Fleet


PATIENCE_S = 60.0  # a newcomer imports before it asks, and three race


def run(node: Daemon, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return federation(*arguments, "--state-dir", str(node.state_dir), home=node.directory, check=check)


def invites(node: Daemon) -> dict[str, Any]:
    answer: dict[str, Any] = node.api("invites")
    return answer


class Guest(Daemon):
    """A machine that has nothing but a code, which it reads from a file, as from `--token-file -`."""

    def __init__(self, fleet: Fleet, name: str, code: str) -> None:
        directory = fleet.directory / name
        super().__init__(name, directory, [], ("default",), fleet.environment)
        (directory / "code").write_text(code)
        (directory / "code").chmod(0o600)
        self.options = ["--token-file", str(directory / "code")]
        fleet.processes.append(self)
        self.codes = [code]

    def ended(self, code: int = 1) -> str:
        """Its last words."""
        assert self.wait() == code, self.log_tail()
        return self.log()


@pytest.fixture(scope="module")
def ada(fleet: Fleet) -> Daemon:
    return fleet.daemon("ada", owner=True)


@pytest.fixture
def guest(fleet: Fleet, ada: Daemon) -> Any:
    """A guest that was started with a code; ended with the test, for others to have their turn."""
    guests: list[Guest] = []

    def start(name: str, code: str) -> Guest:
        guests.append(Guest(fleet, name, code))
        guests[-1].launch()
        return guests[-1]

    yield start
    for one in guests:
        if one.alive:
            one.stop()


def code_of(node: Daemon, *options: str) -> str:
    return run(node, "invite", *options).stdout.strip()


def waits(node: Daemon, *names: str) -> bool:
    return {row["name"] for row in invites(node)["waiting"]} == set(names)


def test_one_machine_comes_by_a_code(ada: Daemon, guest: Any) -> None:
    code = code_of(ada, "--expires", "1h", "--uses", "1")
    bea = guest("bea", code)
    bea.wait_ready(PATIENCE_S)
    wait_until(lambda: {"ada", "bea"} <= ada.sees(), within=PATIENCE_S, what="ada sees bea")
    second = guest("second", code)
    assert "used as often as it may be" in second.ended()
    assert not (second.state_dir / "token").exists()
    (row,) = [row for row in invites(ada)["invites"] if row["used"]]
    assert [(use["name"], use["confirmed"]) for use in row["used"]] == [("bea", True)]
    assert row["used"][0]["peer_id"] == bea.peer_id
    # A service keeps the code in its unit: each start shows it, and asks nobody.
    bea.stop()
    bea.start()
    assert "the saved one is used" in bea.log()


def test_of_those_who_race_one_comes_in(ada: Daemon, guest: Any) -> None:
    code = code_of(ada, "--uses", "1")
    racers = [guest(f"racer{n}", code) for n in range(3)]

    def over(racer: Guest) -> bool:
        return not racer.alive or racer._read_facts() is not None

    for racer in racers:
        wait_until(lambda racer=racer: over(racer), within=PATIENCE_S, what=f"{racer.name} is in or out")
    assert sum(racer.alive for racer in racers) == 1
    assert sum((racer.state_dir / "token").exists() for racer in racers) == 1
    assert all("used as often as it may be" in racer.ended() for racer in racers if not racer.alive)


def test_expired_and_revoked(ada: Daemon, guest: Any) -> None:
    brief, gone = code_of(ada, "--expires", "1s"), code_of(ada, "--expires", "1h")
    which = invites(ada)["invites"][-1]["id"]
    assert f"the invite {which} is revoked" in run(ada, "invite", "--revoke", which).stdout
    assert run(ada, "invite", "--revoke", which, check=False).returncode == 1
    wait_until(lambda: invites(ada)["invites"][-2]["state"] == "expired", within=PATIENCE_S, what="it expires")
    assert "has expired" in guest("late", brief).ended()
    assert "was revoked" in guest("unwanted", gone).ended()
    damaged = guest("damaged", gone[:-2])
    assert "damaged on the way" in damaged.ended(2)
    assert "revoked" in run(ada, "invite", "--list").stdout


def test_somebody_says_yes_and_no_and_the_inviter_restarts_meanwhile(ada: Daemon, guest: Any) -> None:
    code = code_of(ada, "--uses", "2", "--approve")
    yes, no = guest("yes", code), guest("no", code)
    wait_until(lambda: waits(ada, "yes", "no"), within=PATIENCE_S, what="both wait")
    for newcomer in (yes, no):
        wait_until(lambda node=newcomer: "somebody's yes on ada" in node.log(), within=PATIENCE_S, what="it says so")
    row = next(row for row in invites(ada)["waiting"] if row["name"] == "yes")
    assert row["peer_id"] in yes.log(), "a person can compare the ids"
    assert row["address"].startswith("127.0.0.1:")
    assert not (yes.state_dir / "token").exists()
    ada.kill()
    ada.start()
    wait_until(lambda: waits(ada, "yes", "no"), within=PATIENCE_S, what="both wait again")
    assert row["peer_id"] in run(ada, "approve").stdout
    assert "is let in" in run(ada, "approve", "yes").stdout
    assert "is turned away" in run(ada, "refuse", "no").stdout
    yes.wait_ready(PATIENCE_S)
    assert "said no" in no.ended()
    wait_until(lambda: "yes" in ada.sees(), within=PATIENCE_S, what="ada sees it")
    assert run(ada, "approve", "yes", check=False).returncode != 0
    assert waits(ada)


def test_a_newcomer_that_is_killed_while_it_waits_burns_nothing(ada: Daemon, guest: Any) -> None:
    code = code_of(ada, "--uses", "1", "--approve")
    first = guest("first", code)
    wait_until(lambda: waits(ada, "first"), within=PATIENCE_S, what="it waits")
    first.kill()
    wait_until(lambda: waits(ada), within=PATIENCE_S, what="it waits no more")
    other = guest("other", code)
    wait_until(lambda: waits(ada, "other"), within=PATIENCE_S, what="another one waits")
    run(ada, "approve", "other")
    other.wait_ready(PATIENCE_S)


def test_an_invite_of_before_a_rotation_hands_over_the_new_token(ada: Daemon, guest: Any) -> None:
    code = code_of(ada, "--expires", "1h")
    answer = run(ada, "token", "rotate", "--grace", "0").stdout
    count = sum(row["state"] == "open" for row in invites(ada)["invites"])
    assert f"{count} invite" in answer, "whoever has such a code gets the new token: the person is told"
    assert "with the new token; to end that: federation invite --revoke all" in answer
    newcomer = guest("newcomer", code)
    newcomer.wait_ready(PATIENCE_S)
    wait_until(lambda: "newcomer" in ada.sees(), within=PATIENCE_S, what="ada sees it")
    assert newcomer.status()["network"]["rotations"] == 1


def test_the_inviter_is_gone(ada: Daemon, guest: Any, tmp_path: Path) -> None:
    nowhere = InviteCode.decode(code_of(ada, "--uses", "1"))
    port = free_port()
    moved = InviteCode(nowhere.secret, nowhere.expires_at, (type(nowhere.addresses[0])("127.0.0.1", port),))
    lost = guest("lost", moved.encode())
    assert f"does not answer: tried 127.0.0.1:{port}" in lost.ended()


@pytest.mark.skipif(bool(why_not()), reason=why_not() or "-")
def test_an_older_version_is_told_and_named(ada: Daemon, guest: Any, fleet: Fleet) -> None:
    old = OldVersion(fleet)
    token_file = old.new_token("old-network")
    elder = old.daemon("elder", token_file=token_file)
    host, port = elder.p2p
    code = InviteCode.decode(code_of(ada, "--uses", "1"))
    there = InviteCode(code.secret, code.expires_at, (type(code.addresses[0])(host, port),)).encode()
    assert "An older version of federation answers there" in guest("young", there).ended()
    done = subprocess.run(
        [sys.executable, "-m", "federation", "join", "--token-file", "-", "--state-dir", str(fleet.directory / "aged")],
        env={**clean_environment(fleet.directory), **old.environment}, cwd=fleet.directory, input=there, text=True,
        capture_output=True, timeout=END_S,
    )  # fmt: skip
    assert (done.returncode, "made by a newer version" in done.stderr) == (2, True)
    assert elder.sees() == {"elder"}
    # In one network with older nodes: these hear nothing of invites, and the newcomer is a member like any other.
    young = fleet.daemon("young-member", token_file=token_file, peer=elder)
    come = guest("come", code_of(young, "--uses", "1"))
    come.wait_ready(PATIENCE_S)
    wait_until(
        lambda: elder.sees() == {"elder", "young-member", "come"}, within=PATIENCE_S, what="the older one sees the newcomer"
    )


def test_no_secret_anywhere(ada: Daemon, fleet: Fleet) -> None:
    codes = [code for process in fleet.processes if isinstance(process, Guest) for code in process.codes]
    assert len(codes) > 10
    decoded = [InviteCode.decode(code) for code in codes if _is_whole(code)]
    secrets: dict[str, bytes | str] = {}
    for n, code in enumerate(decoded):
        secrets |= {f"code {n}": code.encode()[8:30], f"secret {n}": code.secret, f"key {n}": code.key}
    for process in fleet.processes:
        assert found_in(process.log(), secrets) == []
        assert not any(part in " ".join(process.command) for part in secrets.values() if isinstance(part, str))
    told = [
        run(ada, *words, check=False).stdout for words in (("logs", "--last", "1000"), ("doctor",), ("invite", "--list"))
    ]
    said = json.dumps([ada.status(), invites(ada), *told])
    assert found_in(said, secrets) == []
    for path in ada.state_dir.iterdir():
        if path.is_file():
            assert path.stat().st_mode & 0o077 == 0, path


def _is_whole(code: str) -> bool:
    try:
        InviteCode.decode(code)
    except TokenError:
        return False
    return True
