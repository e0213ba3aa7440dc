"""From an archive somewhere to a version that is used here.

An archive is believed if a person pins its hash, or if SHA256SUMS beside it has it and the list itself is believed: signed
with the key of the installed version (`share/release.pub` in its folder), or, if that version has none, from this machine
or by TLS. A version with a key takes no unsigned list.
"""

from __future__ import annotations

import errno
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from federation.errors import NotDone, UsageError
from federation.program import sums
from federation.program.archive import Name, order
from federation.program.fetching import Source

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from federation.program.commands import Commands
    from federation.program.installation import Installation

MAX_KEY_BYTES = 4096


class Offer(NamedTuple):
    """An archive that is believed once it has this hash."""

    name: Name
    sha256: str
    source: Source


def offer(text: str, pinned: str | None, public_key: bytes | None) -> Offer:
    """What SOURCE, an address, a folder or an archive, has for this machine. Raises UsageError or NotDone."""
    name: Name | None = None
    path = Path(text).expanduser()
    if "://" not in text and path.is_file():
        name = Name.parse(path.name)
        if name is None:
            raise UsageError(f"{path.name} is no archive of ours: federation-VERSION-linux-ARCH.tar.gz")
        source = Source(str(path.absolute().parent))
    else:
        source = Source(text)
    if pinned is not None and name is not None:
        name.check_is_for_here()
        return Offer(name, pinned, source)
    hashes = _hashes(source, pinned, public_key)
    if pinned is not None:
        name = next((found for text, sha in hashes.items() if sha == pinned and (found := Name.parse(text))), None)
        if name is None:
            raise NotDone(f"{source.text} has no archive with that hash")
    elif name is None:
        name = sums.newest(hashes)
        if name is None:
            here = Name.here("VERSION")
            raise NotDone(f"{source.text} has no archive for {here.system} on {here.arch}")
    name.check_is_for_here()
    if str(name) not in hashes:
        raise NotDone(f"{sums.LIST} beside {name} does not name it; --sha256 HASH pins it, if you know its hash")
    return Offer(name, hashes[str(name)], source)


def _hashes(source: Source, pinned: str | None, public_key: bytes | None) -> dict[str, str]:
    data = source.read(sums.LIST, sums.MAX_LIST_BYTES)
    if data is None:
        raise NotDone(f"{source.text} has no {sums.LIST}; --sha256 HASH pins an archive, if you know its hash")
    if pinned is None and public_key is not None:
        signature = source.read(sums.SIGNATURE, sums.MAX_LIST_BYTES)
        if signature is None:
            raise NotDone(f"{source.text} has no {sums.SIGNATURE}, and the installed version takes signed releases only")
        sums.check_signature(data, signature, public_key)
    elif pinned is None and not source.is_authentic:
        raise NotDone(
            f"{source.text} is neither signed nor https: anybody on the way could change it; --sha256 HASH pins an archive"
        )
    return sums.parse(data)


def public_key(installation: Installation) -> bytes | None:
    """The key that the installed version expects of a release; None if it has none."""
    version = installation.current
    if version is None:
        return None
    try:
        with (installation.folder(version) / sums.PUBLIC_KEY).open("rb") as file:
            return file.read(MAX_KEY_BYTES)
    except FileNotFoundError:
        return None


def check_is_newer(version: str, current: str | None) -> None:
    """Raises UsageError for a version that is older than the current one, which may not read what that one wrote."""
    if current is not None and order(version) < order(current):
        raise UsageError(f"{version} is older than {current}, which is installed; `--rollback` goes back, or --older")


def take(installation: Installation, offer: Offer, commands: Commands, progress: Callable[[str], None]) -> str | None:
    """Get the archive, check it, and make its version the current one. Returns the version before.

    Raises NotDone, and then the old version is the current one.
    """
    with _disk(installation), installation.locked(), tempfile.TemporaryFile(dir=installation.home) as file:

        def told(done: int) -> None:
            progress(f"getting {offer.name}: {done // 1024**2} MiB")

        offer.source.copy(str(offer.name), file, told)
        file.flush()
        if sums.of_file(file) != offer.sha256:
            raise NotDone(
                f"{offer.name} from {offer.source.text} does not have the hash it should have; nothing was changed"
            )
        progress(f"unpacking {offer.name}")
        before = installation.current
        installation.add(file, offer.name, offer.sha256, commands)
        installation.use(offer.name.version)
        if "://" in offer.source.text:
            installation.remember(offer.source.text)
        return before


def go_back(installation: Installation) -> tuple[str, str]:
    """Make the previous version the current one. Returns (the version that is left, the one that is used now)."""
    with _disk(installation), installation.locked():
        left, to = installation.current, installation.previous
        if left is None or to is None:
            raise NotDone("there is no version before this one here")
        installation.use(to)
        return left, to


def give_up(installation: Installation, to: str) -> None:
    """Make `to` the current version again, and forget the one that did not work."""
    with _disk(installation), installation.locked():
        failed = installation.current
        installation.use(to)
        if failed is not None and failed != to:
            installation.discard(failed)


@contextmanager
def _disk(installation: Installation) -> Iterator[None]:
    try:
        yield
    except PermissionError:
        raise NotDone(f"{installation.home} is not this user's: sudo federation update") from None
    except OSError as error:
        what = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else error.strerror or str(error)
        raise NotDone(f"{installation.home}: {what}; the version that was used before still is") from None
