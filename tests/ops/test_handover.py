from __future__ import annotations

import hashlib
import io
import os
from typing import TYPE_CHECKING, Any

import pytest

import federation
from federation.errors import NotDone, UsageError
from federation.mesh.tokens import Token
from federation.ops import handover as module
from federation.program import handover
from federation.program.archive import Name, unpack
from federation.program.installation import Installation
from federation.units import HostPort
from tests.support.nodes import TOKEN, MakeNode

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


async def test_the_code_in_the_line_takes_the_token_once(make: MakeNode, installed: Path) -> None:
    node = reachable(make)
    line = (await node.operator.hand_over(None, None))["line"]
    code = handover.Code.parse(line.split("echo '")[1].split("'")[0])
    assert node.operator.handed_over(code.archive_url.rpartition("/")[2]) is not None
    name = code.token_url.split("/")[-2]
    sealed = node.operator.hand_token(name)
    assert Token.decode(handover.unseal(code.secret, sealed)).secret == TOKEN.secret
    assert node.operator.hand_token(name) is None


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
