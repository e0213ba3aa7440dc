"""Data into a text that somebody else wrote: the other settings stay, and so do comments where the form has any.

tomlkit and ruamel.yaml keep comments, order and quotes; they are imported here alone, when a file is there already. A plain
reader reads what comes out, and it has to say what the former text and the data say together: else nothing is written.
"""

from __future__ import annotations

import importlib
import io
import json
import re
import sys
from copy import deepcopy
from typing import TYPE_CHECKING, Any

from federation.errors import NotDone
from federation.use import forms
from federation.use.clients import OURS, File, both

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, MutableMapping, MutableSequence

_INDENT = re.compile(r"\n([ \t]+)\S")
_VARIABLE = re.compile(r"(?m)^([ \t]*(?:export[ \t]+)?)([A-Za-z_][A-Za-z0-9_]*)=.*$")
CANNOT = "this version cannot add to it without changing more than it should"
_WHOLE = ("curl",)  # files of our own that nobody else writes into


def merged(file: File, text: str) -> str:
    """`text` with the file's data in it; unchanged where it has them all. Raises NotDone where it cannot be read."""
    if not text.strip() or file.form in _WHOLE or isinstance(file.data, list):
        return file.text
    ends = "\r\n" if "\r\n" in text else "\n"
    try:
        new = _MERGES[file.form](file, text.replace("\r\n", "\n"))
    except NotDone:
        raise
    except Exception as error:  # noqa: BLE001  libraries that edit what anybody may have written; a person reads one line
        raise NotDone(f"{CANNOT} ({' '.join(str(error).split())[:120]}); nothing was changed") from None
    return new.replace("\n", ends)


def _env(file: File, text: str) -> str:
    assert isinstance(file.data, dict)
    data: dict[str, str] = file.data
    left = dict(data)

    def renewed(line: re.Match[str]) -> str:
        name = line[2]
        if name not in data:
            return line[0]
        left.pop(name, None)
        return line[1] + forms.env({name: data[name]}).rstrip("\n")

    text = _VARIABLE.sub(renewed, text)
    return text + ("" if text.endswith("\n") else "\n") + forms.env(left) if left else text


def _json(file: File, text: str) -> str:
    data = _read(json.loads, text, "plain JSON", object_pairs_hook=_once)
    new = _with(file, data, dict, str)
    if new == data:
        return text
    indent = match[1] if (match := _INDENT.search(text)) else "  "
    return forms.as_json(new, indent)


def _toml(file: File, text: str) -> str:
    tomlkit = importlib.import_module("tomlkit")
    plain = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    before = _read(plain.loads, text, "TOML")
    new = tomlkit.dumps(_with(file, _read(tomlkit.parse, text, "TOML"), dict, str))
    return _checked(file, before, new, plain.loads, text)


def _yaml(file: File, text: str) -> str:
    ruamel = importlib.import_module("ruamel.yaml")
    quoted = importlib.import_module(
        "ruamel.yaml.scalarstring"
    ).DoubleQuotedScalarString  # YAML 1.1 takes a bare yes for true
    keeping = ruamel.YAML()
    keeping.preserve_quotes, keeping.width = True, 1 << 16
    if re.search(r"(?m)^[ ]+- ", text):
        keeping.indent(mapping=2, sequence=4, offset=2)
    plain = ruamel.YAML(typ="safe", pure=True)
    before = _read(plain.load, text, "YAML")
    if before is None:  # comments alone
        return text + ("" if text.endswith("\n") else "\n") + file.text
    out = io.StringIO()
    data = _read(keeping.load, text, "YAML")
    keeping.dump(_with(file, data, ruamel.comments.CommentedMap, quoted), out)
    return _checked(file, before, out.getvalue(), plain.load, text)


_MERGES: dict[str, Callable[[File, str], str]] = {"env": _env, "json": _json, "toml": _toml, "yaml": _yaml}


def _read(load: Callable[..., Any], text: str, what: str, **how: Any) -> Any:
    try:
        data = load(text, **how)
    except Exception as error:  # noqa: BLE001  three libraries' own errors, of which not all are ValueErrors
        why = " ".join(str(error).split())[:120]
        raise NotDone(f"it is not {what} ({why}); nothing was changed") from None
    if data is not None and not hasattr(data, "keys"):
        raise NotDone(f"it is {what}, but no table of settings; nothing was changed")
    return data


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """JSON takes the last of two; writing it would lose the first."""
    if len(dict(pairs)) != len(pairs):
        raise ValueError("it has one name twice")
    return dict(pairs)


def _checked(file: File, before: dict[str, Any], new: str, load: Callable[[str], Any], old: str) -> str:
    wanted = _with(file, before, dict, str)
    if wanted == before:
        return old
    if _read(load, new, "readable any more") != wanted:
        raise NotDone(f"{CANNOT}; nothing was changed")
    return new


def _with(file: File, data: Any, table: Callable[[], Any], text: Callable[[str], Any]) -> Any:
    """A copy of the data with the file's own in it."""
    data = deepcopy(data)
    assert isinstance(file.data, dict)
    _put(data, both(_absent(file.unless_there or {}, data), file.data), file.lists or {}, table, text)
    return data


def _absent(wanted: Mapping[str, Any], data: Any) -> dict[str, Any]:
    """What the data lacks of it."""
    missing = {name: value for name, value in wanted.items() if not hasattr(data, "keys") or name not in data}
    inner = {
        name: _absent(value, data[name]) for name, value in wanted.items() if name not in missing and isinstance(value, dict)
    }
    return {**missing, **{name: value for name, value in inner.items() if value}}


def _put(
    into: MutableMapping[str, Any],
    data: dict[str, Any],
    lists: Any,
    table: Callable[[], Any],
    text: Callable[[str], Any],
) -> None:
    for name, value in data.items():
        had = into.get(name)
        if isinstance(value, dict):
            if not hasattr(had, "keys"):
                into[name] = table()
            _put(into[name], value, {}, table, text)
        elif isinstance(value, list):
            if not isinstance(had, list):
                into[name] = []
            _put_list(into[name], value, lists[name], table, text)
        elif had != value:
            into[name] = text(value) if isinstance(value, str) else value


def _put_list(
    into: MutableSequence[Any], rows: list[Any], key: str, table: Callable[[], Any], text: Callable[[str], Any]
) -> None:
    """Our rows in place of our former ones, where the first of these stood, or at the end."""
    had = {name: row for row in into if (name := _ours(row, key))}
    at = next((i for i, row in enumerate(into) if _ours(row, key)), len(into))
    new = []
    for row in rows:
        new.append(had.get(_ours(row, key)) or table())
        _put(new[-1], row, {}, table, text)
    if [_ours(row, key) for row in into if _ours(row, key)] == [_ours(row, key) for row in rows]:
        return  # they were changed where they are
    for i in reversed(range(len(into))):
        if _ours(into[i], key):
            del into[i]
    for i, row in enumerate(new):
        into.insert(at + i, row)


def _ours(row: Any, key: str) -> str:
    """How the row is called, if it is ours."""
    for part in key.split("."):
        row = row.get(part) if hasattr(row, "keys") else None
    is_ours = isinstance(row, str) and (row.endswith(f"({OURS})") or row.startswith(f"{OURS}/"))
    return str(row) if is_ours else ""
