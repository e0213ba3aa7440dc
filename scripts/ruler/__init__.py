"""The ruler: measures this project beside others that carry the same connections, in one run, on this machine.

Every target is an entry and an exit with the same three services behind it: `web` (nginx), `sse` (a token stream) and
`sink` (swallows uploads). The same load goes through each in turn, A B C A B C, so that a slow minute hits all alike.
Only 127.0.0.1 is ever addressed, every load is bounded in count and time, and what is started here is ended here.
"""
