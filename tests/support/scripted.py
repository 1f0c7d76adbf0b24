"""A real HTTP server on the loopback that plays prepared replies, sound ones and broken ones."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Scripted:
    """A server that plays its replies in order, the last one for ever, and records the requests."""

    def __init__(self, *replies):
        self.replies, self.requests, self.times = list(replies), [], []
        self.release = threading.Event()
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                owner.answer(self)

            def do_GET(self):
                owner.answer(self)

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def answer(self, handler):
        body = handler.body = handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
        self.requests.append(
            (handler.command, handler.path, {name.lower(): value for name, value in handler.headers.items()}, body)
        )
        self.times.append(time.monotonic())
        reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        if callable(reply):
            reply(self, handler)
            return
        status, content, *extra = reply
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        handler.send_response(status)
        for name, value in dict(*extra).items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)

    def close(self):
        self.release.set()
        self.server.shutdown()
        self.server.server_close()


def hang(server, handler):
    server.release.wait(20)


def drop(server, handler):
    handler.connection.close()


def cut_short(server, handler):
    handler.send_response(200)
    handler.send_header("Content-Length", "100")
    handler.end_headers()
    handler.wfile.write(b'{"a":')
    handler.close_connection = True


def _dripping(handler, server, data, times=200):
    for _ in range(times):
        if server.release.wait(0.05):
            return
        handler.wfile.write(data)
        handler.wfile.flush()


def drip(server, handler):
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
    _dripping(handler, server, b" ")


def drip_header(server, handler):
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    _dripping(handler, server, b"x")


def drip_chunk_size(server, handler):
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    _dripping(handler, server, b"0")


def drip_without_length(server, handler):
    handler.wfile.write(b"HTTP/1.0 200 OK\r\n\r\n1")
    _dripping(handler, server, b" ")
