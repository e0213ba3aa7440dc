from __future__ import annotations

import errno
import os
import shutil
from typing import TYPE_CHECKING

import pytest

from federation.errors import NotDone
from federation.program import installation as module
from federation.program.archive import Name, pack
from federation.program.commands import Commands
from federation.program.installation import Installation, find

if TYPE_CHECKING:
    from pathlib import Path

COMMANDS = Commands({"PATH": os.environ["PATH"]})
SHA = "cd" * 32


def archive(tmp_path: Path, version: str, says: str | None = None) -> Path:
    """An archive whose program says its version, or something else."""
    folder = tmp_path / f"made-{version}"
    (folder / "app").mkdir(parents=True)
    (folder / "app/data").write_text("x" * 1000)
    (folder / "federation").write_text(f"#!/bin/sh\necho federation {says or version}\n")
    (folder / "federation").chmod(0o755)
    path = tmp_path / str(Name.here(version))
    with path.open("wb") as file:
        pack(folder, Name.here(version), file)
    shutil.rmtree(folder)
    return path


def add(place: Installation, path: Path) -> None:
    name = Name.parse(path.name)
    assert name is not None
    with place.locked(), path.open("rb") as file:
        place.add(file, name, SHA, COMMANDS)
        place.use(name.version)


@pytest.fixture
def place(tmp_path: Path) -> Installation:
    return Installation(tmp_path / "prefix")


def test_versions_lie_beside_each_other_and_a_link_leads_to_one(place: Installation, tmp_path: Path) -> None:
    assert (place.current, place.previous, place.versions, place.source) == (None, None, [], None)
    add(place, archive(tmp_path, "0.9.0"))
    add(place, archive(tmp_path, "0.10.0"))
    assert (place.current, place.previous, place.versions) == ("0.10.0", "0.9.0", ["0.9.0", "0.10.0"])
    assert os.readlink(place.link) == "../lib/federation/current/federation"
    assert COMMANDS.run(str(place.link), "version").out == "federation 0.10.0\n"
    assert (place.folder("0.10.0") / "share/sha256").read_text().strip() == SHA
    assert place.is_link_ours()
    assert sorted(path.name for path in place.home.iterdir()) == ["0.10.0", "0.9.0", "current", "made", "previous"]


def test_going_back_and_forth(place: Installation, tmp_path: Path) -> None:
    for version in ("0.9.0", "0.10.0"):
        add(place, archive(tmp_path, version))
    with place.locked():
        place.use("0.9.0")
    assert (place.current, place.previous) == ("0.9.0", "0.10.0")


def test_without_a_link_the_version_before_is_the_newest_older_one(place: Installation, tmp_path: Path) -> None:
    for version in ("0.8.0", "0.9.0", "0.10.0"):
        add(place, archive(tmp_path, version))
    (place.home / "previous").unlink()  # as install.sh leaves it
    assert place.previous == "0.9.0"


def test_one_that_does_not_run_here_changes_nothing(place: Installation, tmp_path: Path) -> None:
    add(place, archive(tmp_path, "0.9.0"))
    before = sorted(place.home.iterdir())
    with pytest.raises(NotDone, match="does not run on this machine"):
        add(place, archive(tmp_path, "0.10.0", says="0.7.0"))
    assert sorted(place.home.iterdir()) == before
    assert place.current == "0.9.0"


@pytest.mark.parametrize("step", ["unpack", "rename", "use"])
def test_an_end_in_the_middle_leaves_the_old_one_in_use(
    place: Installation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """As a killed process leaves it: nothing is tidied up. The next update is."""
    add(place, archive(tmp_path, "0.9.0"))

    class Killed(BaseException): ...

    def kill(*_: object, **__: object) -> None:
        raise Killed

    new = archive(tmp_path, "0.10.0")
    with monkeypatch.context() as patch:
        patch.setattr(Installation, "_sweep", lambda _self: None)
        if step == "unpack":
            patch.setattr(module, "unpack", lambda _file, _name, into: (into.mkdir(), (into / "half").touch(), kill()))
        elif step == "rename":
            patch.setattr(COMMANDS, "run", kill, raising=False)
        else:
            patch.setattr(Installation, "use", kill)
        with pytest.raises(Killed):
            add(place, new)
    assert place.current == "0.9.0"
    assert COMMANDS.run(str(place.link), "version").out == "federation 0.9.0\n"
    add(place, new)
    assert place.current == "0.10.0"
    assert not [path for path in place.home.iterdir() if path.name.startswith(".")]


def test_a_full_disk_leaves_the_old_one_in_use(place: Installation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add(place, archive(tmp_path, "0.9.0"))

    def full(_file: object, _name: object, into: Path) -> None:
        into.mkdir()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "unpack", full)
    with pytest.raises(OSError, match="No space"):
        add(place, archive(tmp_path, "0.10.0"))
    assert sorted(path.name for path in place.home.iterdir()) == ["0.9.0", "current", "made"]


def test_a_second_update_waits_its_turn(place: Installation) -> None:
    with place.locked(), pytest.raises(NotDone, match="another update"), place.locked():
        pass
    with place.locked():
        pass


def test_old_versions_go_but_not_the_two_that_are_used(place: Installation, tmp_path: Path) -> None:
    for version in ("0.8.0", "0.9.0", "0.10.0"):
        add(place, archive(tmp_path, version))
    assert place.prune() == ["0.8.0"]
    assert place.versions == ["0.9.0", "0.10.0"]


def test_nor_one_that_runs(place: Installation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for version in ("0.8.0", "0.9.0", "0.10.0"):
        add(place, archive(tmp_path, version))
    monkeypatch.setattr(Installation, "_running", lambda _self: {"0.8.0"})
    assert place.prune() == []


@pytest.mark.skipif(not os.path.exists("/proc/self/exe"), reason="Linux says what runs")
def test_what_runs_is_found(place: Installation) -> None:
    home = Installation(place.prefix)
    home.home = module.Path(os.readlink("/proc/self/exe")).parent  # as if this process ran from it
    assert module.Path(os.readlink("/proc/self/exe")).name in home._running()


def test_one_that_failed_is_forgotten(place: Installation, tmp_path: Path) -> None:
    for version in ("0.8.0", "0.9.0", "0.10.0"):
        add(place, archive(tmp_path, version))
    with place.locked():
        place.use("0.9.0")
        place.discard("0.10.0")
    assert (place.current, place.previous, place.versions) == ("0.9.0", "0.8.0", ["0.8.0", "0.9.0"])


def test_all_of_it_goes_and_nothing_else(place: Installation, tmp_path: Path) -> None:
    add(place, archive(tmp_path, "0.9.0"))
    (place.prefix / "bin/other").touch()
    (place.prefix / "lib/other").mkdir()
    place.remove()
    assert sorted(str(path.relative_to(place.prefix)) for path in place.prefix.rglob("*")) == [
        "bin", "bin/other", "lib", "lib/other",
    ]  # fmt: skip


def test_folders_that_were_made_for_it_go_too(tmp_path: Path) -> None:
    place = Installation(tmp_path / "home/.local")
    add(place, archive(tmp_path, "0.9.0"))
    place.remove()
    assert not (tmp_path / "home").exists()


def test_a_link_of_somebody_else_stays(place: Installation, tmp_path: Path) -> None:
    add(place, archive(tmp_path, "0.9.0"))
    place.link.unlink()
    place.link.symlink_to("/opt/other/federation")
    assert not place.is_link_ours()
    place.remove()
    assert place.link.is_symlink()


def test_where_updates_come_from(place: Installation) -> None:
    with place.locked():
        pass
    place.remember("https://example.net/federation")
    assert place.source == "https://example.net/federation"


def test_a_program_finds_its_own_installation(tmp_path: Path) -> None:
    folder = tmp_path / "lib/federation/0.9.0"
    inner = folder / "lib/python3.11/site-packages/federation/__init__.py"
    inner.parent.mkdir(parents=True)
    inner.touch()
    assert find(str(inner)) is None  # without a program it is something else
    (folder / "federation").touch()
    (tmp_path / "lib/federation/current").symlink_to("0.9.0")
    for path in (inner, tmp_path / "lib/federation/current/lib/python3.11/site-packages/federation/__init__.py"):
        found = find(str(path))
        assert found is not None
        assert (found[0].prefix, found[1]) == (tmp_path.resolve(), folder.resolve())
    assert find(__file__) is None
    packaged = find("/usr/lib/federation/lib/federation/__init__.py")
    assert packaged is not None
    assert (packaged[0].is_packaged, str(packaged[0].link)) == (True, "/usr/bin/federation")
