"""What each tool is told, in the form that its documents have. That the tools take it, scripts/clients tries."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from typing import Any

import pytest
import tomlkit
from ruamel.yaml import YAML

from federation.cli.grammar import parser
from federation.use import forms
from federation.use.clients import CLIENTS, Recipe, both
from federation.use.target import Port, target

URL, KEY = "http://127.0.0.1:8484", "fedk_abcdefghij"
PORT = Port("default", URL, asks_key=True, is_local=True)
HOSTILE = "it's\" $(touch attacked) `id` \\"


def made(client: str, *models: str, key: str = KEY, port: Port = PORT) -> Recipe:
    return CLIENTS[client].make(target(port, list(models or ("qwen3:8b", "gemma")), key=key))


def data_of(client: str, **how: Any) -> Any:
    """What the client reads in a new file."""
    file = made(client, **how).file
    assert file is not None
    text = file.text
    if file.form == "json":
        return json.loads(text)
    return tomlkit.parse(text).unwrap() if file.form == "toml" else YAML(typ="safe", pure=True).load(text)


def test_the_command_line_knows_them_all() -> None:
    assert tuple(CLIENTS) == parser.CLIENTS


@pytest.mark.parametrize("name", CLIENTS)
def test_address_key_and_model_are_in_it_and_its_document_is_named(name: str) -> None:
    recipe = made(name)
    said = "\n".join([recipe.text, *(recipe.other or ())])
    assert URL in said
    assert KEY in said
    if name != "n8n" and name != "open-webui":  # these ask the node for the models
        assert "qwen3:8b" in said + recipe.note
    assert CLIENTS[name].reads
    if recipe.file is not None:
        assert KEY in recipe.file.text
        assert URL in recipe.file.text
        assert recipe.start


@pytest.mark.parametrize("name", CLIENTS)
def test_without_a_key_none_is_invented(name: str) -> None:
    recipe = made(name, key="")
    said = "\n".join([recipe.text, *(recipe.other or ()), recipe.file.text if recipe.file else ""])
    assert "fedk_" not in said
    assert "Bearer" not in said


def test_codex() -> None:
    provider = {
        "name": "federation", "base_url": f"{URL}/v1", "wire_api": "responses",
        "http_headers": {"Authorization": f"Bearer {KEY}"},
    }  # fmt: skip
    wanted = {"model": "qwen3:8b", "model_provider": "federation", "model_providers": {"federation": provider}}
    assert data_of("codex") == wanted


def test_claude_code_gets_no_other_key_of_the_persons() -> None:
    env = data_of("claude-code")["env"]
    assert (env["ANTHROPIC_BASE_URL"], env["ANTHROPIC_AUTH_TOKEN"], env["ANTHROPIC_API_KEY"]) == (URL, KEY, "")
    assert {value for name, value in env.items() if name.endswith("_MODEL")} == {"qwen3:8b"}


def test_continue_has_all_models() -> None:
    said = data_of("continue")
    assert (said["schema"], said["version"]) == ("v1", "1.0.0")
    assert [row["model"] for row in said["models"]] == ["qwen3:8b", "gemma"]
    assert said["models"][0] == {
        "name": "qwen3:8b (federation)", "provider": "openai", "model": "qwen3:8b", "apiBase": f"{URL}/v1", "apiKey": KEY,
    }  # fmt: skip


def test_litellm_has_all_models() -> None:
    rows = data_of("litellm")["model_list"]
    assert [row["model_name"] for row in rows] == ["qwen3:8b", "gemma"]
    assert rows[1]["litellm_params"] == {"model": "openai/gemma", "api_base": f"{URL}/v1", "api_key": KEY}


def test_aider_n8n_and_cline() -> None:
    assert data_of("aider") == {"openai-api-base": f"{URL}/v1", "openai-api-key": KEY, "model": "openai/qwen3:8b"}
    assert data_of("n8n")[0]["data"] == {"apiKey": KEY, "url": f"{URL}/v1"}
    settings = data_of("cline")["providers"]["openai-compatible"]["settings"]
    assert (settings["baseUrl"], settings["apiKey"], settings["model"]) == (f"{URL}/v1", KEY, "qwen3:8b")


def test_a_container_reaches_the_machine() -> None:
    local = made("open-webui").other
    assert local is not None
    assert "--network=host -e PORT=3000" in local[1]
    for url, inside in ((URL, "http://host.docker.internal:8484"), ("https://gpu.lan:8484", "https://gpu.lan:8484")):
        recipe = made("open-webui", port=Port("default", url, asks_key=True, is_local=False))
        assert recipe.other is not None
        assert f"OPENAI_API_BASE_URL={inside}/v1" in recipe.other[1]
        assert "-p 3000:8080" in recipe.other[1]
        assert ("--add-host=host.docker.internal:host-gateway" in recipe.other[1]) is (url == URL)


def test_a_models_name_runs_nothing_where_it_is_pasted(tmp_path: Any) -> None:
    (tmp_path / "curl").write_text('#!/bin/sh\nfor last; do :; done\nprintf %s "$last"\n')
    (tmp_path / "ollama").write_text('#!/bin/sh\nprintf %s "$2"\n')
    for name in ("curl", "ollama"):
        (tmp_path / name).chmod(0o755)
    curl, ollama = made("curl", HOSTILE).text, made("ollama", HOSTILE).other
    assert ollama is not None
    where = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    said = [
        subprocess.run(["sh", "-c", text], env=where, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
        for text in (curl, ollama[1])
    ]
    assert json.loads(said[0])["model"] == said[1] == HOSTILE
    for name in ("openai", "anthropic", "langchain"):
        recipe = made(name, HOSTILE)
        script = recipe.text if name == "langchain" else recipe.other[1] if recipe.other else ""
        line = next(line for line in script.splitlines() if "model=" in line)
        literal = line[line.index("model=") + 6 :]
        call = "'f(model=' + sys.argv[1].split(', m')[0].rstrip(')') + ')'"
        value = f"import ast, sys; print(ast.parse({call}).body[0].value.keywords[0].value.value)"
        done = subprocess.run([sys.executable, "-c", value, literal], capture_output=True, text=True, check=True)
        assert done.stdout == f"{HOSTILE}\n"
    for name, path in (("codex", "model"), ("aider", "model")):
        assert HOSTILE in data_of_hostile(name)[path]
    assert not (tmp_path / "attacked").exists()


def data_of_hostile(client: str) -> Any:
    file = made(client, HOSTILE).file
    assert file is not None
    return tomlkit.parse(file.text) if file.form == "toml" else YAML(typ="safe", pure=True).load(file.text)


def test_the_python_compiles() -> None:
    for name in ("openai", "anthropic", "langchain"):
        recipe = made(name)
        compile(recipe.text if name == "langchain" else (recipe.other or ("", ""))[1], name, "exec")


def test_the_environment_is_one_that_a_shell_takes() -> None:
    words = shlex.split(made("openai").text)
    assert words == ["export", f"OPENAI_BASE_URL={URL}/v1", "export", f"OPENAI_API_KEY={KEY}"]


def test_both() -> None:
    assert both({"a": {"x": 1}, "b": 2}, {"a": {"y": 3}, "c": {"z": 4}}) == {"a": {"x": 1, "y": 3}, "b": 2, "c": {"z": 4}}
    assert forms.as_json(both({}, {})) == "{}\n"
