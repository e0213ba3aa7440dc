"""Each form says what it was made from, to the program that reads it, whatever a model is called."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import tomlkit
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from federation.use import forms

PRINTABLE = st.text(st.characters(exclude_categories=("C", "Z")) | st.just(" "), max_size=20).filter(str.isprintable)
NAMES = st.sampled_from(["model", "api_base", "x-y", "b"])
FLAT = st.dictionaries(NAMES, PRINTABLE, min_size=1)


@given(st.dictionaries(NAMES, PRINTABLE | FLAT | st.lists(FLAT, min_size=1, max_size=3), min_size=1))
def test_yaml(data: dict[str, Any]) -> None:
    text = forms.yaml(data)
    assert YAML(typ="safe", pure=True).load(text) == data
    old = YAML(typ="safe", pure=True)
    old.version = (1, 1)  # type: ignore[assignment]
    assert old.load(text) == data


@given(st.dictionaries(NAMES, PRINTABLE | FLAT | st.dictionaries(NAMES, PRINTABLE | FLAT, min_size=1), min_size=1))
def test_toml(data: dict[str, Any]) -> None:
    assert tomlkit.parse(forms.toml(data)).unwrap() == data


@given(st.recursive(PRINTABLE, lambda inner: st.lists(inner) | st.dictionaries(PRINTABLE, inner)))
def test_json(data: Any) -> None:
    assert json.loads(forms.as_json(data)) == data


def test_env_is_what_a_shell_reads_and_bare_where_it_can_be() -> None:
    data = {"A": "http://127.0.0.1:8484/v1", "B": 'it\'s $(touch attacked) "x"', "C": ""}
    for export in (False, True):
        script = f"set -a\n{forms.env(data, export=export)}\nenv"
        said = subprocess.run(
            ["sh", "-c", script], capture_output=True, text=True, check=True, env={"PATH": "/usr/bin:/bin"}
        )
        lines = said.stdout.splitlines()
        assert sorted(line for line in lines if line[:2] in ("A=", "B=", "C=")) == [f"{k}={v}" for k, v in data.items()]
    assert forms.env(data).splitlines()[0] == "A=http://127.0.0.1:8484/v1"


def test_curl() -> None:
    said = forms.curl({"url": "http://x", "header": ["A: b", "C: d"], "data": '{"a": "b\\n"}'})
    assert said == 'url = "http://x"\nheader = "A: b"\nheader = "C: d"\ndata = "{\\"a\\": \\"b\\\\n\\"}"\n'
