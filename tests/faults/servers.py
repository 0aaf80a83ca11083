"""Faults injected into `web` and `serve`: they end without a word too many, leave nothing running, and start again.

Each function is one kind of fault, as in `trainings.py`.
"""

import json
import os
import signal
import socket
import time
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

from tests.faults.forks import (
    STREAMS,
    Fork,
    Lost,
    Place,
    clock_jump,
    judge,
    limited_files,
    limited_memory,
)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def answers(url: str) -> bool:
    """Whether a page comes from there."""
    try:
        with urlopen(url, timeout=5) as page:
            return bool(page.status == 200)
    except (URLError, OSError):
        return False


def web(place: Place) -> str:
    """The chat page is disturbed while it starts, or while it answers."""
    port = free_port()
    arguments = ["web", place.world.root / "finished" / "adapter", "--port", port]
    return _disturbed(place, arguments, port, f"http://127.0.0.1:{port}/", 2.0)


def serve(place: Place) -> str:
    """A server is disturbed while it merges and starts, or while it answers; the merged model is none the worse."""
    port = free_port()
    adapter, cache = place.world.root / "finished" / "adapter", str(place.folder / "cache")
    arguments = ["serve", adapter, "--engine", "transformers", "--port", port]
    outcome = _disturbed(place, arguments, port, f"http://127.0.0.1:{port}/v1/models", 15.0, XDG_CACHE_HOME=cache)
    (merged,) = (path for path in Path(cache, "longlora", "merged").iterdir() if path.is_dir() and path.name[0] != ".")
    expected = place.world.root / "expected" / "merging" / "model.safetensors"
    if (merged / "model.safetensors").read_bytes() != expected.read_bytes():
        raise Lost("the merged model that is kept is another")
    return outcome


def _disturbed(place: Place, arguments: list[Any], port: int, url: str, seconds: float, **environment: str) -> str:
    chance = place.chance

    def start(prepare: Any = lambda: None) -> Fork:
        def settle() -> None:
            os.environ.update(environment)
            prepare()

        return Fork(arguments, settle)

    match chance.randrange(4):
        case 0:  # while it starts
            ended = start().signal_after(chance.uniform(0, seconds), chance.choice(_SIGNALS))
        case 1:  # while it answers
            first = start()
            first.until(lambda: answers(url))
            ended = first.signal_after(chance.uniform(0, 0.3), chance.choice(_SIGNALS))
        case 2:  # two on one port
            first = start()
            first.until(lambda: answers(url))
            judge(start().wait(), refused=True)
            if not answers(url):
                raise Lost("the first does not answer any more")
            ended = first.signal_after(0, signal.SIGINT)
        case _:  # it may come up all the same
            faults = [limited_files(place.power_of_ten(0.5, 5)), limited_memory(place.power_of_ten(4, 8)), clock_jump]
            first = start(chance.choice([*faults, *STREAMS]))
            first.until(lambda: answers(url))
            ended = first.signal_after(0, signal.SIGINT)
    judge(ended)
    last = start()
    if not last.until(lambda: answers(url)):
        raise Lost(f"the second start does not answer: {last.wait().said[-2000:]}")
    judge(last.signal_after(0, signal.SIGINT))
    time.sleep(0.5)
    if answers(url):
        raise Lost(f"something answers on port {port} though the command has ended")
    return "healed"


_SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGKILL]


def ask(url: str, body: dict[str, Any]) -> Any:
    """Post JSON and read JSON."""
    request = Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    with urlopen(request, timeout=60) as response:
        return json.load(response)
