from __future__ import annotations

from federation.mesh.tokens import Token
from tests.support.nodes import TOKEN, MakeNode


async def test_the_command_asks_for_the_token_so_that_no_shell_keeps_it(make: MakeNode) -> None:
    invited = make().operator.invite()
    assert Token.decode(invited["token"]).secret == TOKEN.secret
    assert invited["command"] == "federation join --token-file -"
