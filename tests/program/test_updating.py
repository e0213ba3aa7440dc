from __future__ import annotations

import errno
import hashlib
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from federation.errors import NotDone, UsageError
from federation.program import updating
from federation.program.archive import Name
from federation.program.commands import Commands
from federation.program.installation import Installation
from tests.support.releases import release

if TYPE_CHECKING:
    from pathlib import Path

COMMANDS = Commands({"PATH": "/usr/bin:/bin"})


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """Archives whose programs know their version and nothing else."""
    for version in ("0.9.0", "0.10.0"):
        release(tmp_path / "base", version, broken=True)
    return tmp_path / "base"


@pytest.fixture
def place(tmp_path: Path) -> Installation:
    return Installation(tmp_path / "prefix")


def take(place: Installation, offer: updating.Offer) -> str | None:
    return updating.take(place, offer, COMMANDS, lambda _text: None)


def test_from_a_folder_comes_the_newest(place: Installation, base: Path) -> None:
    offer = updating.offer(str(base), None, None)
    assert offer.name == Name.here("0.10.0")
    assert take(place, offer) is None
    assert place.current == "0.10.0"
    assert place.source is None  # a folder may be gone tomorrow


def test_one_archive_is_checked_by_the_list_beside_it(place: Installation, base: Path) -> None:
    offer = updating.offer(str(base / str(Name.here("0.9.0"))), None, None)
    assert (offer.name.version, take(place, offer)) == ("0.9.0", None)
    (base / "SHA256SUMS").unlink()
    with pytest.raises(NotDone, match="has no SHA256SUMS; --sha256"):
        updating.offer(str(base / str(Name.here("0.9.0"))), None, None)
    (base / "SHA256SUMS").write_text("")
    with pytest.raises(NotDone, match="does not name it"):
        updating.offer(str(base / str(Name.here("0.9.0"))), None, None)


def test_a_pinned_one_needs_no_list(place: Installation, base: Path) -> None:
    path = base / str(Name.here("0.9.0"))
    (base / "SHA256SUMS").unlink()
    take(place, updating.offer(str(path), hashlib.sha256(path.read_bytes()).hexdigest(), b"any key"))
    assert place.current == "0.9.0"
    with pytest.raises(NotDone, match="does not have the hash it should have"):
        take(place, updating.offer(str(base / str(Name.here("0.10.0"))), "00" * 32, None))
    assert place.current == "0.9.0"


def test_a_pinned_one_is_found_in_the_list(base: Path) -> None:
    path = base / str(Name.here("0.9.0"))
    assert updating.offer(str(base), hashlib.sha256(path.read_bytes()).hexdigest(), None).name.version == "0.9.0"
    with pytest.raises(NotDone, match="no archive with that hash"):
        updating.offer(str(base), "00" * 32, None)


def test_an_archive_that_was_changed_is_refused(place: Installation, base: Path) -> None:
    path = base / str(Name.here("0.10.0"))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(NotDone, match="does not have the hash it should have"):
        take(place, updating.offer(str(base), None, None))
    assert place.versions == []


def test_a_version_with_a_key_takes_signed_lists_only(place: Installation, base: Path) -> None:
    key = Ed25519PrivateKey.generate()
    public = key.public_key().public_bytes_raw()
    with pytest.raises(NotDone, match="signed releases only"):
        updating.offer(str(base), None, public)
    (base / "SHA256SUMS.sig").write_bytes(Ed25519PrivateKey.generate().sign((base / "SHA256SUMS").read_bytes()))
    with pytest.raises(NotDone, match="is not signed with the key"):
        updating.offer(str(base), None, public)
    (base / "SHA256SUMS.sig").write_bytes(key.sign((base / "SHA256SUMS").read_bytes()))
    assert updating.offer(str(base), None, public).name.version == "0.10.0"
    take(place, updating.offer(str(base), None, None))
    assert updating.public_key(place) is None
    (place.folder("0.10.0") / "share/release.pub").write_bytes(public)
    assert updating.public_key(place) == public


def test_a_list_that_anybody_could_have_changed_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(updating.Source, "read", lambda *_: b"")
    with pytest.raises(NotDone, match="neither signed nor https"):
        updating.offer("http://example.net/x", None, None)
    with pytest.raises(NotDone, match="has no archive for"):
        updating.offer("https://example.net/x", None, None)


@pytest.mark.parametrize("name", ["federation.tar.gz", str(Name.here("0.9.0")._replace(arch="sparc"))])
def test_what_is_not_for_here_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(UsageError):
        updating.offer(str(tmp_path / name), "00" * 32, None)


def test_older_ones_are_taken_on_purpose_only() -> None:
    updating.check_is_newer("0.10.0", None)
    updating.check_is_newer("0.10.0", "0.9.0")
    with pytest.raises(UsageError, match="is older than"):
        updating.check_is_newer("0.9.0", "0.10.0")


def test_back_and_giving_up(place: Installation, base: Path) -> None:
    with pytest.raises(NotDone, match="no version before"):
        updating.go_back(place)
    for version in ("0.9.0", "0.10.0"):
        take(place, updating.offer(str(base / str(Name.here(version))), None, None))
    assert updating.go_back(place) == ("0.10.0", "0.9.0")
    assert updating.go_back(place) == ("0.9.0", "0.10.0")
    updating.give_up(place, "0.9.0")
    assert (place.current, place.previous, place.versions) == ("0.9.0", None, ["0.9.0"])


@pytest.mark.parametrize(
    ("number", "says"),
    [(errno.ENOSPC, "the disk is full"), (errno.EROFS, "Read-only"), (errno.EACCES, "sudo federation update")],
)
def test_a_disk_that_does_not_take_it(
    place: Installation, base: Path, monkeypatch: pytest.MonkeyPatch, number: int, says: str
) -> None:
    take(place, updating.offer(str(base / str(Name.here("0.9.0"))), None, None))
    error = OSError(number, {errno.EROFS: "Read-only file system"}.get(number, "x"))
    monkeypatch.setattr(Installation, "add", lambda *_: (_ for _ in ()).throw(error))
    with pytest.raises(NotDone, match=says):
        take(place, updating.offer(str(base), None, None))
    assert place.current == "0.9.0"
