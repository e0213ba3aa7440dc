from __future__ import annotations

import re

import pytest

from federation.cli.grammar.parser import parse
from federation.errors import UsageError


@pytest.mark.parametrize(
    ("argv", "where"),
    [
        (["join", "--nope"], "federation join --help"),
        (["join", "--hol", "5"], "federation join --help"),  # no abbreviations
        (["join", "--hold"], "federation join --help"),
        (["join", "extra"], "federation join --help"),
        (["token", "new", "extra"], "federation token new --help"),
        (["token", "gnu"], "federation token --help"),
        (["jion"], "federation --help"),
        (["--nope"], "federation --help"),
        (["status", "--json=1"], "federation status --help"),
        (["completion", "tcsh"], "federation completion --help"),
    ],
)
def test_wrong_options_are_usage_errors_that_say_where_help_is(argv: list[str], where: str) -> None:
    with pytest.raises(UsageError, match=re.escape(f"(see {where})")):
        parse(argv, "1")


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["statsu"], "there is no command 'statsu'; did you mean status? ("),
        (["nothing-like-it"], "there is no command 'nothing-like-it' ("),
        (["completion", "tcsh"], "there is no shell 'tcsh'; it is one of bash, zsh, fish ("),
    ],
)
def test_who_mistyped_is_told_what_there_is(argv: list[str], says: str) -> None:
    with pytest.raises(UsageError, match=re.escape(says)):
        parse(argv, "1")
