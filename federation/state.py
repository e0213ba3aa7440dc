"""The state directory: all that a node must find again after a restart. One daemon uses it at a time.

    identity         Ed25519 seed, 32 bytes: the node's peer id. Created once; never replaced, even when damaged.
    token            the network's token; token.previous has its MAX_PREVIOUS predecessors, newest first
    owner-ID.key     the owner key of the network ID, which signs its rotations; never replaced or removed
    control.key      the key that the control API asks of the owner; made at the first start
    rotation.json    former tokens' keys while they admit, and the members that may receive the present token
    banned.json      peers that this node keeps away
    client-keys.json the network's client keys, by their hashes
    invites.json     the invites that this node made, with their keys; a secret while one is open
    invited.json     which invites' codes brought this node its token: a restart with the same code asks nobody
    dashboard.html   leads a browser to the dashboard; written by `federation dashboard --open`
    handover         the archive that the next machine gets; written by `federation invite --install`
    incarnation      raised at each start, so that the network believes the restarted node
    peers.json       addresses under which peers were last reached
    daemon.json      where the running daemon listens, for the command line
    control.sock     where the command line asks the running daemon; a user who can open it is the owner
    lock             held by the running daemon

Every write is atomic (a temporary file, synced and renamed) and every file is for its owner only. This module follows no
link when it reads, writes or creates a file. A damaged file costs a warning and counts as absent, except identity, token,
bans and client keys, which a person or the network would miss: these stop the start. A disk that is full or read-only costs
a warning if the node can do without the file. So does a file system that has no locks, owners, modes, syncs or sockets: one
in all.

No structlog here: the command line reads daemon.json and has to answer at once.
"""

from __future__ import annotations

import base64
import errno
import fcntl
import json
import logging
import os
import pwd
import re
import secrets
import socket
import stat
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, BinaryIO

from federation import unixsocket
from federation.errors import NotOurs, StateDirBusy, StateDirUnusable
from federation.units import pasted, visible

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

log = logging.getLogger(__name__)

SEED_BYTES = 32
MAX_INCARNATION = 2**62  # far from the highest that a record can carry, so that a damaged file cannot get a node stuck there
MAX_FILE_BYTES = 16 * 1024 * 1024
MAX_PREVIOUS = 16
MAX_KEY_BYTES = 4096  # several times an owner's key
LOCK_LOOKS, LOCK_PAUSE_S = 3, 0.01
CONTROL_SOCKET = "control.sock"
# All of the above, with what a write that was cut off leaves behind. `federation uninstall --state` removes these alone.
FILES = re.compile(
    r"identity|token(?:\.previous)?|owner-[0-9A-Za-z]+\.key|control\.(?:key|sock)|incarnation|lock|handover|dashboard\.html|"
    r"(?:rotation|banned|client-keys|invites|invited|peers|daemon)\.json|\.[a-z-]+(?:\.[a-z]+)?\.[0-9]+"
)
# What a file system answers that does not do a thing at all, such as syncing a directory. A disk that fails says EIO.
_NOT_DONE_THERE = frozenset(
    {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOTTY, errno.EBADF, errno.EISDIR}
)
_NO_LOCKS = _NOT_DONE_THERE | {errno.ENOLCK}
_KEY = re.compile(r"[A-Za-z0-9_-]{43}")  # 32 random bytes


class StateDir:
    """The files of one node. Touches nothing before the first call."""

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        self.path = path
        self._clock = clock
        self._lock_fd: int | None = None
        self._lacks: set[str] = set()
        self._shown_as: int | None = None
        self._is_open_said = False

    def lock(self) -> None:
        """Make the directory and lock it for this process, until `unlock` or the end. A second call does nothing."""
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
            raise self._busy(fd) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                os.close(fd)
                raise StateDirUnusable(_problem(path, error)) from None
            if self._is_answered():
                raise self._busy(fd) from None
            self._lack("it has no locks, so nothing keeps a second daemon out of this directory")
        self._lock_fd = fd
        with suppress(OSError):  # a disk that is full or read-only: then a second daemon cannot name the first
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"{os.getpid()} {socket.gethostname()}".encode(), 0)

    def _busy(self, lock_fd: int) -> StateDirBusy:
        busy = StateDirBusy(f"{self.path} (process {_process(lock_fd)}){_elsewhere(lock_fd)}")
        os.close(lock_fd)
        return busy

    def holder(self) -> str | None:
        """The process that has the lock, as it named itself there; None if no process has it."""
        try:
            fd = os.open(self.path / "lock", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)  # released at once, by the close
        except BlockingIOError:
            return _process(fd)
        except OSError as error:  # without locks there, the file of a daemon that runs says it
            return _process(fd) if error.errno in _NO_LOCKS and self.load_daemon() else None
        finally:
            os.close(fd)
        return None

    def unlock(self) -> None:
        if self._lock_fd is not None:
            os.close(self._lock_fd)  # the file stays: removing it would let two daemons lock two files
            self._lock_fd = None

    def identity(self) -> bytes:
        """The node's Ed25519 seed. Raises StateDirUnusable rather than start under another identity."""
        seed = self._read_own("identity")
        if seed is None:
            seed = secrets.token_bytes(SEED_BYTES)
            self._write("identity", seed)
        if len(seed) != SEED_BYTES:
            raise StateDirUnusable(f"{self.path / 'identity'} is damaged; delete it to start as a new node")
        return seed

    def load_token(self) -> str | None:
        """The saved token's text; None before there is one. Raises StateDirUnusable if the file cannot be read."""
        data = self._read_own("token")
        return None if data is None else data.decode(errors="replace").strip()

    def save_token(self, text: str, *, keep_old: bool = True, replaces: Callable[[str], bool] = lambda _text: False) -> None:
        """Save `text`. With `keep_old`, token.previous keeps the token that it replaces.

        Tokens there for which `replaces` is true go, so that rotations do not push out tokens that a person gave.
        """
        old = self.load_token()
        if old == text:
            return
        if old and keep_old:
            kept = [token for token in self._previous_tokens() if token not in (old, text) and not replaces(token)]
            self._write("token.previous", _lines([old, *kept][:MAX_PREVIOUS]))
        self._write("token", _lines([text]))

    def save_owner_key(self, network_id: str, text: str) -> Path:
        """Save an owner key. Raises StateDirUnusable, also if there is one already."""
        self._create()
        path = self.owner_key_path(network_id)
        try:
            write_new(path, _lines([text]))
        except OSError as error:
            raise StateDirUnusable(_problem(path, error)) from None
        return path

    def load_owner_key(self, network_id: str) -> str | None:
        """The saved owner key; None if it is not here. Raises StateDirUnusable if it is here and cannot be read."""
        data = self._read_own(self.owner_key_path(network_id).name)
        return None if data is None else data[:MAX_KEY_BYTES].decode(errors="replace")

    def owner_key_path(self, network_id: str) -> Path:
        return self.path / f"owner-{network_id}.key"

    def forget_network(self, is_its: Callable[[str], bool]) -> None:
        """Remove the token, tokens of the same network (`is_its`) from token.previous, members' addresses, client keys."""
        kept = self._previous_tokens()
        others = [text for text in kept if not is_its(text)]
        if others != kept:
            self._write("token.previous", _lines(others))
        for name in ("token", "rotation.json", "peers.json", "client-keys.json", "invites.json", "invited.json"):
            self._remove(name)

    def _previous_tokens(self) -> list[str]:
        return (self._read_own("token.previous") or b"").decode("ascii", errors="replace").split()

    def control_key(self) -> str:
        """The control API's key. Created once; a new one replaces a damaged one."""
        key = self.load_control_key()
        if key is None:
            key = secrets.token_urlsafe(SEED_BYTES)
            self._write("control.key", _lines([key]))
        return key

    def load_control_key(self) -> str | None:
        """The control key; None if no daemon has run yet. Raises StateDirUnusable if this user may not read it."""
        data = self._read_own("control.key")
        if data is None:
            return None
        key = pasted(data.decode(errors="replace"))
        if not _KEY.fullmatch(key):
            self._ignore("control.key", "it is damaged")
            return None
        return key

    def save_page(self, text: str) -> Path:
        """Save a page that leads to the dashboard, with a code that opens it once: for the owner's browser alone."""
        self._create()
        self._write("dashboard.html", text.encode())
        return self.path / "dashboard.html"

    def next_incarnation(self) -> int:
        """A number higher than at each start before: the clock, or one more than the last if the clock went back.

        The clock makes it rise even after a lost file.
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
        """Peer id -> multiaddrs, from `save_peers`."""
        peers = self._read_json("peers.json")
        if not all(isinstance(a, list) and all(isinstance(address, str) for address in a) for a in peers.values()):
            self._ignore("peers.json", "it is not a map of peers to addresses")
            return {}
        return peers

    def save_peers(self, peers: dict[str, list[str]]) -> None:
        """Save addresses for the next start. They are a convenience, so a full disk costs a warning only."""
        try:
            self._write_json("peers.json", peers)
        except StateDirUnusable as error:
            log.warning("the peers' addresses were not saved: %s", error.detail)

    def load_rotation(self) -> dict[str, Any]:
        """The value of the last `save_rotation`; empty if the token was never rotated."""
        return self._read_json("rotation.json")

    def save_rotation(self, rotation: dict[str, Any]) -> None:
        self._write_json("rotation.json", rotation)

    def load_bans(self) -> dict[str, dict[str, str]]:
        """Peer id -> its name and the time of its ban. Raises StateDirUnusable rather than let banned peers in."""
        data = self._read_own("banned.json")
        if data is None:
            return {}
        try:
            return {str(peer): {key: str(row[key]) for key in ("name", "since")} for peer, row in json.loads(data).items()}
        except (ValueError, RecursionError, AttributeError, LookupError, TypeError):
            raise StateDirUnusable(f"{self.path / 'banned.json'} is damaged; delete it to start without bans") from None

    def save_bans(self, bans: dict[str, dict[str, str]]) -> None:
        self._write_json("banned.json", bans)

    def load_client_keys(self, network_id: str) -> list[bytes]:
        """The rows of the last `save_client_keys`; none if they are another network's.

        Raises StateDirUnusable rather than let in clients whose keys were revoked.
        """
        data = self._read_own("client-keys.json")
        if data is None:
            return []
        try:
            saved = json.loads(data)
            return [base64.b64decode(row, validate=True) for row in saved["rows"]] if saved["network"] == network_id else []
        except (ValueError, RecursionError, LookupError, TypeError):
            path = self.path / "client-keys.json"
            raise StateDirUnusable(f"{path} is damaged; delete it, and the other nodes hand it over anew") from None

    def save_client_keys(self, network_id: str, rows: list[bytes]) -> None:
        saved = {"network": network_id, "rows": [base64.b64encode(row).decode() for row in rows]}
        self._write_json("client-keys.json", saved)

    def load_invites(self, network_id: str) -> list[Any]:
        """The rows of the last `save_invites`, unchecked; none if they are another network's, or cannot be read."""
        saved = self._read_json("invites.json")
        rows = saved.get("rows")
        return rows if isinstance(rows, list) and saved.get("network") == network_id else []

    def save_invites(self, network_id: str, rows: list[dict[str, Any]]) -> None:
        self._write_json("invites.json", {"network": network_id, "rows": rows})

    def was_invited_by(self, invite_id: str) -> bool:
        """Whether the code of this invite brought the saved token here."""
        return invite_id in self._invited()

    def note_invited(self, invite_id: str) -> None:
        ids = [other for other in self._invited() if other != invite_id]
        self._write_json("invited.json", {"ids": [*ids, invite_id][-MAX_PREVIOUS:]})

    def _invited(self) -> list[str]:
        ids = self._read_json("invited.json").get("ids")
        return ids if isinstance(ids, list) else []

    def load_daemon(self) -> dict[str, Any] | None:
        """The addresses of the daemon that uses this directory; None if, by its file, no daemon runs."""
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
        """Make a socket for the command line, in place of one that a killed daemon left. Call this with the lock held.

        Returns None, with a warning, if the disk takes no sockets: the command line then asks at the control port, by proof.
        """
        if self._lock_fd is None:
            raise StateDirUnusable(f"{self.path} is not locked")
        try:
            return unixsocket.listen(self.path, CONTROL_SOCKET)
        except OSError as error:
            self._lack(f"no socket for the command line ({_said(error)}), which asks by the control port")
            return None

    def _is_answered(self) -> bool:
        """Whether a daemon listens in this directory."""
        try:
            self.connect_control(1.0).close()
        except (OSError, NotOurs):
            return False
        return True

    def connect_control(self, timeout_s: float) -> socket.socket:
        """Connect to this directory's daemon. Raises NotOurs if it is another user's, OSError if none listens."""
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
        """Users whose files here are trusted: this user and root, and for root also the directory's owner.

        A mount may show the files of all users as one user's: then this one too, as a file tells that was made just now.
        """
        owners = {os.geteuid(), 0}
        of_directory = self.path.stat().st_uid
        if os.geteuid() == 0:
            owners.add(of_directory)
        elif of_directory not in owners:
            if self._shown_as is None:
                made = self._file_shown()
                self._shown_as = os.geteuid() if made is None else made.st_uid
            owners.add(self._shown_as)
        return owners

    def _file_shown(self) -> os.stat_result | None:
        """A private file that this user makes, as this file system shows it; None where none can be made."""
        path = self.path / f".owner.{os.getpid()}"
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                return os.fstat(fd)
            finally:
                os.close(fd)
                path.unlink()
        except OSError:
            return None

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
        if found.st_uid == self._shown_as:
            self._lack(f"it shows the files of all users as those of {self._owner_name()}, who may be able to read them")
            return
        if found.st_mode & 0o022 and not self._is_open_said:
            self._is_open_said = True
            made = self._file_shown()
            if made is not None and made.st_mode & 0o077:
                self._lack("others may be able to write to it, and it has no modes to forbid that")
            else:
                log.warning("others may write to the state directory %s; make it private: chmod 700", self.path)
        if found.st_uid not in owners:
            log.warning("the state directory %s belongs to %s, who can read its secrets", self.path, self._owner_name())

    def _open(self, name: str, owners: set[int]) -> BinaryIO:
        """Open a file for reading. Raises OSError, also for a link, and for a file that belongs to none of `owners`."""
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
        """Read a secret file. Raises StateDirUnusable if it is there and cannot be read, or belongs to another user."""
        path = self.path / name
        try:
            with self._open(name, self._owners()) as file:
                found = os.fstat(file.fileno())
                if found.st_mode & 0o077 and found.st_uid == os.geteuid() and found.st_nlink == 1:
                    self._make_private(file.fileno(), path)
                return file.read(MAX_FILE_BYTES)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StateDirUnusable(_problem(path, error)) from None

    def _make_private(self, fd: int, path: Path) -> None:
        with suppress(OSError):  # judged by the result: some file systems refuse it, and some only say that it is done
            os.fchmod(fd, 0o600)
        if os.fstat(fd).st_mode & 0o077:
            if self.path.stat().st_mode & 0o077:  # else nobody gets that far
                self._lack(f"others may be able to read {path.name}, and it has no modes to forbid that")
        else:
            log.warning("others could read %s; it is private now", path)

    def _lack(self, what: str) -> None:
        """Say once what the file system does not do, and as a warning the first time: the way out is the same each time."""
        if what not in self._lacks:
            say = log.info if self._lacks else log.warning
            say("on the file system of %s: %s; a local disk does better (--state-dir)", self.path, what)
            self._lacks.add(what)

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
        try:
            write_over(path, data)
        except OSError as error:
            raise StateDirUnusable(_problem(path, error)) from None

    def _remove(self, name: str) -> None:
        path = self.path / name
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise StateDirUnusable(_problem(path, error)) from None

    def _ignore(self, name: str, why: str) -> None:
        log.warning("%s is ignored: %s", self.path / name, why)


def write_over(path: Path, data: bytes) -> None:
    """Write a file for its owner only, whole or not at all, in place of the file or link there. Raises OSError."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        # O_EXCL after unlink: never through a link that another user put there, and 0600 from the first byte.
        temporary.unlink(missing_ok=True)
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
            file.write(data)
            file.flush()
            _sync(file.fileno())
        temporary.replace(path)
        _sync_directory(path.parent)
    except OSError:
        with suppress(OSError):
            temporary.unlink()
        raise


def write_new(path: Path, data: bytes) -> None:
    """Write a new file, for its owner only. Raises OSError; FileExistsError if there is a file or link already."""
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
        try:
            file.write(data)
            file.flush()
            _sync(file.fileno())
        except OSError:
            path.unlink()
            raise
    _sync_directory(path.parent)


def _open_lock(path: Path) -> int:
    """Open the lock file. Raises OSError."""
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno != errno.EROFS:
            raise
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)  # from before the disk became read-only


def _flock(fd: int) -> None:
    """Lock. Raises BlockingIOError if another process holds the lock, and does not just look at it (see `holder`)."""
    for _ in range(LOCK_LOOKS):
        with suppress(BlockingIOError):
            return fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        time.sleep(LOCK_PAUSE_S)
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        _sync(fd)
    finally:
        os.close(fd)


def _sync(fd: int) -> None:
    """Raises OSError, but not where the file system does not sync such a thing: nobody can do anything about that."""
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in _NOT_DONE_THERE:
            raise


def _lines(lines: list[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()


def _process(lock_fd: int) -> str:
    """The process that holds the lock, by the text in the file: its number in its own process space, and its machine."""
    number, _, host = _holder(lock_fd).partition(" ")
    return f"{number} on {host}" if host else number or "unknown"


def _holder(lock_fd: int) -> str:
    return visible(os.pread(lock_fd, 300, 0).decode(errors="replace").strip())


def _elsewhere(lock_fd: int) -> str:
    if _holder(lock_fd).partition(" ")[2] in ("", socket.gethostname()):
        return ""
    return ": another machine, or a container. Machines that share a home or a volume need a --state-dir each"


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
