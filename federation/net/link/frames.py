"""The frames of a link in numbers: types, layouts, limits. mux.py says what each frame means."""

from __future__ import annotations

import struct

from federation.net.link.seal import MAX_PLAINTEXT

STREAM, OPEN, OPENED, REFUSED, DATA, FIN, RST, CREDIT, PING, PONG, LOAD, WATCH, BUSIER = range(1, 14)
FIRST_OPTIONAL = 64
LOOK = 65  # one that does not know it passes it over

HEADER = struct.Struct(">BIH")  # type, channel, length of the payload
HEADER_BYTES = HEADER.size
NUMBER = struct.Struct(">I")
LOAD_BYTES = HEADER_BYTES + NUMBER.size
MAX_PAYLOAD = MAX_PLAINTEXT - HEADER_BYTES
MAX_REASON = 200
ANY_LOAD = 2**32 - 1  # whatever the load, do not compare
FULL = 2**32 - 1  # as many as the node takes at once
