"""What `join` makes of its settings before there is a node: the token or invite that it was given, secrets in files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import libp2p  # noqa: F401  # all of it, before join.py makes light of what this process imports from then on
import pytest

from federation.cli.join import _with_notify_url, given_token
from federation.config import Settings
from federation.errors import ConfigError, TokenChecksumWrong, TokenMalformed
from federation.mesh.invite_codes import InviteCode
from federation.mesh.tokens import Token

if TYPE_CHECKING:
    from pathlib import Path

CODE = InviteCode.new(1_800_000_000, ())
TOKEN = Token.new("home")


def settings(tmp_path: Path, **fields: Any) -> Settings:
    return Settings(state_dir=tmp_path, **fields)


@pytest.mark.parametrize("field", ["token", "invite"])
def test_a_code_is_taken_wherever_a_token_is(tmp_path: Path, field: str) -> None:
    assert given_token(settings(tmp_path, **{field: CODE.encode()})) == CODE
    assert given_token(settings(tmp_path, **{field: TOKEN.encode()})) == TOKEN
    file = tmp_path / "code"
    file.write_text(f"{CODE.encode()}\n")
    file.chmod(0o600)
    assert given_token(settings(tmp_path, token_file=file)) == CODE
    with pytest.raises(TokenMalformed):
        given_token(settings(tmp_path, **{field: " "}))
    with pytest.raises(TokenChecksumWrong):
        given_token(settings(tmp_path, **{field: CODE.encode()[:-1]}))
    assert given_token(settings(tmp_path)) is None


def secret(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "secret"
    file.write_text(text)
    file.chmod(0o600)
    return file


def test_the_address_for_notices_comes_from_its_file_and_is_shown_nowhere(tmp_path: Path) -> None:
    file = secret(tmp_path, "https://127.0.0.1:9/hook?key=word\n")
    read = _with_notify_url(settings(tmp_path, notify_url_file=file))
    assert read.notify_url is not None
    assert read.notify_url.get_secret_value() == "https://127.0.0.1:9/hook?key=word"
    assert "word" not in repr(read)
    file.write_text("https://127.0.0.1:9/other\n")  # and at SIGHUP it is read again
    again = _with_notify_url(settings(tmp_path, notify_url_file=file)).notify_url
    assert again is not None
    assert again.get_secret_value().endswith("/other")


def test_what_is_no_address_for_notices_names_the_file_and_not_what_is_in_it(tmp_path: Path) -> None:
    file = secret(tmp_path, "a-secret-word")
    with pytest.raises(ConfigError) as refused:
        _with_notify_url(settings(tmp_path, notify_url_file=file))
    assert f"in {file}: write http" in str(refused.value)
    assert "a-secret-word" not in str(refused.value)
    with pytest.raises(ConfigError, match="name a file"):
        _with_notify_url(settings(tmp_path, notify_url_file="-"))


def test_a_node_without_notices_keeps_its_settings(tmp_path: Path) -> None:
    given = settings(tmp_path)
    assert _with_notify_url(given) is given
