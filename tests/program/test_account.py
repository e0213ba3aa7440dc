from __future__ import annotations

import os
import pwd
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from federation.errors import NotDone
from federation.program import account
from federation.program.commands import Done

if TYPE_CHECKING:
    from pathlib import Path


class Fake:
    """useradd and userdel of a machine that has, or lacks, the account."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, works: bool = True) -> None:
        self.there: Any = None
        self.ran: list[tuple[str, ...]] = []
        self.works = works
        monkeypatch.setattr(account, "find", lambda name="federation": self.there)

    def run(self, *words: str) -> Done:
        self.ran.append(words)
        if self.works:
            self.there = SimpleNamespace(pw_uid=1, pw_gid=1) if words[0] == "useradd" else None
        return Done(0 if self.works else 1, "", "" if self.works else "useradd: cannot lock /etc/passwd")


def test_it_is_made_once_without_a_login(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Fake(monkeypatch)
    made = account.make("/var/lib/federation", fake)  # type: ignore[arg-type]
    assert account.make("/var/lib/federation", fake) is made  # type: ignore[arg-type]
    ((program, *words),) = fake.ran
    assert (program, words[-1]) == ("useradd", "federation")
    assert {"--system", "--no-create-home"} <= set(words)
    assert words[words.index("--shell") + 1].endswith(("nologin", "false"))


def test_why_it_cannot_be_made_or_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Fake(monkeypatch, works=False)
    with pytest.raises(NotDone, match="cannot make the user federation for the service: useradd: cannot lock"):
        account.make("/var/lib/federation", fake)  # type: ignore[arg-type]
    fake.there = object()
    assert account.remove(fake) == "useradd: cannot lock /etc/passwd"  # type: ignore[arg-type]
    fake.works = True
    assert account.remove(fake) is None  # type: ignore[arg-type]


def test_this_user_acts_as_itself(tmp_path: Path) -> None:
    with account.acting_as(None):
        (tmp_path / "a").touch()
    with account.acting_as(pwd.getpwuid(os.geteuid())):
        (tmp_path / "b").touch()
    assert (tmp_path / "b").stat().st_uid == os.geteuid()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as somebody else")
def test_root_has_only_the_rights_of_the_one_it_acts_as(tmp_path: Path) -> None:
    nobody = pwd.getpwnam("nobody")
    (tmp_path / "theirs").mkdir()
    os.chown(tmp_path / "theirs", nobody.pw_uid, nobody.pw_gid)
    for folder in (tmp_path, *tmp_path.parents):
        if not folder.stat().st_mode & 0o001:
            folder.chmod(folder.stat().st_mode | 0o011)
    (tmp_path / "ours").write_text("secret")
    (tmp_path / "ours").chmod(0o600)
    found = account.owner_of(tmp_path / "theirs")
    assert found is not None
    assert found.pw_name == "nobody"
    with account.acting_as(found):
        (tmp_path / "theirs/a").touch()
        with pytest.raises(PermissionError):
            (tmp_path / "ours").read_text()
    assert (tmp_path / "theirs/a").stat().st_uid == nobody.pw_uid
    assert os.geteuid() == 0
    assert account.owner_of(tmp_path / "nowhere") is None
