"""`federation dashboard`: where the running node's page is. Behind the #, a part that browsers do not send, is a code for
one use: an address that stays in a browser's history opens nothing a moment later.

--open hands the browser a file of the state directory that leads on: an address with the code would show in the process
list, where another user of the machine could be faster than the browser.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

from federation.cli.ask import Asker
from federation.cli.terminal import say
from federation.errors import NotDone

if TYPE_CHECKING:
    from argparse import Namespace

PAGE = """\
<!doctype html><meta charset="utf-8"><meta name="referrer" content="no-referrer">
<meta http-equiv="refresh" content="0; url={url}"><title>federation</title><a href="{url}">the dashboard</a>
"""
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

        page = asker.daemon.state.save_page(PAGE.format(url=url))
        if not webbrowser.open(page.absolute().as_uri()):
            raise NotDone("no browser can be opened here; open the address above yourself")
        print(f"opened {page}; {CONFINED.format(s=answer['lifetime_s'])}", file=sys.stderr)
