"""A server on localhost that speaks OpenAI's chat completions, well or badly, and remembers what it was asked."""

import hashlib
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Response:
    """What goes over the wire, and how."""

    body: bytes
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0
    is_cut: bool = False
    """Close the connection after half of the body."""


Answer = Callable[[dict[str, Any], int], Response]
"""Takes a request and how often the same prompt came before."""


class ChatServer:
    """Counts requests by prompt; `answer` may be replaced while it runs."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.requests: list[dict[str, Any]] = []
        self.times: list[float] = []
        self.num_at_once = 0
        self.most_at_once = 0
        self.prompts: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._http.daemon_threads = True

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}/v1"

    @contextmanager
    def running(self) -> Iterator["ChatServer"]:
        thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield self
        finally:
            self._http.shutdown()
            thread.join()
            self._http.server_close()

    def respond(self, request: dict[str, Any]) -> Response:
        prompt = request["messages"][0]["content"]
        with self._lock:
            self.requests.append(request)
            self.times.append(time.monotonic())
            before = self.prompts[prompt]
            self.prompts[prompt] += 1
            self.num_at_once += 1
            self.most_at_once = max(self.most_at_once, self.num_at_once)
        try:
            response = self.answer(request, before)
            if response.status >= 400 and "Retry-After" not in response.headers:
                response.headers.setdefault("retry-after-ms", "5")  # else the client waits for half a second and more
            time.sleep(response.delay)
            return response
        finally:
            with self._lock:
                self.num_at_once -= 1

    def _handler(server: "ChatServer") -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # head and body go out apart, and the second would wait 40 ms for the first

            def do_POST(self) -> None:
                assert self.path == "/v1/chat/completions"
                request = json.loads(self.rfile.read(int(self.headers["content-length"])))
                response = server.respond(request)
                try:
                    self.send_response(response.status)
                    self.send_header("content-type", "application/json")
                    self.send_header("content-length", str(len(response.body)))
                    for name, value in response.headers.items():
                        self.send_header(name, value)
                    self.end_headers()
                    half = len(response.body) // 2 if response.is_cut else len(response.body)
                    self.wfile.write(response.body[:half])
                    self.close_connection = response.is_cut
                except OSError:
                    pass  # the client did not wait

            def log_message(self, *arguments: object) -> None:
                pass

        return Handler


def completion(text: str | None, *, usage: tuple[int, int] | None = (100, 50), finish: str = "stop") -> Response:
    value: dict[str, Any] = {
        "id": "1",
        "object": "chat.completion",
        "model": "scholar-1",
        "choices": [{"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text}}],
    }
    if usage:
        value["usage"] = {"prompt_tokens": usage[0], "completion_tokens": usage[1], "total_tokens": sum(usage)}
    return Response(json.dumps(value).encode())


def status(number: int, message: str = "no", **more: Any) -> Response:
    headers = more.pop("headers", {})
    body = {"error": {"message": message, "type": "error", "code": None, "param": None} | more}
    return Response(json.dumps(body).encode(), status=number, headers=headers)


def step_of(prompt: str) -> str:
    """Tell which of the package's prompts a prompt was made with."""
    if "Take notes" in prompt:
        return "notes"
    if "into one set of notes" in prompt:
        return "condense"
    return "judge" if '"verdict"' in prompt else "questions"


def material(prompt: str) -> str:
    found = re.search(r"<(text|notes)>\n(.*?)\n</\1>", prompt, re.DOTALL)
    assert found, prompt[:200]
    return found[2]


def scholar(request: dict[str, Any], before: int = 0) -> Response:
    """Answer as a good model would: notes that are shorter, questions with quotations that are in the text."""
    prompt = request["messages"][0]["content"]
    return completion(written(prompt))


def written(prompt: str, *, count: int = 2) -> str:
    words = material(prompt).replace('"', " ").split()
    step = step_of(prompt)
    if step in ("notes", "condense"):
        words = [word for word in words if not re.fullmatch(r"\[\d+\]", word)]
        return 'They said: "' + " ".join(words[5:17]) + '".'
    if step == "judge":
        pairs = re.findall(r'"number": (\d+)', prompt)
        return json.dumps([{"number": int(n), "verdict": "supported", "reason": "it is there"} for n in pairs])
    digest = hashlib.sha256(prompt.encode()).hexdigest()
    quote = " ".join(words[-12:-2]) if "They said" not in words else " ".join(words[words.index("said:") + 1 :][:6])
    pairs = [
        {
            "question": f"Why did {digest[8 * n : 8 * n + 4]} meet {digest[8 * n + 4 : 8 * n + 8]}?",
            "answer": f"Because of the sea ({n}).",
            "quotes": [quote],
        }
        for n in range(count)
    ]
    return "Here they are:\n```json\n" + json.dumps(pairs, indent=1) + "\n```"
