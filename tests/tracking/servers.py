"""wandb servers that are no help."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

KEY = "a" * 40
LONGEST_S = 60.0


@contextmanager
def server(kind: str) -> Iterator[str]:
    """Yield the address of a server that refuses, hangs, or answers ``500`` to everything."""
    if kind == "refuse":
        with socket.socket() as bound:  # bound but not listening: no other process gets the port
            bound.bind(("127.0.0.1", 0))
            yield f"http://127.0.0.1:{bound.getsockname()[1]}"
        return
    ended = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            if kind == "hang":
                ended.wait(LONGEST_S)
            self.send_response(500)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_PUT = do_POST  # noqa: N815

        def log_message(self, *_):
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    threading.Thread(target=http.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{http.server_port}"
    finally:
        ended.set()
        http.shutdown()
        http.server_close()
