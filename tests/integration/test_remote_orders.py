"""The network's owner drains another node; and what a node of an older version makes of that."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from fleet import owner_key
from harness import federation, http_get, wait_until
from old_version import OldVersion, why_not

if TYPE_CHECKING:
    from fleet import Fleet
    from harness import Daemon


WITH_OWNERS = "d5edd24"  # knows tokens that have an owner, and no orders


def cli(fleet: Fleet, node: Daemon, *arguments: str) -> tuple[int, str, str]:
    done = federation(*arguments, "--state-dir", str(node.state_dir), home=fleet.directory, check=False)
    return done.returncode, done.stdout, done.stderr


def state_of(node: Daemon, name: str) -> str:
    return next(row["state"] for row in node.peers() if row["name"] == name)


def test_the_owner_drains_another_node(fleet: Fleet) -> None:
    token = fleet.new_token("orders-token", "orders")
    ann = fleet.daemon("ann", backend=fleet.backend("http", "ann"), token_file=token, owner=True)
    ben = fleet.daemon("ben", backend=fleet.backend("http", "ben"), token_file=token, peer=ann)
    wait_until(lambda: ann.offers() == ben.offers() == {"ann", "ben"}, within=20, what="both serve")
    assert cli(fleet, ann, "drain", "--node", "ben", "--wait") == (
        0, "drained: nothing is open at ben; it is safe to reboot\n", "",
    )  # fmt: skip
    wait_until(lambda: state_of(ann, "ben") == "draining", within=10, what="ann hears of it")
    assert {http_get(ann.entry()).body for _ in range(8)} == {b"ann"}
    assert cli(fleet, ann, "undrain", "--node", "ben") == (0, "ben takes connections again\n", "")
    wait_until(lambda: state_of(ann, "ben") == "online", within=10, what="ann hears of it")

    # From the node that has no key: refused, and the key in a file signs there.
    code, _, said = cli(fleet, ben, "drain", "--node", "ann")
    assert code == 1
    assert "or give the key by --owner-key FILE" in said
    assert cli(fleet, ben, "drain", "--node", "ann", "--owner-key", str(owner_key(token)))[0] == 0
    wait_until(lambda: state_of(ben, "ann") == "draining", within=10, what="ben hears of it")
    assert cli(fleet, ann, "undrain") == (0, "this node takes connections again\n", "")
    other = fleet.new_token("others-token", "others")
    code, _, said = cli(fleet, ben, "drain", "--node", "ann", "--owner-key", str(owner_key(other)))
    assert (code, "not the owner key of network" in said) == (2, True)
    assert state_of(ann, "ann") == "online"


@pytest.mark.skipif(bool(why_not(WITH_OWNERS)), reason=why_not(WITH_OWNERS) or "-")
def test_an_older_node_is_said_to_be_one_and_goes_on(fleet: Fleet) -> None:
    old = OldVersion(fleet, WITH_OWNERS)
    token = fleet.new_token("mixed-token", "mixed")
    new = fleet.daemon("new", token_file=token, owner=True)
    older = old.daemon("older", backend=fleet.backend("http", "older"), token_file=token, peer=new)
    wait_until(lambda: new.offers() == {"older"}, within=20, what="it serves")
    code, _, said = cli(fleet, new, "drain", "--node", "older")
    assert code == 1
    assert "its version of federation is older. Run `federation drain` on that machine" in said
    assert http_get(new.entry()).body == b"older"
    assert state_of(new, "older") == "online"
    assert "kept away" not in older.log()
