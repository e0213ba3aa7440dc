from __future__ import annotations

import hashlib
import io
import os
from typing import TYPE_CHECKING, Any

import pytest

import federation
from federation.errors import NotDone, UsageError
from federation.mesh.invite_codes import InviteCode
from federation.ops import handover as module
from federation.ops import invites
from federation.program.archive import Name, unpack
from federation.program.installation import Installation
from federation.units import HostPort
from tests.support.nodes import MakeNode

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This program, as an archive would have installed it."""
    folder = tmp_path / "prefix/lib/federation/x"
    folder.mkdir(parents=True)
    (folder / "federation").write_text("#!/bin/sh\n")
    monkeypatch.setattr(module.installation, "find", lambda _: (Installation(tmp_path / "prefix"), folder))
    return folder


def reachable(make: MakeNode, control: str = "10.9.8.7:8485") -> Any:
    node = make()
    node.facts.control = HostPort.parse(control)
    return node


async def test_this_program_is_packed_once_and_handed_over(make: MakeNode, installed: Path, tmp_path: Path) -> None:
    node = reachable(make)
    answer = await node.operator.hand_over(None, None)
    assert answer["archive"] == str(Name.here(federation.__version__))
    assert (answer["base"], answer["other_bases"]) == ("http://10.9.8.7:8485", [])
    path = node.parts.state.path / "handover" / answer["archive"]
    assert hashlib.sha256(path.read_bytes()).hexdigest() == answer["sha256"]
    unpack(io.BytesIO(path.read_bytes()), Name.here(federation.__version__), tmp_path / "out")
    assert (tmp_path / "out/federation").read_text() == "#!/bin/sh\n"
    made_at = path.stat().st_mtime_ns
    again = await node.operator.hand_over(None, None)
    assert (again["sha256"], path.stat().st_mtime_ns) == (answer["sha256"], made_at)
    assert again["line"] != answer["line"]


def code_of(line: str) -> InviteCode:
    return InviteCode.decode(line.split("echo '")[1].split("'")[0])


def name_of(line: str) -> str:
    return line.split("/handover/")[1].split("/")[0]


async def test_the_code_in_the_line_is_an_invite_for_one_machine_and_an_hour(make: MakeNode, installed: Path) -> None:
    node = reachable(make)
    answer = await node.operator.hand_over(None, None)
    (invite,) = node.operator.invites()["invites"]
    code = code_of(answer["line"])
    assert (invite["id"], invite["state"], invite["uses"], invite["approve"]) == (answer["invite"], "open", 1, False)
    assert invite["id"] == code.short
    assert code.encode() not in name_of(answer["line"]) + repr(node.operator.handed_over(name_of(answer["line"])))
    assert code.secret not in node.operator.handed_over(name_of(answer["line"])).script


async def test_the_files_end_with_the_invite(make: MakeNode, installed: Path) -> None:
    node = reachable(make)
    used, revoked, late = [(await node.operator.hand_over(None, None))["line"] for _ in range(3)]
    of = {line: node.parts.newcomers.invites.get(code_of(line).id) for line in (used, revoked, late)}
    assert all(node.operator.handed_over(name_of(line)) is not None for line in of)
    now_ms = node.parts.newcomers.now_ms
    node.parts.newcomers.invites.take(of[used], "peer", "name", now_ms)
    assert node.operator.handed_over(name_of(used)) is not None  # it may have broken: the same machine runs the line again
    of[used].used["peer"].confirmed = True
    await invites.revoke(node.parts, code_of(revoked).short)
    of[late].expires_ms = now_ms - 1
    assert [node.operator.handed_over(name_of(line)) for line in of] == [None, None, None]
    assert node.operator.handed_over("00" * 16) is None


async def test_there_are_few(make: MakeNode, installed: Path) -> None:
    node = reachable(make)
    lines = [(await node.operator.hand_over(None, None))["line"] for _ in range(module.MAX_LINES + 1)]
    there = [node.operator.handed_over(name_of(line)) is not None for line in lines]
    assert there == [False] + [True] * module.MAX_LINES


async def test_a_changed_program_is_packed_anew(make: MakeNode, installed: Path) -> None:
    node = reachable(make)
    first = await node.operator.hand_over(None, None)
    path = node.parts.state.path / "handover" / first["archive"]
    os.utime(path, (1, 1))
    (installed / "more").touch()
    assert (await node.operator.hand_over(None, None))["sha256"] != first["sha256"]
    assert [file.name for file in path.parent.iterdir()] == [path.name]


async def test_an_archive_that_was_brought(make: MakeNode) -> None:
    node = reachable(make)
    name = str(Name.here("0.9.0"))
    (node.parts.state.path / "handover").mkdir(parents=True)
    (node.parts.state.path / "handover" / name).write_bytes(b"archive")
    assert (await node.operator.hand_over(name, None))["version"] == "0.9.0"
    for wrong in ("../identity", "identity", "/etc/passwd"):
        with pytest.raises(UsageError, match="is no name of an archive"):
            await node.operator.hand_over(wrong, None)
    (node.parts.state.path / "handover" / str(Name.here("1"))).symlink_to("/etc/passwd")
    for missing in ("1", "2"):
        with pytest.raises(NotDone):
            await node.operator.hand_over(str(Name.here(missing)), None)


async def test_a_checkout_says_what_to_do(make: MakeNode) -> None:
    with pytest.raises(NotDone, match="--archive FILE"):
        await reachable(make).operator.hand_over(None, None)


async def test_on_loopback_it_says_what_to_do(make: MakeNode, installed: Path) -> None:
    with pytest.raises(NotDone, match=r"start the node with --control 0.0.0.0:8485"):
        await reachable(make, "127.0.0.1:8485").operator.hand_over(None, None)


async def test_where_the_other_machine_finds_it(make: MakeNode, installed: Path) -> None:
    node = reachable(make)
    assert (await node.operator.hand_over(None, "box.lan"))["base"] == "http://box.lan:8485"
    assert (await node.operator.hand_over(None, "[fd00::1]:9000"))["base"] == "http://[fd00::1]:9000"
    for bad in ("not a host", "[fe80::1%;id]", "[fe80::1%eth0]:9000"):  # the line is a shell's
        with pytest.raises(UsageError, match="--address"):
            await node.operator.hand_over(None, bad)
