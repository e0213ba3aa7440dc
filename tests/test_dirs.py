from __future__ import annotations

from pathlib import Path

import pytest

from federation.dirs import default_config_file, default_state_dir, find_config_file, read_config_file
from federation.errors import ConfigError


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_linux_follows_xdg(home: Path) -> None:
    assert default_state_dir({}, "linux") == home / ".local/state/federation"
    assert default_config_file({}, "linux") == home / ".config/federation/config.toml"
    environ = {"XDG_STATE_HOME": "/s", "XDG_CONFIG_HOME": "/c"}
    assert default_state_dir(environ, "linux") == Path("/s/federation")
    assert default_config_file(environ, "linux") == Path("/c/federation/config.toml")


def test_relative_xdg_paths_count_as_none(home: Path) -> None:
    assert default_state_dir({"XDG_STATE_HOME": "here"}, "linux") == home / ".local/state/federation"


def test_macos_has_one_place(home: Path) -> None:
    place = home / "Library/Application Support/federation"
    assert default_state_dir({"XDG_STATE_HOME": "/s"}, "darwin") == place
    assert default_config_file({}, "darwin") == place / "config.toml"


def test_the_users_settings_file_is_read_when_it_is_there(home: Path) -> None:
    assert find_config_file(None, {}) is None
    file = default_config_file({})
    file.parent.mkdir(parents=True)
    file.touch()
    assert find_config_file(None, {}) == file
    assert find_config_file(None, {"FEDERATION_CONFIG": "/other.toml"}) == Path("/other.toml")
    assert find_config_file(Path("~/mine.toml"), {"FEDERATION_CONFIG": "/other.toml"}) == home / "mine.toml"


def test_a_file_that_was_asked_for_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*nowhere\.toml: No such file"):
        read_config_file(tmp_path / "nowhere.toml")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_file_is_read_however_an_editor_saved_it(encoding: str, tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_bytes('name = "köln"\r\nhold = "3s"\r\n'.encode(encoding))
    assert read_config_file(file) == {"name": "köln", "hold": "3s"}


@pytest.mark.parametrize("content", [b"hold = ", b"hold = \xff", b"\xff\xfe\x00", b"= 1"])
def test_what_is_no_toml_is_one_line(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=r"config\.toml is not TOML") as caught:
        read_config_file(file)
    assert "\n" not in str(caught.value)


def test_a_user_without_home_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    with pytest.raises(ConfigError, match="--state-dir"):
        default_state_dir({})
