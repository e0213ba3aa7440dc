"""File descriptors: how many a process may have, and whether they are about to run out.

The kernel gives out the lowest number that is free, so a number close to the limit says that nearly all below it are taken.
Clients and their backends get all but the last few: these are for the node itself, such as its API, checks of its backends,
its state files and a peer's new link.
"""

from __future__ import annotations

import os
import resource
from contextlib import suppress

RESERVED = 24
RESERVED_SHARE = 8  # at most one in so many
WANTED = 65536  # two for each of 16,384 clients, twice over

REASON = "no descriptor left (ulimit -n)"


def raise_limit() -> None:
    """Raise the soft limit to WANTED or the hard limit. The usual 1,024 is there for programs that use select()."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = WANTED if hard == resource.RLIM_INFINITY else min(WANTED, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(ValueError, OSError):  # macOS has a lower one behind its unlimited hard limit
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def is_reserve(fd: int) -> bool:
    """Whether this new descriptor is one of the last few."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]  # each time: prlimit(1) changes it from outside
    return limit != resource.RLIM_INFINITY and fd >= limit - min(RESERVED, limit // RESERVED_SHARE)


def are_left(fd: int) -> bool:
    """Whether more than the last few are free. `fd`: any open descriptor."""
    try:
        probe = os.dup(fd)
    except OSError:
        return False
    os.close(probe)
    return not is_reserve(probe)
