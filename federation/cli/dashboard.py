"""`federation dashboard`: where the running node's page is. Behind the #, a part that browsers do not send, is a code for
one use: an address that stays in a browser's history opens nothing a moment later.

--open hands the browser a file that leads on: an address with the code would show in the process list, where another user of
the machine could be faster than the browser. The file is in the state directory; where snaps are, whose browsers may read
no hidden directory, it is in the home.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from federation.cli.ask import Asker
from federation.cli.terminal import say
from federation.errors import NotDone
from federation.state import write_over

if TYPE_CHECKING:
    from argparse import Namespace

    from federation.state import StateDir

PAGE = """\
<!doctype html><meta charset="utf-8"><meta name="referrer" content="no-referrer">
<meta http-equiv="refresh" content="0; url={url}"><title>federation</title><a href="{url}">the dashboard</a>
"""
SNAPS = Path("/snap/bin")
VISIBLE_PAGE = "federation-dashboard.html"  # its code is good for one use within seconds; the next page takes its place
CONFINED = "if the browser may not read that file (one from a snap or a flatpak may not), open the address within {s:.0f} s"


def dashboard(args: Namespace) -> None:
    asker = Asker(args)
    if args.revoke:
        count = json.loads(asker.post("dashboard/revoke"))["sessions"]
        say(f"{count} session{'' if count == 1 else 's'} ended: a browser needs a new address from `federation dashboard`")
        return
    base = asker.daemon.url
    answer = json.loads(asker.post("dashboard/code"))
    url = f"{base}/#code={answer['code']}"
    say(url)
    if args.open:
        import webbrowser

        page = _saved(PAGE.format(url=url), asker.daemon.state)
        if not webbrowser.open(page.absolute().as_uri()):
            raise NotDone("no browser can be opened here; open the address above yourself")
        print(f"opened {page}; {CONFINED.format(s=answer['lifetime_s'])}", file=sys.stderr)


def _saved(text: str, state: StateDir) -> Path:
    home = Path.home()
    if any(directory.is_dir() for directory in (home / "snap", SNAPS)):
        try:
            write_over(home / VISIBLE_PAGE, text.encode())
        except OSError:  # a home that is read-only
            return state.save_page(text)
        return home / VISIBLE_PAGE
    return state.save_page(text)
