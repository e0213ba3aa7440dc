"""This version and the one before it: in one network, and one after the other on one state directory, both ways."""

from __future__ import annotations

import http.client
import json
from typing import TYPE_CHECKING, Any

import pytest
from harness import wait_until
from old_version import PREVIOUS, OldVersion, command, why_not

if TYPE_CHECKING:
    from fleet import Fleet
    from harness import Daemon

pytestmark = pytest.mark.skipif(bool(why_not(PREVIOUS)), reason=why_not(PREVIOUS) or "-")
SETTLED_S = 20.0


@pytest.fixture(scope="module")
def previous(fleet: Fleet) -> OldVersion:
    return OldVersion(fleet, PREVIOUS)


def chat(node: Daemon, model: str, key: str = "", words: str = "Hello") -> tuple[int, str]:
    """The status, and the node that served it; other words are another conversation, which may have another home."""
    client = http.client.HTTPConnection(*node.entry(), timeout=SETTLED_S)
    messages = [{"role": "user", "content": words}]
    head = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
    client.request("POST", "/v1/chat/completions", json.dumps({"model": model, "messages": messages}), head)
    answer = client.getresponse()
    answer.read()
    client.close()
    return answer.status, answer.headers.get("X-Federation-Node", "")


def options(fleet: Fleet, name: str, *models: str) -> list[str]:
    host, port = fleet.model_server(name, *models).address
    return ["--backend", f"http://{host}:{port}"]


def test_in_one_network_they_serve_each_other_and_share_keys_and_rotations(fleet: Fleet, previous: OldVersion) -> None:
    token_file = fleet.new_token("both-token", "both")
    new = fleet.daemon("new", *options(fleet, "of-new", "llama", "both"), token_file=token_file, owner=True)
    old = previous.daemon("old", *options(fleet, "of-old", "qwen", "both"), token_file=token_file, peer=new)
    for node in (new, old):
        wait_until(lambda node=node: node.sees() == {"new", "old"}, within=SETTLED_S, what=f"{node.name} sees both")
        wait_until(lambda node=node: chat(node, "llama") == (200, "new"), within=SETTLED_S, what=f"{node.name} knows llama")
        wait_until(lambda node=node: chat(node, "qwen") == (200, "old"), within=SETTLED_S, what=f"{node.name} knows qwen")
        served = {chat(node, "both", words=f"Hello {number}") for number in range(40)}
        assert served == {(200, "new"), (200, "old")}, f"one model, two nodes, asked at {node.name}"
        assert chat(node, "none")[0] == 404

    for maker, other in ((new, old), (old, new)):
        key = command(maker, "key", "add", f"of-{maker.name}").strip()
        wait_until(lambda: chat(other, "llama", key)[0] == 200, within=SETTLED_S, what=f"{other.name} takes the key")  # noqa: B023
        command(other, "key", "revoke", f"of-{maker.name}")
        wait_until(lambda: chat(maker, "llama", key)[0] == 401, within=SETTLED_S, what=f"{maker.name} refuses it")  # noqa: B023

    command(new, "token", "rotate", "--grace", "0")
    for node in (new, old):
        assert node.stop() == 0
    for node in (old, new):
        node.start()
    for node, model in ((new, "qwen"), (old, "llama")):
        wait_until(lambda: chat(node, model)[0] == 200, within=SETTLED_S, what=f"{node.name} is in by the new token")  # noqa: B023


def test_a_state_directory_goes_to_this_version_and_back(fleet: Fleet, previous: OldVersion) -> None:
    """An upgrade, and the way back from it: the same node, with its network, bans and keys."""
    backend = options(fleet, "of-moved", "llama")
    node = previous.daemon("moved", *backend, token_file=fleet.new_token("moved-token", "moved"))
    key = command(node, "key", "add", "phone").strip()
    stranger = "12D3KooWHP5LXR4oCkHpbKrTSKbGBMVGFbvLs7VC5nV6PTiAsLHh"
    command(node, "ban", stranger)

    def facts() -> dict[str, Any]:
        status = node.status()
        return {"peer": status["node"]["peer_id"], "network": status["network"], "bans": command(node, "ban")}

    before, environments = facts(), {"previous": dict(node.environment), "this": dict(fleet.environment)}
    assert stranger in str(before["bans"]) or stranger[-6:] in str(before["bans"])
    for version in ("this", "previous", "this"):
        assert node.stop() == 0
        node.environment = environments[version]
        node.start()
        assert facts() == before, f"started by {version}"
        wait_until(lambda: chat(node, "llama", key)[0] == 200, within=SETTLED_S, what=f"{version} knows model and key")
        assert chat(node, "llama", "fedk_wrong")[0] == 401
    command(node, "key", "revoke", "phone")
    assert node.stop() == 0
    node.environment = environments["previous"]
    node.start()
    wait_until(lambda: chat(node, "llama", key)[0] == 401, within=SETTLED_S, what="the key that this one revoked")
