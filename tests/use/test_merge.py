"""What a person wrote stays: other settings, comments, line ends; and a second merge changes nothing."""

from __future__ import annotations

import json
from typing import Any

import pytest
import tomlkit
from ruamel.yaml import YAML

from federation.errors import NotDone
from federation.use.clients import CLIENTS, File
from federation.use.merge import merged
from federation.use.target import Port, target

PORT = Port("default", "http://127.0.0.1:8484", asks_key=True, is_local=True)


def file_of(client: str, *models: str, key: str = "fedk_abcdefghij") -> File:
    file = CLIENTS[client].make(target(PORT, list(models or ("qwen3:8b", "gemma")), key=key)).file
    assert file is not None
    return file


WITH_FILES = [name for name, client in CLIENTS.items() if client.make(target(PORT, [])).file]


@pytest.mark.parametrize("client", WITH_FILES)
def test_a_second_time_changes_nothing(client: str) -> None:
    file = file_of(client)
    text = merged(file, "")
    assert text == merged(file, " \n") == file.text
    assert merged(file, text) == text


TOML = """\
# mine
model = "gpt-5"   # the best
approval_policy = "on-request"

[mcp_servers.x]
command = "npx"  # there

[model_providers.azure]
name = "a"
"""


def test_toml_keeps_comments_order_and_other_tables() -> None:
    text = merged(file_of("codex"), TOML)
    assert text.startswith('# mine\nmodel = "qwen3:8b"   # the best\napproval_policy = "on-request"\n')
    assert 'command = "npx"  # there' in text
    said = tomlkit.parse(text).unwrap()
    assert set(said["model_providers"]) == {"azure", "federation"}
    assert said["model_provider"] == "federation"
    assert merged(file_of("codex"), text) == text
    again = merged(file_of("codex", key="fedk_otherother"), text)
    assert without_keys(again) == without_keys(text)


def without_keys(text: str) -> list[str]:
    return [line for line in text.splitlines() if "fedk" not in line]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[model_providers]\nx = 1\n",
        "model_providers = { azure = { name = 'a' } }\n",
        "[[profiles]]\na = 1\n[tui]\nb = 2\n",
        'model_providers.federation.base_url = "http://old"\n',
        "[model_providers.federation]\nrequest_max_retries = 7\n",
    ],
)
def test_toml_of_all_kinds_ends_as_it_has_to_or_unchanged(text: str) -> None:
    try:
        said = tomlkit.parse(merged(file_of("codex"), text)).unwrap()
    except NotDone as error:
        assert "nothing was changed" in str(error)
        return
    assert said["model_providers"]["federation"]["base_url"] == "http://127.0.0.1:8484/v1"
    before = tomlkit.parse(text).unwrap()
    assert set(before) <= set(said)
    if "request_max_retries" in text:
        assert said["model_providers"]["federation"]["request_max_retries"] == 7


YAML_TEXT = """\
# mine
name: Me
version: 0.0.1
schema: v1
models:
  # the good one
  - name: GPT
    provider: openai   # x
    model: "gpt"
  - name: qwen3:8b (federation)
    provider: openai
    model: qwen3:8b
    apiBase: http://old/v1
    roles: [chat]
  - name: gone (federation)
    model: gone
  - name: Other
    model: yes
rules:
  - a
# end
"""


def test_yaml_keeps_comments_and_others_rows() -> None:
    text = merged(file_of("continue"), YAML_TEXT)
    for kept in ("# mine", "name: Me", "  # the good one", "provider: openai   # x", "  - a", "# end", "roles: [chat]"):
        assert f"{kept}\n" in text
    assert "model: yes\n" in text
    said = YAML(typ="safe", pure=True).load(text)
    assert [row["name"] for row in said["models"]] == ["GPT", "qwen3:8b (federation)", "gemma (federation)", "Other"]
    assert said["models"][1]["apiBase"] == "http://127.0.0.1:8484/v1"
    assert merged(file_of("continue"), text) == text


def test_yaml_lists_are_as_the_person_indents_them() -> None:
    flat = "model_list:\n- model_name: mine\n  litellm_params: {model: x}\nlitellm_settings:\n  drop_params: true\n"
    text = merged(file_of("litellm"), flat)
    assert text.startswith('model_list:\n- model_name: mine\n  litellm_params: {model: x}\n- model_name: "qwen3:8b"\n')
    assert text.endswith("litellm_settings:\n  drop_params: true\n")


def test_a_models_name_is_a_text_to_readers_of_yaml_1_1_too() -> None:
    text = merged(file_of("aider", "no"), "dark-mode: yes\n")
    assert text.splitlines() == [
        "dark-mode: yes",
        'openai-api-base: "http://127.0.0.1:8484/v1"',
        'openai-api-key: "fedk_abcdefghij"',
        'model: "openai/no"',
    ]


def test_comments_alone_stay() -> None:
    assert merged(file_of("aider"), "# nothing yet\n").startswith("# nothing yet\nopenai-api-base:")


def test_json_keeps_others_settings_order_and_indent() -> None:
    text = merged(file_of("claude-code"), '{\n    "permissions": {"allow": ["x"]},\n    "env": {"A": "1"}\n}\n')
    assert text.startswith('{\n    "permissions": {\n        "allow": [')
    assert list(json.loads(text)["env"])[:2] == ["A", "ANTHROPIC_BASE_URL"]


def test_what_a_tool_wrote_itself_stays() -> None:
    had = {"version": 2, "providers": {"openai-compatible": {"updatedAt": "2027", "x": 1}, "cline": {"y": 2}}}
    said = json.loads(merged(file_of("cline"), json.dumps(had)))
    assert said["version"] == 2
    assert said["providers"]["cline"] == {"y": 2}
    ours = said["providers"]["openai-compatible"]
    assert (ours["updatedAt"], ours["x"], ours["tokenSource"]) == ("2027", 1, "manual")


def test_env_keeps_other_lines() -> None:
    text = merged(file_of("openai"), "# mine\nA=1\nexport OPENAI_API_KEY=old\nOPENAI_API_KEY_X=2")
    assert text == (
        "# mine\nA=1\nexport OPENAI_API_KEY=fedk_abcdefghij\nOPENAI_API_KEY_X=2\nOPENAI_BASE_URL=http://127.0.0.1:8484/v1\n"
    )


def test_line_ends_stay() -> None:
    text = merged(file_of("codex"), TOML.replace("\n", "\r\n"))
    assert text.count("\r\n") == text.count("\n")
    assert merged(file_of("codex"), text) == text


@pytest.mark.parametrize(
    ("client", "text", "why"),
    [
        ("claude-code", '{"a": 1, // c\n}', "plain JSON"),
        ("claude-code", '{"a": 1, "a": 2}', "twice"),
        ("claude-code", "[1]", "no table"),
        ("codex", 'model = "a"\nmodel = "b"\n', "TOML"),
        ("aider", "model: a\nmodel: b\n", "YAML"),
        ("aider", "a: [", "YAML"),
        ("aider", "- a\n", "no table"),
        ("aider", "just words", "no table"),
    ],
)
def test_what_cannot_be_read_is_not_written(client: str, text: str, why: str) -> None:
    with pytest.raises(NotDone, match=why) as refused:
        merged(file_of(client), text)
    assert "nothing was changed" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_what_would_say_something_else_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    def dumps(_data: Any) -> str:
        return 'model = "other"\n'

    monkeypatch.setattr(tomlkit, "dumps", dumps)
    with pytest.raises(NotDone, match="more than it should"):
        merged(file_of("codex"), TOML)
