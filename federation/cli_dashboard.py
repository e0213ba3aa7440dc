"""`federation dashboard`: where the running node's page is. Its key is behind the #, a part that browsers do not send.

--open hands the browser a file of the state directory that leads on: an address with the key would show in the process list.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from federation import client
from federation.cli_terminal import say
from federation.errors import NotDone

if TYPE_CHECKING:
    from argparse import Namespace

PAGE = """\
<!doctype html><meta charset="utf-8"><meta name="referrer" content="no-referrer">
<meta http-equiv="refresh" content="0; url={url}"><title>federation</title><a href="{url}">the dashboard</a>
"""


def dashboard(args: Namespace) -> None:
    address = client.find_control(args.control, args.state_dir, os.environ)
    key = client.find_key(address, args.state_dir, os.environ)
    client.ask(address, "/api/v1/status", key=key)  # it is there, and takes the key
    url = f"http://{address}/#key={key}"
    say(url)
    if args.open:
        import webbrowser

        page = client.key_state(address, args.state_dir, os.environ).save_page(PAGE.format(url=url))
        if not webbrowser.open(page.as_uri()):
            raise NotDone("no browser can be opened here; open the address above yourself")
