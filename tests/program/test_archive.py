from __future__ import annotations

import gzip
import io
import os
import tarfile
from typing import TYPE_CHECKING

import pytest

from federation.errors import NotDone, UsageError
from federation.program import archive
from federation.program.archive import Name, order, pack, unpack

if TYPE_CHECKING:
    from pathlib import Path

NAME = Name("0.9.0", "linux", "x86_64")
TOP = "federation-0.9.0-linux-x86_64"


def made(*members: tuple[str, object]) -> io.BytesIO:
    """An archive with these members: bytes is a file, None a folder, a text a link, a TarInfo itself."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            if isinstance(content, tarfile.TarInfo):
                tar.addfile(content)
            elif content is None:
                member.type = tarfile.DIRTYPE
                tar.addfile(member)
            elif isinstance(content, str):
                member.type, member.linkname = tarfile.SYMTYPE, content
                tar.addfile(member)
            else:
                assert isinstance(content, bytes)
                member.size, member.mode = len(content), 0o755
                tar.addfile(member, io.BytesIO(content))
    file.seek(0)
    return file


def other(name: str, kind: bytes) -> tuple[str, tarfile.TarInfo]:
    member = tarfile.TarInfo(f"{TOP}/{name}")
    member.type, member.linkname = kind, f"{TOP}/a"
    return name, member


def test_names() -> None:
    assert Name.parse(f"{TOP}.tar.gz") == NAME
    assert str(NAME) == f"{TOP}.tar.gz"
    for text in (
        "federation-0.9.0-linux-x86_64.zip",
        "federation-../x-linux-x86_64.tar.gz",
        "other-1-linux-x86_64.tar.gz",
        "",
    ):
        assert Name.parse(text) is None
    here = Name.here("1.0")
    here.check_is_for_here()
    with pytest.raises(UsageError, match="this machine is"):
        here._replace(arch="sparc").check_is_for_here()


def test_versions_in_their_order() -> None:
    given = ["0.9.0", "0.10.0.dev3", "0.10.0a1", "0.10.0rc1", "0.10", "0.10.0.1", "1", "1.0.1"]
    assert sorted(reversed(given), key=order) == given
    assert order("1.0") == order("1")
    for text in ("", "1.x", "1-2", "..", "v1", "1.0+local"):
        with pytest.raises(ValueError, match="no version"):
            order(text)


def test_what_is_packed_is_unpacked_again(tmp_path: Path) -> None:
    folder = tmp_path / "it"
    (folder / "lib/deep").mkdir(parents=True)
    (folder / "federation").write_bytes(b"#!/bin/sh\n")
    (folder / "federation").chmod(0o700)
    (folder / "lib/data").write_bytes(os.urandom(700_000))
    (folder / "lib/link").symlink_to("../federation")
    os.link(folder / "lib/data", folder / "lib/deep/same")  # a second name is a second file there
    with (tmp_path / "a.tar.gz").open("w+b") as file:
        pack(folder, NAME, file)
        file.seek(0)
        unpack(file, NAME, tmp_path / "out")
    out = tmp_path / "out"
    assert sorted(str(path.relative_to(out)) for path in out.rglob("*")) == [
        "federation", "lib", "lib/data", "lib/deep", "lib/deep/same", "lib/link",
    ]  # fmt: skip
    assert (out / "lib/deep/same").read_bytes() == (folder / "lib/data").read_bytes()
    assert os.readlink(out / "lib/link") == "../federation"
    assert (out / "federation").stat().st_mode & 0o777 == 0o755  # a service's user has to run it
    assert (out / "lib/data").stat().st_mode & 0o777 == 0o644


def test_packing_again_gives_the_same_bytes(tmp_path: Path) -> None:
    (tmp_path / "it").mkdir()
    (tmp_path / "it/federation").write_text("x")
    packed = []
    for second in (1, 2):
        os.utime(tmp_path / "it/federation", (second, second))
        file = io.BytesIO()
        pack(tmp_path / "it", NAME, file)
        packed.append(file.getvalue())
    assert packed[0] == packed[1]


@pytest.mark.parametrize(
    "members",
    [
        [("/etc/evil", b"x")],
        [(TOP, None), (f"{TOP}/../evil", b"x")],
        [("elsewhere", None), ("elsewhere/a", b"x")],
        [(TOP, None), (f"{TOP}/nowhere/a", b"x")],
        [(TOP, None), (f"{TOP}/out", ".."), (f"{TOP}/out/evil", b"x")],
        [(TOP, None), (f"{TOP}/out", "/etc")],
        [(TOP, None), (f"{TOP}/d", None), (f"{TOP}/d/up", ".."), (f"{TOP}/out", "d/up/../..")],
        [(TOP, None), (f"{TOP}/d", None), (f"{TOP}/d/out", "../..")],
        [(TOP, None), (f"{TOP}/d", None), (f"{TOP}/l", "d"), (f"{TOP}/l/a", b"x")],  # through a link, though an inner one
        [(TOP, None), (f"{TOP}/a", b"x"), (f"{TOP}/a", b"y")],
        [(TOP, None), (f"{TOP}/a", b"x"), other("hard", tarfile.LNKTYPE)],
        [(TOP, None), other("device", tarfile.CHRTYPE)],
        [(TOP, None), other("pipe", tarfile.FIFOTYPE)],
        [(TOP, None), (f"{TOP}/{'a' * 1100}", b"x")],
    ],
)
def test_nothing_is_written_elsewhere(tmp_path: Path, members: list[tuple[str, object]]) -> None:
    with pytest.raises(NotDone, match="is not ours"):
        unpack(made(*members), NAME, tmp_path / "deep" / "out" if (tmp_path / "deep").mkdir() else tmp_path / "deep/out")
    assert not (tmp_path / "evil").exists()
    assert not (tmp_path / "deep/evil").exists()
    assert not (tmp_path / "deep/out/l/a").exists()


def test_links_that_stay_inside_are_fine(tmp_path: Path) -> None:
    unpack(made((TOP, None), (f"{TOP}/d", None), (f"{TOP}/d/l", "../x"), (f"{TOP}/l", "d/l")), NAME, tmp_path / "out")
    assert os.readlink(tmp_path / "out/d/l") == "../x"


@pytest.mark.parametrize("keep", [0, 1, 20, 60])
def test_a_damaged_one_says_so(tmp_path: Path, keep: int) -> None:
    whole = made((TOP, None), (f"{TOP}/a", os.urandom(5000))).getvalue()
    with pytest.raises(NotDone, match="is damaged"):
        unpack(io.BytesIO(whole[: len(whole) * keep // 100]), NAME, tmp_path / "out")


def test_one_that_is_no_archive_says_so(tmp_path: Path) -> None:
    for number, content in enumerate((b"hello", gzip.compress(b"hello" * 500))):
        with pytest.raises(NotDone, match="is damaged"):
            unpack(io.BytesIO(content), NAME, tmp_path / str(number))


def test_it_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MAX_BYTES", 1000)
    with pytest.raises(NotDone, match="none of ours has"):
        unpack(made((TOP, None), (f"{TOP}/a", b"x" * 600), (f"{TOP}/b", b"x" * 600)), NAME, tmp_path / "size")
    monkeypatch.setattr(archive, "MAX_MEMBERS", 3)
    with pytest.raises(NotDone, match="none of ours has"):
        unpack(made((TOP, None), *((f"{TOP}/{i}", b"") for i in range(3))), NAME, tmp_path / "count")


def header(name: str, kind: bytes, data: bytes = b"") -> bytes:
    member = tarfile.TarInfo(name)
    member.type, member.size = kind, len(data)
    return member.tobuf(tarfile.GNU_FORMAT) + data + bytes(-len(data) % 512)


FOLDER = header(TOP, tarfile.DIRTYPE)
HOLES = b"22 GNU.sparse.map=1,2\n"


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (FOLDER + header("x", tarfile.GNUTYPE_LONGNAME, bytes(2 * 65536)), "has headers of more than 64 KiB"),
        (FOLDER + header("x", tarfile.XHDTYPE, bytes(2 * 65536)), "has headers of more than 64 KiB"),
        (header("x", tarfile.XGLTYPE, bytes(2 * 65536)), "has headers of more than 64 KiB"),
        (FOLDER + 2000 * header("x", tarfile.GNUTYPE_LONGNAME, b"a"), "has headers of more than 64 KiB"),  # one in another
        (FOLDER + header("x", tarfile.XHDTYPE, HOLES) + header(f"{TOP}/a", tarfile.REGTYPE, b"abc"), "has holes"),
    ],
    ids=["name", "fields", "fields of all", "deep", "holes"],
)
def test_headers_take_no_memory(tmp_path: Path, content: bytes, why: str) -> None:
    with pytest.raises(NotDone, match=why):
        unpack(io.BytesIO(gzip.compress(content + bytes(1024))), NAME, tmp_path / "out")


def test_large_files_are_no_headers(tmp_path: Path) -> None:
    data = bytes(3 * 65536)
    unpack(made((TOP, None), *((f"{TOP}/{i}", data) for i in range(3))), NAME, tmp_path / "out")
    assert [(tmp_path / "out" / str(i)).read_bytes() == data for i in range(3)] == [True] * 3
