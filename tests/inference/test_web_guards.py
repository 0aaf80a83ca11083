"""What the web page's server lets through, without a browser: the guards that its launch is given."""

import sys
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from longlora.inference.web import launch_page

EVIL = "https://evil.example"


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The arguments that gradio's launch is called with."""
    found: dict[str, Any] = {}

    def launch(**named: Any) -> tuple[None, str, None]:
        found.update(named)
        return None, "http://127.0.0.1:7860/", None

    monkeypatch.setitem(sys.modules, "gradio", MagicMock())
    page, password = SimpleNamespace(launch=launch), "open sesame"
    launch_page(page, host="127.0.0.1", port=7860, password=password, max_megabytes=1, allowed_hosts=["proxy"])
    return found


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/", {}, 200),
        ("/", {"host": "proxy"}, 200),
        ("/", {"host": "evil.example"}, 403),
        ("/", {"origin": EVIL}, 403),
        ("/gradio_api/file=/tmp/paper.pdf", {}, 404),
        ("/file/tmp/paper.pdf", {}, 404),
        ("/profile=x", {}, 200),
    ],
)
def test_other_names_pages_and_uploaded_files_are_refused(
    launched: dict[str, Any], path: str, headers: dict[str, str], status: int
) -> None:
    everything = [Route("/{path:path}", lambda request: PlainTextResponse("answered"))]
    client = TestClient(Starlette(routes=everything, **launched["app_kwargs"]), base_url="http://localhost:7860")
    assert client.get(path, headers=headers).status_code == status


def test_the_password_is_asked_for_and_nothing_is_shared(launched: dict[str, Any]) -> None:
    assert launched["auth"]("anyone", "open sesame") and not launched["auth"]("anyone", "open")
    assert (launched["share"], launched["server_name"], launched["max_file_size"]) == (False, "127.0.0.1", "1mb")
