from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from federation.program.archive import Name
from federation.program.handover import FOLDER

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from federation.state import StateDir
    from tests.support.cli import Api

ANSWER = {
    "line": "u=http://x; sh", "invite": "0123abcd", "base": "http://10.0.0.5:8485",
    "other_bases": ["http://[fd00::1]:8485"],
}  # fmt: skip


def test_the_line_alone_is_on_standard_output(api: Api, run: Callable[..., Any]) -> None:
    api.answers["POST handover"] = [ANSWER]
    code, out, err = run("invite", "--install", "--address", "box.lan")
    assert (code, out) == (0, "u=http://x; sh\n")
    assert "http://[fd00::1]:8485" in err
    assert "federation invite --revoke 0123abcd" in err
    assert api.seen == [("POST handover", {"address": "box.lan"})]
    assert json.loads(run("invite", "--install", "--json")[1]) == ANSWER


def test_an_archive_is_brought_to_the_daemon(api: Api, run: Callable[..., Any], state: StateDir, tmp_path: Path) -> None:
    api.answers["POST handover"] = [ANSWER]
    for version in ("0.9.0", "0.10.0"):
        archive = tmp_path / str(Name.here(version))
        archive.write_text(version)
        assert run("invite", "--install", "--archive", str(archive))[0] == 0
    assert api.seen[-1] == ("POST handover", {"archive": archive.name})
    (brought,) = (state.path / FOLDER).iterdir()
    assert (brought.name, brought.read_text(), brought.stat().st_mode & 0o777) == (archive.name, "0.10.0", 0o600)


def test_one_that_is_none(api: Api, run: Callable[..., Any], tmp_path: Path) -> None:
    assert run("invite", "--install", "--archive", str(tmp_path / "x.zip"))[0] == 2
    code, _, err = run("invite", "--install", "--archive", str(tmp_path / str(Name.here("1"))))
    assert (code, "No such file" in err, api.asked) == (1, True, [])


def test_the_node_s_refusal_is_shown(api: Api, run: Callable[..., Any]) -> None:
    api.refuses = True
    code, out, err = run("invite", "--install")
    assert (code, out, err.count("\n")) == (1, "", 1)
