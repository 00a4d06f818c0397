"""An OpenAI-compatible server on loopback that answers as a test tells it to."""

import contextlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Misbehaving(ThreadingHTTPServer):
    """Answers each request with the (status, text) that `behave(number of the request, its body)` returns."""

    daemon_threads = True
    request_queue_size = 128
    """With the usual 5 the kernel drops connections on a busy machine, which then come again after a second."""

    def __init__(self, behave, port: int = 0):
        super().__init__(("127.0.0.1", port), _Handler)
        self.behave, self.bodies, self.lock, self.at_work, self.most_at_work = (
            behave,
            [],
            threading.Lock(),
            0,
            0,
        )

    def serve_forever(self, poll_interval: float = 0.01):
        """Look often if it is to end: with the usual half second every test would wait for that."""
        super().serve_forever(poll_interval)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        with server.lock:
            number = len(server.bodies)
            server.bodies.append(body)
            server.at_work += 1
            server.most_at_work = max(server.most_at_work, server.at_work)
        try:
            status, text = server.behave(number, body)
        finally:
            with server.lock:
                server.at_work -= 1
        content = text.encode()
        with contextlib.suppress(ConnectionError):  # the client has gone
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def serving(behave, port: int = 0):
    """A server that runs until the block ends; without `port`, on a free one."""
    server = Misbehaving(behave, port)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def together(number_of_requests: int, behave):
    """`behave` for a server, but it answers only when so many requests are there at once.

    It then waits a little more, so that a test sees if others come as well.
    """
    meeting = threading.Barrier(number_of_requests, timeout=60)

    def slowly(number: int, body: dict) -> tuple[int, str]:
        meeting.wait()
        time.sleep(0.05)
        return behave(number, body)

    return slowly


def completion(text: str, *, finish: str = "stop", tokens: int | None = 100) -> str:
    usage = tokens and {"prompt_tokens": tokens - 10, "completion_tokens": 10, "total_tokens": tokens}
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": finish}
    return json.dumps(
        {
            "id": "1",
            "object": "chat.completion",
            "created": 1,
            "model": "m",
            "choices": [choice],
            "usage": usage,
        }
    )
