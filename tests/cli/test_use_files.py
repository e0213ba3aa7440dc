"""Files of others: written whole, for their owner only, after a copy of what was there."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from federation.cli import use_files
from federation.errors import NotDone
from federation.use.clients import CLIENTS, File
from federation.use.target import Port, target

PORT = Port("default", "http://127.0.0.1:8484", asks_key=True, is_local=True)


def file_of(client: str, key: str = "fedk_abcdefghij", model: str = "gemma") -> File:
    file = CLIENTS[client].make(target(PORT, [model], key=key)).file
    assert file is not None
    return file


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_places(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert use_files.place_of(file_of("codex"), {}) == tmp_path / ".codex/config.toml"
    assert use_files.place_of(file_of("codex"), {"CODEX_HOME": "/c"}) == Path("/c/config.toml")
    assert use_files.place_of(file_of("claude-code"), {"CLAUDE_CONFIG_DIR": "~/x"}) == tmp_path / "x/settings.json"
    own = use_files.place_of(file_of("openai"), {"XDG_CONFIG_HOME": str(tmp_path / "conf")})
    assert own.name == "openai.env"
    assert own.parent.name == "use"


def test_a_new_file_is_its_owners_and_undo_removes_it(tmp_path: Path) -> None:
    path = tmp_path / "a/b/config.toml"
    os.umask(0o022)
    written = use_files.write(path, file_of("codex"), is_secret=True)
    assert (written.changed, written.backup, written.path) == (True, None, path)
    assert mode(path) == 0o600
    assert mode(path.parent) == 0o700
    text = path.read_text()
    undone = use_files.undo(path)
    assert undone.removed
    assert not path.exists()
    assert undone.kept.read_text() == text
    assert mode(undone.kept) == 0o600
    with pytest.raises(NotDone, match="undone already"):
        use_files.undo(path)


def test_what_was_there_is_kept_to_the_byte_with_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    data = b"\xef\xbb\xbf" + '{"a": "ä"}'.encode()
    path.write_bytes(data)
    path.chmod(0o644)
    first = use_files.write(path, file_of("claude-code"), is_secret=True)
    assert first.backup is not None
    assert (first.backup.read_bytes(), mode(first.backup), mode(path)) == (data, 0o644, 0o600)
    second = use_files.write(path, file_of("claude-code", model="other"), is_secret=True)
    assert second.backup == path.with_name("settings.json.before-federation.2")
    assert mode(second.backup) == 0o600  # there is a key in it
    use_files.undo(path)
    assert '"gemma"' in path.read_text()
    use_files.undo(path)
    assert (path.read_bytes(), mode(path)) == (data, 0o644)


def test_without_a_key_the_mode_stays(tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    path.write_text("{}")
    path.chmod(0o644)
    use_files.write(path, file_of("claude-code", key=""), is_secret=False)
    assert mode(path) == 0o644


def test_nothing_to_do_makes_no_copy_but_closes_a_file_with_a_key(tmp_path: Path) -> None:
    path = tmp_path / "x.yml"
    use_files.write(path, file_of("aider"), is_secret=True)
    path.chmod(0o644)
    before = sorted(tmp_path.iterdir())
    assert not use_files.write(path, file_of("aider"), is_secret=True).changed
    assert sorted(tmp_path.iterdir()) == before
    assert mode(path) == 0o600


def test_a_link_is_followed(tmp_path: Path) -> None:
    real = tmp_path / "dotfiles/aider.yml"
    real.parent.mkdir()
    real.write_text("a: 1\n")
    link = tmp_path / ".aider.conf.yml"
    link.symlink_to(real)
    written = use_files.write(link, file_of("aider"), is_secret=True)
    assert (written.path, written.link) == (real, link)
    assert link.is_symlink()
    assert real.read_text().startswith("a: 1\n")
    use_files.undo(link)
    assert real.read_text() == "a: 1\n"


@pytest.mark.parametrize("what", ["broken", "binary", "directory", "pipe", "huge"])
def test_what_cannot_be_merged_stays_as_it_is(tmp_path: Path, what: str) -> None:
    path = tmp_path / "settings.json"
    if what == "directory":
        path.mkdir()
    elif what == "pipe":
        os.mkfifo(path)
    else:
        path.write_bytes({"broken": b"{", "binary": b"\xff\xfe\x00", "huge": b" " * (use_files.MAX_BYTES + 1)}[what])
    with pytest.raises(NotDone, match=r"settings\.json"):
        use_files.write(path, file_of("claude-code"), is_secret=True)
    assert [at.name for at in tmp_path.iterdir()] == ["settings.json"]


def test_a_directory_that_takes_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NotDone, match="nothing was changed"):
        use_files.write(tmp_path / "file/config.toml", file_of("codex"), is_secret=True)


def test_a_disk_that_is_full_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "settings.json"
    path.write_text("{}")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(use_files, "write_over", full)
    with pytest.raises(NotDone, match="No space left"):
        use_files.write(path, file_of("claude-code"), is_secret=True)
    assert path.read_text() == "{}"
    assert list(tmp_path.iterdir()) == [path]
