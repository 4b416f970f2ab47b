"""A small real judge on loopback, whose manners each test chooses."""

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from efficient_empathy.dialogues.types import Example, Turn


@dataclass
class Reply:
    """What the server sends back; ``content`` is the judge's words, ``body`` overrides the whole of it."""

    content: str = '{"sensibility": 7, "rationality": 3}'
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None
    usage: bool = True
    message: str = "no"

    def encode(self) -> bytes:
        """The body of the response."""
        if self.body is not None:
            return self.body
        if self.status != 200:
            return json.dumps({"error": {"message": self.message, "type": "test"}}).encode()
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": self.content}}
        value: dict[str, Any] = {
            "id": "1",
            "object": "chat.completion",
            "created": 1,
            "model": "m",
            "choices": [choice],
        }
        if self.usage:
            value["usage"] = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
        return json.dumps(value).encode()


class JudgeServer:
    """Counts what it was asked, by the text of the question, and answers as ``behave(request, times asked)`` says."""

    def __init__(self) -> None:
        self.behave: Callable[[dict[str, Any], int], Reply] = lambda request, times: Reply()
        self.requests: list[dict[str, Any]] = []
        self.authorizations: list[str] = []
        self.asked: Counter[str] = Counter()
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                reply = outer._reply(request, self.headers.get("Authorization", ""))
                data = reply.encode()
                try:
                    self.send_response(reply.status)
                    for name, value in {"Content-Type": "application/json", **reply.headers}.items():
                        self.send_header(name, value)
                    self.send_header("Content-Length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data)
                except (BrokenPipeError, ConnectionResetError):
                    self.close_connection = True

            def log_message(self, *args: Any) -> None:
                """Keep quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def _reply(self, request: dict[str, Any], authorization: str) -> Reply:
        with self._lock:
            text = request["messages"][-1]["content"]
            self.asked[text] += 1
            self.requests.append(request)
            self.authorizations.append(authorization)
            times = self.asked[text]
        return self.behave(request, times)

    def close(self) -> None:
        """Stop the server."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def judge_server() -> Iterator[JudgeServer]:
    """A running server; it answers every question with 7 and 3 until told otherwise."""
    server = JudgeServer()
    yield server
    server.close()


@pytest.fixture
def reply() -> type[Reply]:
    """The class of the server's replies."""
    return Reply


def make_examples(count: int, per_dialogue: int = 1) -> list[Example]:
    return [
        Example(f"d{d}_turn:{t}", f"d{d}", t, (Turn("speaker", f"Story {d}."),), f"Answer {d}.{t}.")
        for d in range(count)
        for t in range(1, per_dialogue + 1)
    ]


@pytest.fixture
def examples() -> list[Example]:
    """Twelve examples of twelve conversations."""
    return make_examples(12)


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    """A file of 30 conversations with one listener turn each."""
    path = tmp_path / "pool.jsonl"
    with open(path, "w") as file:
        for d in range(30):
            turns = [{"role": "speaker", "text": f"Story {d}."}, {"role": "listener", "text": f"Answer {d}."}]
            file.write(json.dumps({"id": f"d{d}", "turns": turns}) + "\n")
    return path
