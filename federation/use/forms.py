"""Texts from data, in the forms that clients read: env, TOML, YAML, JSON, curl's. What is read back is what was written.

A model's name comes from another machine, and what is printed here is run: each text is quoted for the language it is in.
"""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


def quoted(text: str) -> str:
    """A JSON string; YAML takes the same, and so do TOML and Python for what is printable."""
    return json.dumps(text, ensure_ascii=False)


def env(data: Mapping[str, str], *, export: bool = False) -> str:
    """A line a variable. Docker's --env-file takes no quotes: there are some only where a shell needs them."""
    return "".join(
        f"{'export ' if export else ''}{name}={shlex.quote(value) if value else ''}\n" for name, value in data.items()
    )


def as_json(data: Any, indent: int | str = 2) -> str:
    return json.dumps(data, indent=indent, ensure_ascii=False) + "\n"


def yaml(data: Mapping[str, Any]) -> str:
    return "".join(_yaml(data, ""))


def _yaml(data: Mapping[str, Any], indent: str) -> Iterator[str]:
    for name, value in data.items():
        if isinstance(value, dict):
            yield f"{indent}{name}:\n"
            yield from _yaml(value, f"{indent}  ")
        elif isinstance(value, list):
            yield f"{indent}{name}:\n"
            for item in value:
                lines = list(_yaml(item, f"{indent}    "))
                yield f"{indent}  - {lines[0].lstrip()}"
                yield from lines[1:]
        else:
            yield f"{indent}{name}: {quoted(value) if isinstance(value, str) else json.dumps(value)}\n"


def toml(data: Mapping[str, Any], table: str = "") -> str:
    plain = [f"{name} = {quoted(value)}\n" for name, value in data.items() if isinstance(value, str)]
    inner = [toml(value, f"{table}.{name}" if table else name) for name, value in data.items() if isinstance(value, dict)]
    head = f"[{table}]\n" if table and plain else ""
    return head + "".join(plain) + ("\n" if plain and inner else "") + "\n".join(inner)


def curl(data: Mapping[str, Any]) -> str:
    """curl's config file: an option a line, several of a name as a list."""
    lines = [(name, one) for name, value in data.items() for one in (value if isinstance(value, list) else [value])]
    return "".join(f"{name} = {_in_curl(value)}\n" for name, value in lines)


def _in_curl(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
