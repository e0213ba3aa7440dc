from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import pytest

from federation.cli import terminal
from federation.cli.terminal import PIPE_WIDTH, Progress, Screen, colorful, complain, confirm, read_secret, width
from federation.errors import UsageError
from federation.mesh.tokens import Token
from federation.units import REDACTED


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def sit_down(monkeypatch: pytest.MonkeyPatch) -> None:
    """From within the test: pytest puts its own streams in place when the test begins."""
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, Terminal())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(terminal.shutil, "get_terminal_size", lambda **_kw: os.terminal_size((20, 4)))


def test_colours_and_width_are_for_terminals(monkeypatch: pytest.MonkeyPatch) -> None:
    sit_down(monkeypatch)
    assert (colorful(sys.stdout), width()) == (True, 20)
    monkeypatch.setenv("NO_COLOR", "1")
    assert not colorful(sys.stdout)
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert (colorful(sys.stdout), colorful(None), width()) == (False, False, PIPE_WIDTH)


def test_progress_is_one_line_that_goes_away(monkeypatch: pytest.MonkeyPatch) -> None:
    sit_down(monkeypatch)
    with Progress() as progress:
        progress.show("waiting for a very long time")
        progress.show("still")
    assert sys.stderr.getvalue() == "\r\x1b[Kwaiting for a very \r\x1b[Kstill\r\x1b[K"
    assert sys.stdout.getvalue() == ""


def test_progress_is_silent_where_nobody_watches(monkeypatch: pytest.MonkeyPatch) -> None:
    sit_down(monkeypatch)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with Progress() as progress:
        progress.show("waiting")
    assert sys.stderr.getvalue() == ""


def test_a_screen_is_written_over_and_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    sit_down(monkeypatch)
    with pytest.raises(KeyboardInterrupt), Screen() as screen:
        screen.show("one\ntwo\nthree\nfour\nfive")  # on a terminal of four lines
        raise KeyboardInterrupt
    shown = sys.stdout.getvalue()
    assert shown.startswith("\x1b[?1049h")
    assert "three" in shown
    assert "four" not in shown
    assert shown.endswith("\x1b[?1049l")
    assert shown.index("\x1b[?7l") < shown.index("one") < shown.index("\x1b[?7h")  # a long line takes no second one


def test_a_screen_on_a_pipe_is_plain_text(monkeypatch: pytest.MonkeyPatch) -> None:
    sit_down(monkeypatch)
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    with Screen() as screen:
        screen.show("one")
        screen.show("two")
    assert sys.stdout.getvalue() == "one\ntwo\n"


@pytest.mark.parametrize(("typed", "meant"), [("y\n", True), ("Yes\n", True), ("\n", False), ("n\n", False), ("", False)])
def test_a_question_is_answered(monkeypatch: pytest.MonkeyPatch, typed: str, meant: bool) -> None:
    sit_down(monkeypatch)
    monkeypatch.setattr(sys, "stdin", Terminal(typed))
    assert confirm("Leave?") is meant
    assert "Leave? [y/N]" in sys.stderr.getvalue()


def test_nobody_there_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    sit_down(monkeypatch)
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert confirm("Leave?")


def test_a_secret_comes_from_a_file_or_a_pipe_or_is_typed_unseen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "secret"
    path.write_text("hush")
    path.chmod(0o600)
    assert read_secret(path, "token") == "hush"
    assert capsys.readouterr().err == ""
    for mode in (0o640, 0o604):
        path.chmod(mode)
        assert read_secret(path, "token") == "hush"
        assert capsys.readouterr().err.count(f"chmod 600 {path}") == 1
    monkeypatch.setattr(sys, "stdin", io.StringIO("piped"))
    assert read_secret(Path("-"), "token") == "piped"
    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.setattr("getpass.getpass", lambda prompt: f"typed at {prompt!r}")
    assert read_secret(Path("-"), "owner key") == "typed at 'Owner key: '"
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(UsageError, match="no standard input to read the token from"):
        read_secret(Path("-"), "token")
    with pytest.raises(UsageError, match=r"cannot read the token file .*: Is a directory"):
        read_secret(tmp_path, "token")


def test_a_complaint_is_one_line_without_secrets(capsys: pytest.CaptureFixture[str]) -> None:
    complain("it was\nfed1_abcdefghijkl and fedkey1_abcdefghijkl")
    assert capsys.readouterr().err == f"federation: it was {REDACTED} and {REDACTED}\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_secret_is_read_however_it_was_saved(encoding: str, tmp_path: Path) -> None:
    token = Token.new().encode()
    (tmp_path / "token").write_bytes(f"\u201c{token}\u201d\r\n".encode(encoding))
    (tmp_path / "token").chmod(0o600)
    assert Token.decode(read_secret(tmp_path / "token", "token")).encode() == token


def test_a_secret_that_is_no_text_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "token").write_bytes(b"fed3_\xff")
    with pytest.raises(UsageError, match="is not text in UTF-8"):
        read_secret(tmp_path / "token", "token")


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [("ascii", b"k\\xf6ln~ \\u4e2d \\udcff"), ("latin-1", b"k\xf6ln~ \\u4e2d \\udcff"), ("utf-8", None)],
)
def test_what_a_terminal_cannot_show_is_shown_otherwise(
    encoding: str, shown: bytes | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", out)
    terminal.show_anything()
    terminal.say("k\u00f6ln\u2026 \u4e2d \udcff")
    expected = shown or "k\u00f6ln\u2026 \u4e2d \\udcff".encode()
    assert out.buffer.getvalue() == expected + b"\n"  # type: ignore[attr-defined]


def test_an_output_that_is_closed_or_missing_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = io.StringIO()
    closed.close()
    for out in (closed, None):
        monkeypatch.setattr(sys, "stdout", out)
        terminal.show_anything()
        terminal.flush()
