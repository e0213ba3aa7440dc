"""`federation use`, against a control API that notes what it is told."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from federation.use.clients import CLIENTS

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.cli import Api

NEW_KEY = "fedk_newnewnewnew"


def listener(address: str, **more: Any) -> dict[str, Any]:
    return {"service": "default", "address": address, "scheme": "http", "names": [], "asks_key": False, **more}


@pytest.fixture
def node(api: Api) -> dict[str, Any]:
    node = {"listeners": [listener("127.0.0.1:8484")]}
    places = [{"service": "default", "warm": True}]
    api.answers["GET status"] = [{"node": node}]
    api.answers["GET models"] = [{"models": [{"name": "gemma", "places": places}, {"name": "qwen", "places": places}]}]
    api.answers["POST keys/add"] = [{"key": NEW_KEY}]
    api.answers["POST keys/revoke"] = [{}]
    return node


def test_the_list_needs_no_node(run: Callable[..., Any]) -> None:
    code, said, _ = run("use")
    assert code == 0
    assert all(name in said for name in CLIENTS)
    rows = json.loads(run("use", "--list", "--json")[1])["clients"]
    assert {row["name"]: row["file"] for row in rows}["codex"].endswith("/.codex/config.toml")
    assert {row["name"]: row["file"] for row in rows}["home-assistant"] is None


def test_what_is_to_be_pasted_comes_alone(run: Callable[..., Any], node: dict[str, Any]) -> None:
    code, said, err = run("use", "openai")
    assert (code, said) == (0, "export OPENAI_BASE_URL=http://127.0.0.1:8484/v1\nexport OPENAI_API_KEY=none\n")
    assert "from openai import OpenAI" in err
    assert "--write puts it into" in err


def test_a_port_that_asks_for_a_key(run: Callable[..., Any], node: dict[str, Any]) -> None:
    node["listeners"][0]["asks_key"] = True
    code, said, err = run("use", "openai")
    assert (code, "OPENAI_API_KEY=YOUR_KEY" in said, "--new-key" in err) == (0, True, True)
    code, said, err = run("use", "openai", "--write")
    assert (code, said) == (2, "")
    assert "--new-key NAME makes one" in err


def test_a_new_key_goes_into_the_file_and_is_kept_there(
    run: Callable[..., Any], node: dict[str, Any], api: Api, tmp_path: Path
) -> None:
    node["listeners"][0]["asks_key"] = True
    code, said, err = run("use", "codex", "--write", "--new-key", " laptop")
    path = tmp_path / ".codex/config.toml"
    assert (code, err) == (0, "")
    assert NEW_KEY in path.read_text()
    assert NEW_KEY not in said
    assert said.startswith(
        f"wrote {path}: gemma at http://127.0.0.1:8484\nundo:   federation use codex --undo\nnext:   codex\n"
    )
    assert ("POST keys/add", {"name": "laptop"}) in api.seen
    assert run("use", "codex", "--write")[1] == f"nothing to do: {path} says so already\n"
    node["listeners"][0]["address"] = "127.0.0.1:9999"
    said = run("use", "codex", "--write", "--model", "qwen")[1]
    assert f"former: {path}.before-federation.2; federation use codex --undo puts it back" in said
    assert NEW_KEY in path.read_text()
    assert 'model = "qwen"' in path.read_text()
    assert run("use", "codex", "--undo")[1].startswith(f"put back {path}; ")
    assert 'model = "gemma"' in path.read_text()
    assert run("use", "codex", "--undo")[1].startswith(f"removed {path}; ")
    assert not path.exists()
    assert run("use", "codex", "--undo")[0] == 1


def test_a_new_key_that_nobody_got_is_revoked(
    run: Callable[..., Any], node: dict[str, Any], api: Api, tmp_path: Path
) -> None:
    (tmp_path / ".claude").mkdir()
    (tmp_path / ".claude/settings.json").write_text("{ // mine\n}")
    code, said, err = run("use", "claude-code", "--write", "--new-key", "laptop")
    assert (code, said) == (1, "")
    assert "plain JSON" in err
    assert "`federation use claude-code` prints what belongs there" in err
    assert api.seen[-1] == ("POST keys/revoke", {"name": "laptop"})
    assert (tmp_path / ".claude/settings.json").read_text() == "{ // mine\n}"


def test_keys_come_from_a_file_a_variable_or_standard_input(
    run: Callable[..., Any], node: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "key").write_text("fedk_fromafile\n")
    (tmp_path / "key").chmod(0o600)
    monkeypatch.setenv("MY_KEY", "fedk_fromavariable")
    assert "fedk_fromafile" in run("use", "openai", "--key-file", str(tmp_path / "key"))[1]
    assert "fedk_fromavariable" in run("use", "openai", "--key-variable", "MY_KEY")[1]
    for wrong in (
        ("--key-variable", "NO_SUCH"),
        ("--key-file", str(tmp_path / "none")),
        ("--key-file", "-"),  # nothing is in it
        ("--key-file", str(tmp_path / "key"), "--new-key", "x"),
        ("--write", "--undo"),
        ("--host", "http://x"),
        ("--model", "none"),
        ("--service", "embed"),
        ("--key", "fedk_x"),
    ):
        code, said, err = run("use", "openai", *wrong)
        assert (code, said, err.count("\n")) == (2, "", 1), wrong


def test_a_key_on_standard_input(
    node: dict[str, Any], state: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from federation.cli import main

    monkeypatch.setattr(sys, "stdin", io.StringIO("fedk_piped\n"))
    with pytest.raises(SystemExit):
        main.main(["use", "curl", "--key-file", "-", "--state-dir", str(state.path)])
    assert "Bearer fedk_piped" in capsys.readouterr().out


def test_json(run: Callable[..., Any], node: dict[str, Any], tmp_path: Path) -> None:
    said = json.loads(run("use", "aider", "--json")[1])
    assert (said["client"], said["url"], said["model"], said["models"]) == (
        "aider", "http://127.0.0.1:8484", "gemma", ["gemma", "qwen"],
    )  # fmt: skip
    assert said["texts"][0]["text"].startswith("openai-api-base:")
    written = json.loads(run("use", "aider", "--write", "--to", str(tmp_path / "x.yml"), "--json")[1])
    assert (written["file"], written["changed"], written["backup"]) == (str(tmp_path / "x.yml"), True, None)
    assert "texts" not in written
    assert f"--undo --to '{tmp_path}/a b'" in run("use", "aider", "--write", "--to", str(tmp_path / "a b"))[1]
    undone = json.loads(run("use", "aider", "--undo", "--to", str(tmp_path / "x.yml"), "--json")[1])
    assert undone["removed"] is True


def test_tls_and_other_machines(run: Callable[..., Any], node: dict[str, Any]) -> None:
    node["listeners"] = [listener("0.0.0.0:8484", scheme="https", names=["gpu.lan"], asks_key=True)]
    assert "https://gpu.lan:8484/v1" in run("use", "openai")[1]
    node["listeners"] = [listener("0.0.0.0:8484")]
    assert "http://10.0.0.5:8484/v1" in run("use", "openai", "--host", "10.0.0.5")[1]


def test_what_has_no_file_is_not_written(run: Callable[..., Any], node: dict[str, Any]) -> None:
    for option in ("--write", "--undo"):
        code, said, err = run("use", "home-assistant", option)
        assert (code, said) == (2, "")
        assert "Home Assistant" in err
    assert run("use", "--write")[0] == 2


def test_no_model_yet(run: Callable[..., Any], node: dict[str, Any], api: Api) -> None:
    api.answers["GET models"] = [{"models": []}]
    assert '"model": "MODEL"' in run("use", "curl")[1]
    code, _, err = run("use", "codex", "--write")
    assert (code, "no node has a model yet" in err) == (1, True)


def test_an_unknown_client(run: Callable[..., Any]) -> None:
    code, _, err = run("use", "codx")
    assert (code, "did you mean codex?" in err) == (2, True)
