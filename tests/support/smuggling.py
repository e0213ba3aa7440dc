"""Requests that two servers may read differently, as published attacks have them, and real answers of backends."""

from __future__ import annotations

POST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: box\r\n"
GET = b"GET /v1/models HTTP/1.1\r\nHost: box\r\n"
SIX = b"Content-Length: 6\r\n"
TE = b"Transfer-Encoding: chunked\r\n"


def _line(line: bytes) -> bytes:
    return line + b"\r\nHost: box\r\n\r\n"


# What it is: the status of the refusal, the bytes.
ATTACKS: dict[str, tuple[int, bytes]] = {
    # two framings
    "CL.TE": (400, POST + SIX + TE + b"\r\n0\r\n\r\nG"),
    "TE.CL": (400, POST + TE + SIX + b"\r\n0\r\n\r\nG"),
    "CL CL": (400, POST + SIX + b"Content-Length: 0\r\n\r\nGET / "),
    "CL twice the same": (400, POST + SIX + SIX + b"\r\nabcdef"),
    "CL list": (400, POST + b"Content-Length: 6, 6\r\n\r\nabcdef"),
    "CL list of two": (400, POST + b"Content-Length: 6, 0\r\n\r\nabcdef"),
    "CL signed": (400, POST + b"Content-Length: +6\r\n\r\nabcdef"),
    "CL negative": (400, POST + b"Content-Length: -6\r\n\r\nabcdef"),
    "CL hex": (400, POST + b"Content-Length: 0x6\r\n\r\nabcdef"),
    "CL with an underscore": (400, POST + b"Content-Length: 1_0\r\n\r\nabcdef"),
    "CL float": (400, POST + b"Content-Length: 6.0\r\n\r\nabcdef"),
    "CL empty": (400, POST + b"Content-Length:\r\n\r\nabcdef"),
    "CL in other digits": (400, POST + b"Content-Length: \xb2\r\n\r\nabcdef"),
    "CL inner blank": (400, POST + b"Content-Length: 6 6\r\n\r\nabcdef"),
    "CL huge": (413, POST + b"Content-Length: 99999999999999999999999\r\n\r\n"),
    "CL 19 digits": (413, POST + b"Content-Length: 1000000000000000000\r\n\r\n"),
    "CL as a variable": (400, POST + b"Content_Length: 6\r\n\r\nabcdef"),
    "TE as a variable": (400, POST + b"Transfer_Encoding: chunked\r\n\r\n0\r\n\r\n"),
    # a coding that some do not recognise
    "TE twice": (501, POST + TE + TE + b"\r\n0\r\n\r\n"),
    "TE twice, one unknown": (501, POST + TE + b"Transfer-Encoding: cow\r\n\r\n0\r\n\r\n"),
    "TE unknown first": (501, POST + b"Transfer-Encoding: cow\r\n" + TE + b"\r\n0\r\n\r\n"),
    "TE xchunked": (501, POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"),
    "TE identity": (501, POST + b"Transfer-Encoding: identity\r\n\r\n"),
    "TE gzip, chunked": (501, POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
    "TE chunked, identity": (501, POST + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n"),
    "TE chunked;q": (501, POST + b"Transfer-Encoding: chunked;q=1\r\n\r\n0\r\n\r\n"),
    "TE quoted": (501, POST + b'Transfer-Encoding: "chunked"\r\n\r\n0\r\n\r\n'),
    "TE empty": (400, POST + b"Transfer-Encoding:\r\n\r\n0\r\n\r\n"),
    "TE vertical tab": (400, POST + b"Transfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n"),
    "TE space before the colon": (400, POST + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n"),
    "TE tab before the colon": (400, POST + b"Transfer-Encoding\t: chunked\r\n\r\n0\r\n\r\n"),
    "TE begins with a blank": (400, POST + b"X: y\r\n Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    "TE folded": (400, POST + b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n"),
    "TE folded by a tab": (400, POST + b"Transfer-Encoding: chunked\r\n\t, identity\r\n\r\n0\r\n\r\n"),
    "TE behind a bare LF": (400, POST + b"X: y\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    "TE behind a bare CR": (400, POST + b"X: y\rTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    "TE in 1.0": (400, b"POST / HTTP/1.0\r\n" + TE + b"\r\n0\r\n\r\n"),
    "TE and NUL": (400, POST + b"Transfer-Encoding: chunked\x00\r\n\r\n0\r\n\r\n"),
    # line ends and blanks
    "all LF": (400, b"GET / HTTP/1.1\nHost: box\n\n"),
    "LF at the end": (400, GET + b"\n"),
    "LF LF": (400, b"GET / HTTP/1.1\r\nHost: box\n\nGET / HTTP/1.1\r\n\r\n"),
    "CR alone as the end": (400, GET + b"X: y\r\r\n\r\n"),
    "CR LF CR": (400, GET + b"X: y\r\n\r\r\n\r\n"),
    "first header folded": (400, b"GET / HTTP/1.1\r\n Host: box\r\n\r\n"),
    "blank line first": (400, b"\r\n" + GET + b"\r\n"),
    "LF first": (400, b"\n" + GET + b"\r\n"),
    "blank first": (400, b" " + GET + b"\r\n"),
    "NUL in a value": (400, GET + b"X: a\x00b\r\n\r\n"),
    "NUL in a name": (400, GET + b"X\x00Y: b\r\n\r\n"),
    "DEL in a value": (400, GET + b"X: a\x7f\r\n\r\n"),
    "escape in a value": (400, GET + b"X: a\x1b[1m\r\n\r\n"),
    "no colon": (400, GET + b"Content-Length\r\n\r\n"),
    "no name": (400, GET + b": 6\r\n\r\n"),
    "only a blank": (400, GET + b" \r\n\r\n"),
    "name with a blank": (400, GET + b"Content Length: 6\r\n\r\n"),
    "name with parentheses": (400, GET + b"X(y): 6\r\n\r\n"),
    "name beyond ASCII": (400, GET + b"X\xc3\xa9: 6\r\n\r\n"),
    # request lines
    "two blanks": (400, _line(b"GET  / HTTP/1.1")),
    "tab": (400, _line(b"GET\t/ HTTP/1.1")),
    "blank behind the version": (400, _line(b"GET / HTTP/1.1 ")),
    "blank in the target": (400, _line(b"GET /a b HTTP/1.1")),
    "version twice": (400, _line(b"GET / HTTP/1.1 HTTP/1.1")),
    "no version": (400, _line(b"GET /")),
    "lower-case version": (400, _line(b"GET / http/1.1")),
    "version with two digits": (400, _line(b"GET / HTTP/1.10")),
    "version 1.2": (505, _line(b"GET / HTTP/1.2")),
    "version 0.9": (505, _line(b"GET / HTTP/0.9")),
    "version 2.0": (505, _line(b"GET / HTTP/2.0")),
    "RTSP": (400, _line(b"GET / RTSP/1.0")),
    "ICE": (400, _line(b"SOURCE / ICE/1.0")),
    "lower-case method": (501, _line(b"get / HTTP/1.1")),
    "unknown method": (501, _line(b"BREW / HTTP/1.1")),
    "TRACE": (501, _line(b"TRACE / HTTP/1.1")),
    "method that is no token": (400, _line(b"G(T / HTTP/1.1")),
    "no method": (400, _line(b" / HTTP/1.1")),
    "CONNECT": (501, _line(b"CONNECT box:443 HTTP/1.1")),
    "absolute-form": (400, _line(b"GET http://box/ HTTP/1.1")),
    "absolute-form elsewhere": (400, _line(b"GET http://169.254.169.254/ HTTP/1.1")),
    "authority-form": (400, _line(b"GET box:443 HTTP/1.1")),
    "relative target": (400, _line(b"GET v1/models HTTP/1.1")),
    "asterisk": (400, _line(b"GET * HTTP/1.1")),
    "fragment": (400, _line(b"GET /#/v1 HTTP/1.1")),
    "target beyond ASCII": (400, _line(b"GET /\xc3\xa9 HTTP/1.1")),
    "NUL in the target": (400, _line(b"GET /\x00 HTTP/1.1")),
    "HTTP/2 preface": (505, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    # whose host
    "no Host": (400, b"GET / HTTP/1.1\r\n\r\n"),
    "two Hosts": (400, GET + b"Host: evil\r\n\r\n"),
    "the same Host twice": (400, GET + b"Host: box\r\n\r\n"),
    "two Hosts in 1.0": (400, b"GET / HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n"),
    "Host with a slash": (400, b"GET / HTTP/1.1\r\nHost: box/evil\r\n\r\n"),
    "Host list": (400, b"GET / HTTP/1.1\r\nHost: box, evil\r\n\r\n"),
    "Host with user": (400, b"GET / HTTP/1.1\r\nHost: u@box\r\n\r\n"),
    "Host space before the colon": (400, b"GET / HTTP/1.1\r\nHost : box\r\n\r\n"),
    # size
    "long target": (414, b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: box\r\n\r\n"),
    "endless target": (414, b"GET /" + b"a" * 20_000),
    "endless field": (431, GET + b"X: " + b"y" * 70_000),
    "long head": (431, GET + b"X: y\r\n" * 12_000 + b"\r\n"),
    "101 fields": (431, GET + b"X: y\r\n" * 100 + b"\r\n"),
    # others
    "Expect": (417, POST + SIX + b"Expect: 200-ok\r\n\r\n"),
    "Expect twice": (417, POST + SIX + b"Expect: 100-continue\r\nExpect: 100-continue\r\n\r\n"),
}

# Bodies behind POST + TE; the first faulty byte is in them.
BAD_CHUNKS: dict[str, bytes] = {
    "LF behind the size": b"5\nhello\r\n0\r\n\r\n",
    "CR behind the size": b"5\rhello\r\n0\r\n\r\n",
    "LF behind the content": b"5\r\nhello\n0\r\n\r\n",
    "CR behind the content": b"5\r\nhello\r0\r\n\r\n",
    "content too long": b"5\r\nhelloX\r\n0\r\n\r\n",
    "size signed": b"+5\r\nhello\r\n0\r\n\r\n",
    "size negative": b"-5\r\nhello\r\n0\r\n\r\n",
    "size 0x5": b"0x5\r\nhello\r\n0\r\n\r\n",
    "size with an underscore": b"0_5\r\nhello\r\n0\r\n\r\n",
    "size empty": b"\r\nhello\r\n0\r\n\r\n",
    "size with blanks before": b" 5\r\nhello\r\n0\r\n\r\n",
    "size with blanks behind": b"5 \r\nhello\r\n0\r\n\r\n",
    "blank before the extension": b"5 ;x\r\nhello\r\n0\r\n\r\n",
    "size overflows 64 bits": b"10000000000000005\r\nhello\r\n0\r\n\r\n",
    "size of 16 digits": b"0000000000000005\r\nhello\r\n0\r\n\r\n",
    "LF in an extension": b"5;\nxx\r\nhello\r\n0\r\n\r\n",  # CVE-2025-55315
    "CR in an extension": b"5;a\rb\r\nhello\r\n0\r\n\r\n",
    "NUL in an extension": b"5;a\x00b\r\nhello\r\n0\r\n\r\n",
    "long extension": b"5;" + b"a" * 2000 + b"\r\nhello\r\n0\r\n\r\n",
    "endless extension": b"5;" + b"a" * 2000,
    "extensions outweigh content": (b"1;" + b"a" * 500 + b"\r\nx\r\n") * 50,
    "LF as the end": b"0\r\n\n",
    "LF behind the last size": b"0\n\r\n",
    "CR CR": b"0\r\r\n\r\n",
    "trailer without a colon": b"0\r\nX\r\n\r\n",
    "trailer with a blank before the colon": b"0\r\nX : y\r\n\r\n",
    "trailer folded": b"0\r\nX: y\r\n z\r\n\r\n",
    "trailer with a bare LF": b"0\r\nX: y\nZ: a\r\n\r\n",
    "trailer with a bare CR": b"0\r\nX: y\rZ: a\r\n\r\n",
    "trailer with NUL": b"0\r\nX: \x00\r\n\r\n",
    "trailer Content-Length": b"0\r\nContent-Length: 5\r\n\r\n",
    "trailer Transfer-Encoding": b"0\r\nTransfer-Encoding: chunked\r\n\r\n",
    "trailer Host": b"0\r\nhost: evil\r\n\r\n",
    "trailer Authorization": b"0\r\nAuthorization: Bearer x\r\n\r\n",
    "trailer as a variable": b"0\r\nX_Forwarded_For: 127.0.0.1\r\n\r\n",
    "long trailers": b"0\r\n" + b"X: yyyyyyyyyy\r\n" * 1000 + b"\r\n",
    "endless trailer": b"0\r\nX: " + b"y" * 10_000,
}

# Answers as backends write them: to which request's method, the head and the begin of its body.
ANSWERS: dict[str, tuple[str, bytes]] = {
    "Ollama, a stream": (
        "POST",
        b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nDate: Sat, 28 Nov 2026 14:00:00 GMT\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n",
    ),
    "Ollama, its root": (
        "HEAD",
        b"HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\nDate: Sat, 28 Nov 2026 14:00:00 GMT\r\n"
        b"Content-Length: 17\r\n\r\n",
    ),
    "llama.cpp": (
        "POST",
        b"HTTP/1.1 200 OK\r\nKeep-Alive: timeout=5, max=100\r\nServer: llama.cpp\r\nAccess-Control-Allow-Origin: \r\n"
        b"Content-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n",
    ),
    "llama.cpp, loading": (
        "GET",
        b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 85\r\nServer: llama.cpp\r\nConnection: close\r\n"
        b"Content-Type: application/json; charset=utf-8\r\n\r\n",
    ),
    "vLLM on uvicorn": (
        "POST",
        b"HTTP/1.1 200 OK\r\ndate: Sat, 28 Nov 2026 14:00:00 GMT\r\nserver: uvicorn\r\nx-request-id: 1\r\n"
        b"content-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n",
    ),
    "uvicorn with a length": (
        "GET",
        b"HTTP/1.1 200 OK\r\ndate: Sat, 28 Nov 2026 14:00:00 GMT\r\nserver: uvicorn\r\ncontent-length: 2\r\n"
        b"content-type: application/json\r\n\r\n{}",
    ),
    "nginx": (
        "GET",
        b"HTTP/1.1 304 Not Modified\r\nServer: nginx/1.26.0\r\nDate: Sat, 28 Nov 2026 14:00:00 GMT\r\n"
        b'Connection: keep-alive\r\nETag: "x"\r\nContent-Length: 612\r\n\r\n',
    ),
    "Python's http.server": (
        "GET",
        b"HTTP/1.0 200 OK\r\nServer: SimpleHTTP/0.6 Python/3.11.2\r\nContent-type: text/html; charset=utf-8\r\n\r\n<html>",
    ),
    "no reason": ("GET", b"HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n"),
    "empty reason": ("GET", b"HTTP/1.1 200 \r\nContent-Length: 0\r\n\r\n"),
    "reason beyond ASCII": ("GET", b"HTTP/1.1 404 Nicht da \xfc\r\nContent-Length: 0\r\n\r\n"),
    "one length twice": ("GET", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\ncontent-length: 2\r\n\r\n{}"),
    "chunked twice": ("GET", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\ntransfer-encoding: Chunked\r\n\r\n"),
    "blank before the colon": ("GET", b"HTTP/1.1 200 OK\r\nX : y\r\nContent-Length: 2\r\n\r\n{}"),
    "early hints": ("GET", b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\n\r\n"),
    "no content": ("DELETE", b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n"),
}

BAD_ANSWERS: dict[str, bytes] = {
    "CL.TE": b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n",
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nContent-Length: 5\r\n\r\n",
    "a list of two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 6, 5\r\n\r\n",
    "signed length": b"HTTP/1.1 200 OK\r\nContent-Length: +6\r\n\r\n",
    "gzip, chunked": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
    "LF": b"HTTP/1.1 200 OK\nContent-Length: 6\r\n\r\n",
    "CR": b"HTTP/1.1 200 OK\r\nX: y\rContent-Length: 6\r\n\r\n",
    "folded": b"HTTP/1.1 200 OK\r\nX: y\r\n z\r\n\r\n",
    "NUL": b"HTTP/1.1 200 OK\r\nX: \x00\r\n\r\n",
    "no colon": b"HTTP/1.1 200 OK\r\nX\r\n\r\n",
    "no name": b"HTTP/1.1 200 OK\r\n: x\r\n\r\n",
    "no status": b"HTTP/1.1 OK\r\n\r\n",
    "status of two digits": b"HTTP/1.1 20 OK\r\n\r\n",
    "status of four digits": b"HTTP/1.1 2000 OK\r\n\r\n",
    "status 099": b"HTTP/1.1 099 OK\r\n\r\n",
    "HTTP/2": b"HTTP/2 200 OK\r\n\r\n",
    "no HTTP": b"220 mail.example ESMTP\r\n\r\n",
    "101 that nobody asked for": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
}
