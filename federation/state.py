"""The state directory: what a node must find again after a restart. One daemon uses it at a time.

    identity         Ed25519 seed, 32 bytes: the node's peer id. Created once; never replaced, even when damaged.
    token            the network's token; token.previous has those that it replaced, newest first, MAX_PREVIOUS of them
    owner-ID.key     the owner key of the network ID, with which its token is rotated; never replaced or removed
    control.key      what the control API asks of the owner; made at the first start
    rotation.json    former tokens' keys while they admit, and who may be told the present token
    banned.json      peers that this node keeps away
    dashboard.html   leads a browser to the dashboard; written by `federation dashboard --open`
    incarnation      raised at each start, so that the network believes the restarted node
    peers.json       addresses under which peers were last reached
    daemon.json      where the running daemon listens, for the command line
    control.sock     where the command line asks the running daemon; whoever can open it is the owner
    lock             held by the running daemon

Every write is atomic (a temporary file, synced and renamed) and every file is for its owner only. No file that is a link is
read, written or created through. A damaged file costs a warning and counts as absent, but for what a person or the network
would miss: identity, token and bans stop the start. A disk that is full or read-only costs a warning where what would be
written can be done without.

No structlog here: the command line reads daemon.json where it must answer at once.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import pwd
import re
import secrets
import stat
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, BinaryIO

from federation import unixsocket
from federation.errors import NotOurs, StateDirBusy, StateDirUnusable
from federation.units import visible

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from pathlib import Path

log = logging.getLogger(__name__)

SEED_BYTES = 32
MAX_INCARNATION = 2**62  # far from what a record can carry, so that a damaged file cannot get a node stuck there
MAX_FILE_BYTES = 16 * 1024 * 1024
MAX_PREVIOUS = 16
MAX_KEY_BYTES = 4096  # several times an owner's key
LOCK_LOOKS, LOCK_PAUSE_S = 3, 0.01
CONTROL_SOCKET = "control.sock"
_KEY = re.compile(r"[A-Za-z0-9_-]{43}")  # 32 random bytes


class StateDir:
    """The files of one node. Nothing is touched before the first call."""

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        self.path = path
        self._clock = clock
        self._lock_fd: int | None = None

    def lock(self) -> None:
        """Make the directory and take it for this process, until `unlock` or the process's end. Taken twice is once."""
        if self._lock_fd is not None:
            return
        self._create()
        path = self.path / "lock"
        try:
            fd = _open_lock(path)
        except OSError as error:
            raise StateDirUnusable(_problem(path, error)) from None
        try:
            _flock(fd)
        except BlockingIOError:
            holder = _process(fd)
            os.close(fd)
            raise StateDirBusy(f"{self.path} (process {holder})") from None
        except OSError as error:  # a file system without locks
            os.close(fd)
            raise StateDirUnusable(_problem(path, error)) from None
        self._lock_fd = fd
        with suppress(OSError):  # a disk that is full or read-only: then a second daemon cannot say whose it is
            os.ftruncate(fd, 0)
            os.pwrite(fd, str(os.getpid()).encode(), 0)

    def holder(self) -> str | None:
        """The process that has the lock, as it wrote itself down; None where nobody has it."""
        try:
            fd = os.open(self.path / "lock", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)  # let go at once, by the close
        except BlockingIOError:
            return _process(fd)
        except OSError:
            return None
        finally:
            os.close(fd)
        return None

    def unlock(self) -> None:
        if self._lock_fd is not None:
            os.close(self._lock_fd)  # the file stays: removing it would let two daemons lock two files
            self._lock_fd = None

    def identity(self) -> bytes:
        """The node's Ed25519 seed. Raises StateDirUnusable rather than to start as somebody else."""
        seed = self._read_own("identity")
        if seed is None:
            seed = secrets.token_bytes(SEED_BYTES)
            self._write("identity", seed)
        if len(seed) != SEED_BYTES:
            raise StateDirUnusable(f"{self.path / 'identity'} is damaged; delete it to start as a new node")
        return seed

    def load_token(self) -> str | None:
        """The saved token's text; None before there is one. It stops the start when it cannot be read."""
        data = self._read_own("token")
        return None if data is None else data.decode("ascii", errors="replace").strip()

    def save_token(self, text: str, *, keep_old: bool = True, replaces: Callable[[str], bool] = lambda _text: False) -> None:
        """Save `text`. What it replaces is kept in token.previous, unless told that it is the same network's.

        Of those kept there, what `replaces` says is outdated goes: rotations do not push out what a person gave.
        """
        old = self.load_token()
        if old == text:
            return
        if old and keep_old:
            kept = [token for token in self._previous_tokens() if token not in (old, text) and not replaces(token)]
            self._write("token.previous", _lines([old, *kept][:MAX_PREVIOUS]))
        self._write("token", _lines([text]))

    def save_owner_key(self, network_id: str, text: str) -> Path:
        """Raises StateDirUnusable, also where there is one already."""
        self._create()
        path = self.owner_key_path(network_id)
        try:
            write_new(path, _lines([text]))
        except OSError as error:
            raise StateDirUnusable(_problem(path, error)) from None
        return path

    def load_owner_key(self, network_id: str) -> str | None:
        """As saved; None where it is not here. Raises StateDirUnusable where it is and cannot be read."""
        data = self._read_own(self.owner_key_path(network_id).name)
        return None if data is None else data[:MAX_KEY_BYTES].decode("ascii", errors="replace")

    def owner_key_path(self, network_id: str) -> Path:
        return self.path / f"owner-{network_id}.key"

    def forget_network(self, is_its: Callable[[str], bool]) -> None:
        """Remove the token, those in token.previous that `is_its` says are the same network's, and members' addresses."""
        kept = self._previous_tokens()
        others = [text for text in kept if not is_its(text)]
        if others != kept:
            self._write("token.previous", _lines(others))
        for name in ("token", "rotation.json", "peers.json"):
            self._remove(name)

    def _previous_tokens(self) -> list[str]:
        return (self._read_own("token.previous") or b"").decode("ascii", errors="replace").split()

    def control_key(self) -> str:
        """What makes an owner, for the control API. Created once; a damaged one is replaced."""
        key = self.load_control_key()
        if key is None:
            key = secrets.token_urlsafe(SEED_BYTES)
            self._write("control.key", _lines([key]))
        return key

    def load_control_key(self) -> str | None:
        """None where no daemon has run yet. Raises StateDirUnusable when it is there and not for us to read."""
        data = self._read_own("control.key")
        if data is None:
            return None
        key = data.decode("ascii", errors="replace").strip()
        if not _KEY.fullmatch(key):
            self._ignore("control.key", "it is damaged")
            return None
        return key

    def save_page(self, text: str) -> Path:
        """A page that leads to the dashboard, with a code that opens it once: for the owner's browser alone."""
        self._create()
        self._write("dashboard.html", text.encode())
        return self.path / "dashboard.html"

    def next_incarnation(self) -> int:
        """Higher than at each start before: the clock, and one more than the last where the clock went back.

        The clock makes it rise even after the file got lost.
        """
        last = 0
        data = self._read("incarnation")
        if data is not None:
            if data.strip().isdigit() and len(data) < 20 and int(data) < MAX_INCARNATION:
                last = int(data)
            else:
                self._ignore("incarnation", "it holds no usable number")
        incarnation = max(last + 1, int(self._clock()))
        try:
            self._write("incarnation", _lines([str(incarnation)]))
        except StateDirUnusable as error:
            log.warning("this start was not noted, which matters only if the clock goes back: %s", error.detail)
        return incarnation

    def load_peers(self) -> dict[str, list[str]]:
        """Peer id -> multiaddrs, as last saved."""
        peers = self._read_json("peers.json")
        if not all(isinstance(a, list) and all(isinstance(address, str) for address in a) for a in peers.values()):
            self._ignore("peers.json", "it is not a map of peers to addresses")
            return {}
        return peers

    def save_peers(self, peers: dict[str, list[str]]) -> None:
        """A convenience for the next start, so a full disk costs a warning and not the daemon."""
        try:
            self._write_json("peers.json", peers)
        except StateDirUnusable as error:
            log.warning("the peers' addresses were not saved: %s", error.detail)

    def load_rotation(self) -> dict[str, Any]:
        """As `save_rotation` was given it; empty where the token was never rotated."""
        return self._read_json("rotation.json")

    def save_rotation(self, rotation: dict[str, Any]) -> None:
        self._write_json("rotation.json", rotation)

    def load_bans(self) -> dict[str, dict[str, str]]:
        """Peer id -> its name and since when. Raises StateDirUnusable rather than to let in who was banned."""
        data = self._read_own("banned.json")
        if data is None:
            return {}
        try:
            return {str(peer): {key: str(row[key]) for key in ("name", "since")} for peer, row in json.loads(data).items()}
        except (ValueError, RecursionError, AttributeError, LookupError, TypeError):
            raise StateDirUnusable(f"{self.path / 'banned.json'} is damaged; delete it to start without bans") from None

    def save_bans(self, bans: dict[str, dict[str, str]]) -> None:
        self._write_json("banned.json", bans)

    def load_daemon(self) -> dict[str, Any] | None:
        """Where the daemon listens that uses this directory; None when none does, as far as its file tells."""
        return self._read_json("daemon.json") or None

    def save_daemon(self, info: dict[str, Any]) -> None:
        try:
            self._write_json("daemon.json", info)
        except StateDirUnusable as error:
            log.warning("the command line may need --control %s: %s", info["control"], error.detail)

    def remove_daemon(self) -> None:
        with suppress(StateDirUnusable):
            self._remove(CONTROL_SOCKET)
            self._remove("daemon.json")

    def listen_control(self) -> socket.socket | None:
        """A new socket for the command line in place of what a killed daemon left. None, and a warning, where the disk takes
        no sockets: the command line then asks by the control port, with a proof of the key. Only for who holds the lock.
        """
        if self._lock_fd is None:
            raise StateDirUnusable(f"{self.path} is not locked")
        try:
            return unixsocket.listen(self.path, CONTROL_SOCKET)
        except OSError as error:
            log.warning("no socket for the command line; it asks by the control port: %s", _problem(self.path, error))
            return None

    def connect_control(self, timeout_s: float) -> socket.socket:
        """The daemon of this directory. Raises NotOurs where it is somebody else's, OSError where none listens."""
        try:
            connection = unixsocket.connect(self.path, CONTROL_SOCKET, timeout_s)
        except PermissionError:
            raise NotOurs(f"{self.path} belongs to {self._owner_name()}") from None
        uid = unixsocket.peer_uid(connection)
        if uid is not None and uid not in self._owners():
            connection.close()
            raise NotOurs(f"{_user_name(uid)} answers in {self.path}")
        return connection

    def _owners(self) -> set[int]:
        """Users whose files here are believed: ourselves and root, and for root whoever has the directory."""
        owners = {os.geteuid(), 0}
        if os.geteuid() == 0:
            owners.add(self.path.stat().st_uid)
        return owners

    def _owner_name(self) -> str:
        try:
            return _user_name(self.path.stat().st_uid)
        except OSError:
            return "another user"

    def _create(self) -> None:
        try:
            for parent in reversed(self.path.parents):  # whatever the umask: a user who may write there may replace it
                if not parent.exists():
                    parent.mkdir(mode=0o700, exist_ok=True)
            self.path.mkdir(mode=0o700, exist_ok=True)
            found = self.path.stat()
            owners = self._owners()
        except OSError as error:
            raise StateDirUnusable(_problem(self.path, error)) from None
        if found.st_mode & 0o022:
            log.warning("others may write to the state directory %s; make it private: chmod 700", self.path)
        if found.st_uid not in owners:
            log.warning("the state directory %s belongs to %s, who can read its secrets", self.path, self._owner_name())

    def _open(self, name: str, owners: set[int]) -> BinaryIO:
        """A file of ours for reading. Raises OSError: for a link too, and for a file that is of none of `owners`."""
        fd = os.open(self.path / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode):
                raise OSError(errno.EISDIR, "Is a directory") if stat.S_ISDIR(found.st_mode) else OSError("is no file")
            if found.st_uid not in owners:
                raise OSError(errno.EPERM, f"it belongs to {_user_name(found.st_uid)}, and its directory does not")
            return os.fdopen(fd, "rb")
        except BaseException:
            os.close(fd)
            raise

    def _read_own(self, name: str) -> bytes | None:
        """A secret file. Raises StateDirUnusable when it is there and cannot be read, or is not ours."""
        path = self.path / name
        try:
            with self._open(name, self._owners()) as file:
                found = os.fstat(file.fileno())
                if found.st_mode & 0o077 and found.st_uid == os.geteuid() and found.st_nlink == 1:
                    log.warning("others could read %s; it is private now", path)
                    os.fchmod(file.fileno(), 0o600)
                return file.read(MAX_FILE_BYTES)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StateDirUnusable(_problem(path, error)) from None

    def _read(self, name: str) -> bytes | None:
        try:
            with self._open(name, self._owners()) as file:
                return file.read(MAX_FILE_BYTES)
        except FileNotFoundError:
            return None
        except OSError as error:
            self._ignore(name, _said(error))
            return None

    def _read_json(self, name: str) -> dict[str, Any]:
        data = self._read(name)
        if data is None:
            return {}
        try:
            value = json.loads(data)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            self._ignore(name, "it is damaged")
            return {}
        return value

    def _write_json(self, name: str, value: dict[str, Any]) -> None:
        self._write(name, json.dumps(value, indent=1).encode() + b"\n")

    def _write(self, name: str, data: bytes) -> None:
        path = self.path / name
        temporary = path.with_name(f".{name}.{os.getpid()}")
        try:
            # O_EXCL after unlink: never through a link that somebody else put there, and 0600 from the first byte.
            temporary.unlink(missing_ok=True)
            with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            _sync_directory(self.path)
        except OSError as error:
            with suppress(OSError):
                temporary.unlink()
            raise StateDirUnusable(_problem(path, error)) from None

    def _remove(self, name: str) -> None:
        path = self.path / name
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise StateDirUnusable(_problem(path, error)) from None

    def _ignore(self, name: str, why: str) -> None:
        log.warning("%s is ignored: %s", self.path / name, why)


def write_new(path: Path, data: bytes) -> None:
    """A new file, for its owner only. Raises OSError; FileExistsError where something is there, be it a link."""
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
        try:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        except OSError:
            path.unlink()
            raise
    _sync_directory(path.parent)


def _open_lock(path: Path) -> int:
    """Raises OSError."""
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno != errno.EROFS:
            raise
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)  # from before the disk became read-only


def _flock(fd: int) -> None:
    """Raises BlockingIOError where another process has the lock, and not just looks whether anybody has (see `holder`)."""
    for _ in range(LOCK_LOOKS):
        with suppress(BlockingIOError):
            return fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        time.sleep(LOCK_PAUSE_S)
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _lines(lines: list[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()


def _process(lock_fd: int) -> str:
    """Who holds the lock, by what is written there."""
    return visible(os.pread(lock_fd, 32, 0).decode(errors="replace").strip()) or "unknown"


def _user_name(uid: int) -> str:
    try:
        return f"the user {pwd.getpwuid(uid).pw_name}"
    except KeyError:
        return f"the user {uid}"


def _problem(path: Path, error: OSError) -> str:
    return f"{path}: {_said(error)}"


def _said(error: OSError) -> str:
    if error.errno == errno.ELOOP:
        return "it is a link, and none is followed here; put the file itself in its place"
    return error.strerror or str(error)
