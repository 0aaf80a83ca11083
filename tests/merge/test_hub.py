"""Uploading, against a stub of the hub's server on this machine."""

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from huggingface_hub import HfApi
from tests.merge.adapters import longlora_adapter, save_base
from typer.testing import CliRunner

from longlora.cli.main import app
from longlora.errors import ConfigError
from longlora.merge import check_login, merging, push_to_hub


class Hub(BaseHTTPRequestHandler):
    """Takes what `create_repo` and `upload_folder` send for files that are small enough to go along with the commit."""

    requests: list[tuple[str, str]]
    status: int

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self.requests.append((self.path, body))
        if self.path == "/api/repos/create":
            name = json.loads(body)["name"]
            self.answer({"url": f"http://{self.headers['Host']}/me/{name}"}, self.status)
        elif "/preupload/" in self.path:
            files = json.loads(body)["files"]
            self.answer({"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]})
        else:
            self.answer({"commitUrl": f"http://{self.headers['Host']}/me/mine/commit/1", "commitOid": "1"})

    def answer(self, values: dict, status: int = 200) -> None:
        body = json.dumps(values).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    handler = type("OneHub", (Hub,), {"requests": [], "status": 200})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = Thread(target=server.serve_forever)
    thread.start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(merging, "HfApi", lambda: HfApi(endpoint=endpoint, token="hf_none"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(merging, "get_token", lambda: "hf_none")
    yield handler
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_merged_model_is_uploaded(stub: type[Hub], base_model: Path, tmp_path: Path, seed: int) -> None:
    base = save_base(tmp_path / "base", "llama", seed, base_model)
    longlora_adapter(base, tmp_path / "adapter")
    arguments = ["merge", str(tmp_path / "adapter"), str(tmp_path / "merged"), "--push-to-hub", "mine", "--private"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert "uploaded to http" in done.output and "/me/mine" in done.output
    created = json.loads(stub.requests[0][1])
    assert created["name"] == "mine"
    assert created.get("visibility") == "private" or created.get("private")  # huggingface_hub has had both
    path, commit = stub.requests[-1]
    assert path.startswith("/api/models/me/mine/commit/")
    sent = {line["value"]["path"] for line in map(json.loads, commit.splitlines()) if line["key"] == "file"}
    assert sent == {file.name for file in (tmp_path / "merged").iterdir()}
    assert {"README.md", "config.json", "model.safetensors.index.json", "tokenizer.json"} <= sent


def test_a_refusal_leaves_the_model_and_says_how_to_go_on(stub: type[Hub], tmp_path: Path) -> None:
    stub.status = 403
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"mine could not be uploaded .*retry with `hf upload"):
        push_to_hub(tmp_path, "mine")


@pytest.mark.parametrize("repo", ["a/b/c", "a b", ""])
def test_a_name_that_cannot_be(repo: str) -> None:
    with pytest.raises(ConfigError, match="this is not a valid name"):
        check_login(repo)


def test_private_without_a_repository(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["merge", str(tmp_path), str(tmp_path / "out"), "--private"])
    assert isinstance(done.exception, ConfigError) and "--push-to-hub" in str(done.exception)


def test_nobody_is_logged_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(merging, "get_token", lambda: None)
    with pytest.raises(ConfigError, match="hf auth login"):
        check_login("me/mine")
    (tmp_path / "adapter_config.json").write_text("{}")
    done = CliRunner().invoke(app, ["merge", str(tmp_path), str(tmp_path / "out"), "--push-to-hub", "me/mine"])
    assert isinstance(done.exception, ConfigError) and "hf auth login" in str(done.exception)
