"""The user that the machine's service runs as, and root's acting as the user who owns some files."""

from __future__ import annotations

import os
import pwd
from contextlib import contextmanager
from typing import TYPE_CHECKING

from federation.errors import NotDone

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from federation.program.commands import Commands

ACCOUNT = "federation"
_NO_LOGIN = ("/usr/sbin/nologin", "/sbin/nologin", "/bin/false")


def find(name: str = ACCOUNT) -> pwd.struct_passwd | None:
    try:
        return pwd.getpwnam(name)
    except KeyError:
        return None


def make(home: str, commands: Commands) -> pwd.struct_passwd:
    """The account, made if it is not there. Raises NotDone."""
    found = find()
    if found is not None:
        return found
    shell = next((path for path in _NO_LOGIN if os.path.exists(path)), _NO_LOGIN[-1])
    how = ("--system", "--user-group", "--home-dir", home, "--no-create-home", "--shell", shell)
    done = commands.run("useradd", *how, ACCOUNT)
    found = find()
    if found is None:
        raise NotDone(f"cannot make the user {ACCOUNT} for the service: {done.said}")
    return found


def remove(commands: Commands) -> str | None:
    """Remove the account. Returns why it stays, if it does."""
    done = commands.run("userdel", ACCOUNT)
    return done.said if find() is not None else None


def owner_of(directory: Path) -> pwd.struct_passwd | None:
    """As root, the user whose directory this is; else None, which is this user."""
    if os.geteuid():
        return None
    try:
        return pwd.getpwuid(directory.stat().st_uid)
    except (KeyError, OSError):
        return None


@contextmanager
def acting_as(user: pwd.struct_passwd | None) -> Iterator[None]:
    """Have the rights of that user: root follows no link, and changes no file, that this user could not."""
    if user is None or os.geteuid() == user.pw_uid:
        yield
        return
    uid, gid = os.geteuid(), os.getegid()
    os.setegid(user.pw_gid)
    os.seteuid(user.pw_uid)
    try:
        yield
    finally:
        os.seteuid(uid)
        os.setegid(gid)
