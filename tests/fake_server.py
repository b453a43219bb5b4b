"""Servers on this machine: any, and one for the tests of ServedLM, which fails as it is told and counts what it is
asked."""

import contextlib
import json
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

KEY = "sk-very-secret-0123456789"


class QuietHandler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass


class LocalServer(ThreadingHTTPServer):
    """A server on a free port of this machine. It runs within its `with` block."""

    request_queue_size, daemon_threads = 128, True

    def __init__(self, handler):
        super().__init__(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.server_port}"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *error):
        self.shutdown()
        super().__exit__(*error)

    def handle_error(self, *_):
        pass  # the client has hung up


def completion(text, finish="stop", usage=7, **message):
    """A chat completion, with these other fields of its message."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text, **message}, "finish_reason": finish}
    return {"choices": [choice], "usage": {"completion_tokens": usage}}


def error(message, **more):
    return {"error": {"message": message, **more}}


class Handler(QuietHandler):
    def do_POST(self):
        server, body = self.server, json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = body["messages"][0]["content"]
        with server.lock:
            server.requests.append((self.path, dict(self.headers), body))
            n, server.seen[prompt] = server.seen[prompt], server.seen[prompt] + 1
            server.now += 1
            server.most = max(server.most, server.now)
        what = server.plan(prompt, n)
        with server.lock:
            server.now -= 1  # before the client can know, and begin another
        if callable(what):
            return what(self)
        status, content, headers = (*what, {})[:3] if isinstance(what, tuple) else (200, what, {})
        raw = content if isinstance(content, bytes) else json.dumps(content).encode()
        with server.lock:
            server.answered[prompt] += status == 200
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(raw))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(raw)


class Server(LocalServer):
    """`plan(prompt, n)`, of the n-th request (from 0) with a prompt → what to do: an object is sent as JSON with status
    200, bytes as they are, (status, object) or (status, object, headers) so, a function is called with the handler."""

    def __init__(self, plan):
        self.plan, self.requests, self.seen, self.answered = plan, [], Counter(), Counter()
        self.lock, self.now, self.most = threading.Lock(), 0, 0
        super().__init__(Handler)
        self.url += "/v1"


def serving(monkeypatch):
    """A fixture: plan → a running server. The key is in the environment, and no proxy is."""
    monkeypatch.setenv("LMCOT_API_KEY", KEY)
    monkeypatch.setenv("no_proxy", "*")
    with contextlib.ExitStack() as stack:
        yield lambda plan: stack.enter_context(Server(plan))
