"""A reward server for tests: it answers by the contract, or as it is told."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = Any
"""What is sent as JSON; a number is an error status, bytes are sent as they are, and seconds (a string) are waited for first."""


class RewardServer:
    """Its address, what it was asked, and how it answers."""

    def __init__(self, answer: Callable[[dict[str, list[Any]]], Answer]) -> None:
        self.answer, self.asked = answer, list[dict[str, list[Any]]]()
        self.url = ""


@contextmanager
def serving(answer: Callable[[dict[str, list[Any]]], Answer]) -> Iterator[RewardServer]:
    """A server whose answer to a body is what the function says."""
    found = RewardServer(answer)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            found.asked.append(body)
            said = found.answer(body)
            if isinstance(said, str):
                time.sleep(float(said))
                said = {"rewards": [1.0] * len(body["completions"])}
            status, data = (
                (said, b'{"detail": "no"}')
                if isinstance(said, int)
                else (200, said if isinstance(said, bytes) else json.dumps(said).encode())
            )
            try:
                self.send_response(status)
                self.end_headers()
                self.wfile.write(data)
            except OSError:
                pass  # the client has gone

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    found.url = f"http://127.0.0.1:{server.server_address[1]}/score"
    try:
        yield found
    finally:
        server.shutdown()
        server.server_close()
