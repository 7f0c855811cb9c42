"""A real HTTP server that speaks the OpenAI API, for tests: its brain is any function, and its faults are scripted."""

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from selfreward.config import EndpointConfig

Brain = Callable[[str, int], str]
"""(what is asked: the last message or the plain text, seed or 0) -> the reply."""


@dataclass(frozen=True)
class Fault:
    """One answer that is not a plain reply. `body` None: what the server would have answered without the fault."""

    status: int = 200
    body: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0
    held: bool = False
    """Answer only after `release`: later than any time limit of the client, however slow the machine."""
    cut: bool = False
    """Close the connection in the middle of the body."""


def refusal(status: int, message: str, code: Any = None, kind: str = "error", **headers: str) -> Fault:
    """An answer with an error status, as OpenAI words it."""
    error = {"message": message, "type": kind, "param": None, "code": code}
    return Fault(status, json.dumps({"error": error}), {name.replace("_", "-"): value for name, value in headers.items()})


@dataclass
class Call:
    """One request as it came."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    time: float

    @property
    def asked(self) -> str:
        """The last message, or the plain text."""
        return str(self.body["messages"][-1]["content"]) if "messages" in self.body else str(self.body["prompt"])


class _Server(ThreadingHTTPServer):
    """Says nothing about clients that went away: tests read what is said."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class EndpointServer:
    """Counts what comes in; `faults` are met by the calls in order, `faults_of` by the calls that ask a certain text."""

    def __init__(self, brain: Brain) -> None:
        self.brain = brain
        self.faults: list[Fault | None] = []
        self.faults_of: dict[str, list[Fault | None]] = {}
        self.delay_of: Callable[[str], float] = lambda asked: 0.0
        self.usage: Callable[[str, str], Any] = lambda asked, reply: {
            "prompt_tokens": len(asked.split()),
            "completion_tokens": len(reply.split()),
        }
        self.finish_reason: Any = None
        self.calls: list[Call] = []
        self.most_at_a_time = 0
        self._now = 0
        self._released = threading.Event()
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def settings(self, **changes: Any) -> dict[str, Any]:
        """An endpoint section for this server, with waits that suit a test."""
        return {"base_url": self.url, "model": "tiny", "backoff_s": 0.002, "timeout_s": 60.0, **changes}

    def endpoint(self, **changes: Any) -> EndpointConfig:
        return EndpointConfig(**self.settings(**changes))

    def release(self) -> None:
        """Let held answers go."""
        self._released.set()

    def close(self) -> None:
        self.release()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def answer(self, call: Call) -> str:
        """The whole body that an unfaulted call gets."""
        text = self.brain(call.asked, call.body.get("seed", 0))
        reason = self.finish_reason or "stop"
        if "messages" in call.body:
            limit = call.body.get("max_tokens", call.body.get("max_completion_tokens"))
            choice: dict[str, Any] = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": reason}
        else:
            limit = call.body.get("max_tokens")
            choice = {"index": 0, "text": text, "finish_reason": reason}
        words = text.split()
        if limit is not None and len(words) > limit:
            text, choice["finish_reason"] = " ".join(words[:limit]), "length"
            choice |= {"message": {"role": "assistant", "content": text}} if "messages" in call.body else {"text": text}
        answer = {"id": "x", "object": "reply", "created": 1, "model": call.body.get("model"), "choices": [choice]}
        usage = self.usage(call.asked, text)
        return json.dumps(answer if usage is None else {**answer, "usage": usage})

    def take(self, call: Call) -> Fault:
        """Write the call down and say what it meets."""
        with self._lock:
            self.calls.append(call)
            own = self.faults_of.get(call.asked, [])
            fault = own.pop(0) if own else self.faults.pop(0) if self.faults else None
        return fault or Fault()

    @contextmanager
    def at_work(self) -> Iterator[None]:
        with self._lock:
            self._now += 1
            self.most_at_a_time = max(self.most_at_a_time, self._now)
        try:
            yield
        finally:
            with self._lock:
                self._now -= 1

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                raw = self.rfile.read(size := int(self.headers["Content-Length"]))
                if len(raw) < size:  # the client gave up in the middle of its request
                    self.close_connection = True
                    return
                headers = {name.lower(): value for name, value in self.headers.items()}
                call = Call(self.path, headers, json.loads(raw), time.monotonic())
                with server.at_work():
                    fault = server.take(call)
                    if fault.held:
                        server._released.wait()
                    time.sleep(fault.delay or server.delay_of(call.asked))
                    known = call.path in ("/v1/chat/completions", "/v1/completions")
                    body = (server.answer(call) if fault.body is None else fault.body) if known else "{}"
                self._send(fault, fault.status if known else 404, body.encode())

            def _send(self, fault: Fault, status: int, body: bytes) -> None:
                try:
                    self.send_response(status)
                    for name, value in {"Content-Type": "application/json", **fault.headers}.items():
                        self.send_header(name, value)
                    self.send_header("Content-Length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body[: len(body) // 2] if fault.cut else body)
                except (BrokenPipeError, ConnectionResetError):
                    self.close_connection = True  # the client has given up, as a test wanted
                if fault.cut:
                    self.close_connection = True

            def log_message(self, *args: Any) -> None:
                """Nothing: tests read `calls`."""

        return Handler


@contextmanager
def serving(brain: Brain) -> Iterator[EndpointServer]:
    server = EndpointServer(brain)
    try:
        yield server
    finally:
        server.close()


def texts(calls: Sequence[Call]) -> list[str]:
    """What was asked, in the order in which it came."""
    return [call.asked for call in calls]
