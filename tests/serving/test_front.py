"""The front: what it lets through to transformers' server, what it refuses, and what it makes of the answers."""

import asyncio
import json
from collections.abc import Callable
from functools import partial
from typing import Any

import httpx
import openai
import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient
from tests.test_documentation import python_of
from transformers import AutoTokenizer

from longlora.inference.hosts import Names
from longlora.models.chat_template import ensure_chat_template
from longlora.serving import front as front_module
from longlora.serving.front import build_front
from longlora.serving.openai_requests import RequestError, Translator
from longlora.tiny import tiny_model_directory

QUESTION = [{"role": "user", "content": "why"}]
CHAT = {"model": "mine", "messages": QUESTION}
TEXT = {"model": "mine", "prompt": "import os"}


class Inner:
    """Stands for transformers' server: keeps what it is asked, and answers with `status` and `content`."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.status, self.content = 200, json.dumps({"choices": ["said"]})

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked.append((request.url.path, json.loads(request.content or "{}")))
        return httpx.Response(self.status, text=self.content)


@pytest.fixture
def inner() -> Inner:
    return Inner()


Ask = Callable[..., httpx.Response]


def asking(app: Starlette) -> Ask:
    """Ask an application, as over the network."""

    def ask(path: str, body: object = None, **headers: str | bytes) -> httpx.Response:
        async def send() -> httpx.Response:
            transport = httpx.ASGITransport(app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost:8000") as client:
                if body is None:
                    return await client.get(path, headers=headers)
                content = body if isinstance(body, str) else json.dumps(body)
                return await client.post(path, content=content, headers=headers)

        return asyncio.run(send())

    return ask


@pytest.fixture
def ask(inner: Inner) -> Ask:
    return asking(made(inner))


def made(inner: Inner, *, context_length: int = 64, **more: Any) -> Starlette:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_directory())
    ensure_chat_template(tokenizer)
    settings: dict[str, Any] = {"context_length": context_length, "generation": {"eos_token_id": 1}}
    translator = Translator(name="mine", tokenizer=tokenizer, **settings)
    client = httpx.AsyncClient(transport=httpx.MockTransport(inner), base_url="http://inner")
    return build_front(translator, client, **{"api_key": "", "names": Names.of("localhost")} | more)


def test_a_request_is_put_in_the_words_of_transformers_server(ask: Ask, inner: Inner) -> None:
    full = CHAT | {"max_completion_tokens": 5, "temperature": 0.5, "top_p": 0.9, "stop": ["\n"], "seed": 3}
    assert ask("/v1/chat/completions", full | {"n": 1, "logprobs": False, "user": "me"}).json() == {"choices": ["said"]}
    ((path, asked),) = inner.asked
    assert path == "/v1/chat/completions"
    assert json.loads(asked.pop("generation_config")) == {"eos_token_id": 1, "do_sample": True, "top_k": 0}
    assert asked == CHAT | {"max_tokens": 5, "temperature": 0.5, "top_p": 0.9, "stop": ["\n"], "seed": 3}

    assert ask("/v1/completions", TEXT | {"temperature": 0}).status_code == 200
    asked = inner.asked[-1][1]
    assert "generation_config" not in asked and 50 < asked["max_tokens"] < 64  # what the context leaves


def test_messages_of_every_form(ask: Ask, inner: Inner) -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    answer = {"role": "assistant", "content": "yes", "refusal": None, "annotations": None, "tool_calls": None}
    messages = [{"role": "developer", "content": "be kind"}, {"role": "user", "content": parts}, answer, *QUESTION]
    assert ask("/v1/chat/completions", CHAT | {"messages": messages}).status_code == 200
    plain = [("system", "be kind"), ("user", "one\ntwo"), ("assistant", "yes"), ("user", "why")]
    assert inner.asked[-1][1]["messages"] == [{"role": role, "content": text} for role, text in plain]


@pytest.mark.parametrize("arguments", ['{"of": "sea"}', {"of": "sea"}])
def test_arguments_of_tool_calls_become_objects(arguments: object) -> None:
    seen: list[list[dict[str, Any]]] = []

    class Tokenizer:
        def apply_chat_template(self, messages: list[dict[str, Any]], **_: object) -> dict[str, list[int]]:
            seen.append(messages)
            return {"input_ids": [1, 2]}

    translator = Translator(name="mine", context_length=64, tokenizer=Tokenizer(), generation={})  # type: ignore[arg-type]
    call = {"id": "1", "type": "function", "function": {"name": "depth", "arguments": arguments}}
    asked = translator.chat(CHAT | {"messages": [*QUESTION, {"role": "assistant", "tool_calls": [call]}]})
    function = {"name": "depth", "arguments": {"of": "sea"}}
    assert asked["messages"][1]["tool_calls"] == [{"id": "1", "type": "function", "function": function}]
    assert seen == [asked["messages"]]
    for broken in ("{", "[]", 5):
        call["function"] = {"name": "depth", "arguments": broken}
        with pytest.raises(RequestError, match=r"messages\.1\.tool_calls\.0\.function\.arguments"):
            translator.chat(CHAT | {"messages": [*QUESTION, {"role": "assistant", "tool_calls": [call]}]})


@pytest.mark.parametrize(
    ("body", "part"),
    [
        (CHAT | {"messages": []}, "messages: List should have at least 1 item"),
        (CHAT | {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]}, "messages.0"),
        (CHAT | {"messages": [{"role": "judge", "content": "x"}]}, "messages.0.role"),
        (CHAT | {"messages": [{"role": "tool", "content": "x"}]}, "chat template refuses: a message has the role tool"),
        (CHAT | {"max_tokens": -1}, "max_tokens"),
        (CHAT | {"max_tokens": "5"}, "max_tokens"),
        (CHAT | {"temperature": -1}, "temperature"),
        (CHAT | {"n": 2}, "n is not supported"),
        (CHAT | {"logprobs": True}, "logprobs is not supported"),
        (CHAT | {"response_format": {"type": "json_object"}}, "response_format is not supported"),
        (CHAT | {"frequency_penalty": 0.5}, "frequency_penalty is not supported"),
        (CHAT | {"temprature": 1}, "unknown argument: temprature"),
        (CHAT | {"messages": [{"role": "user", "content": "why " * 80}]}, "context is 64 tokens, and the request has"),
        (CHAT | {"max_tokens": 60}, "and 60 for the answer"),
        ("no JSON", "the body is not JSON"),
        ([1], "the body must be a JSON object"),
    ],
)
def test_what_cannot_be_done_is_refused_in_openais_form(ask: Ask, inner: Inner, body: object, part: str) -> None:
    answer = ask("/v1/chat/completions", body)
    assert answer.status_code == 400 and inner.asked == []
    error = answer.json()["error"]
    assert part in error["message"] and error["type"] == "invalid_request_error" and error.keys() == {
        *("message", "type", "param", "code"),
    }  # fmt: skip


def test_what_cannot_be_done_with_a_text(ask: Ask) -> None:
    for wish, part in (
        ({"prompt": ["a", "b"]}, "prompt"),
        ({"logprobs": 0}, "logprobs is not"),
        ({"echo": True}, "echo is not"),
    ):
        answer = ask("/v1/completions", TEXT | wish)
        assert answer.status_code == 400 and part in answer.json()["error"]["message"], answer.text
    assert ask("/v1/completions", TEXT | {"prompt": ["import os"], "echo": False}).status_code == 200


def test_a_text_without_tokens() -> None:
    def tokenizer(text: str, verbose: bool) -> dict[str, list[int]]:  # one that begins texts with no token of its own
        return {"input_ids": []}

    translator = Translator(name="mine", context_length=64, tokenizer=tokenizer, generation={})  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="the prompt is empty"):
        translator.completion(TEXT | {"prompt": ""})


def test_there_are_four_paths_and_one_model(ask: Ask, inner: Inner) -> None:
    (model,) = ask("/v1/models").json()["data"]
    assert (model["id"], model["max_model_len"]) == ("mine", 64)
    assert ask("/v1/models/mine").json() == model
    assert ask("/v1/models/other").status_code == 404
    assert ask("/health").json() == {"status": "ok"}
    for path in ("/load_model", "/reset", "/v1/responses", "/docs"):
        answer = ask(path, {})
        assert answer.status_code == 404 and answer.json()["error"]["type"] == "invalid_request_error"
    assert ask("/v1/chat/completions").status_code == 405
    assert ask("/v1/chat/completions", CHAT | {"model": "/etc"}).status_code == 404
    assert [path for path, _ in inner.asked] == ["/health"]


def test_without_the_key_nothing_but_health_is_answered(inner: Inner) -> None:
    ask = asking(made(inner, api_key="secret"))
    for header in ({}, {"Authorization": "Bearer guess"}, {"Authorization": "secret"}, {"Authorization": "Bearer é"}):
        sent = {name: value.encode() for name, value in header.items()}
        for answer in (ask("/v1/models", **sent), ask("/v1/chat/completions", CHAT, **sent)):
            assert answer.status_code == 401 and answer.json()["error"]["code"] == "invalid_api_key"
    assert inner.asked == []
    assert ask("/v1/chat/completions", CHAT, Authorization="Bearer secret").status_code == 200
    assert ask("/health").status_code == 200


def test_other_names_and_pages_of_other_sites_are_refused(inner: Inner) -> None:
    ask = asking(made(inner))
    for headers in ({"Host": "evil.example"}, {"Origin": "http://evil.example"}, {"Origin": "null"}, {"Host": "[x"}):
        answer = ask("/v1/chat/completions", CHAT, **headers)
        assert answer.status_code == 403 and answer.json()["error"]["code"] == "host_not_allowed"
    assert inner.asked == []
    for headers in ({"Host": "127.0.0.1:8000"}, {"Host": "[::1]:1"}, {"Origin": "http://localhost:8000"}):
        assert ask("/v1/models", **headers).status_code == 200


@pytest.mark.parametrize(
    ("host", "allowed", "name", "origin", "is_refused"),
    [
        ("localhost", [], "10.0.0.1", "", True),
        ("0.0.0.0", [], "10.0.0.1:8000", "", False),
        ("0.0.0.0", [], "10.0.0.1:8000", "http://10.0.0.1:8000", False),
        ("0.0.0.0", [], "10.0.0.1:8000", "http://10.0.0.1:9000", True),
        ("0.0.0.0", [], "evil.example", "", True),
        ("models.lab", [], "Models.lab:8000", "", False),
        ("0.0.0.0", ["models.lab"], "models.lab", "https://models.lab", False),
        (
            "localhost",
            ["models.lab"],
            "localhost:8000",
            "https://models.lab",
            False,
        ),  # a proxy that writes its own Host
        ("localhost", [], "localhost:8000", "http://localhost:3000", True),
        ("localhost", [], "", "", True),
    ],
)
def test_names(host: str, allowed: list[str], name: str, origin: str, is_refused: bool) -> None:
    assert bool(Names.of(host, allowed).refusal(name, origin)) is is_refused


def test_a_stream_ends_as_openais_does(ask: Ask, inner: Inner) -> None:
    chunks = [{"choices": [{"text": "a"}]}, {"choices": [{"finish_reason": "stop"}], "usage": {"total_tokens": 3}}]
    inner.content = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks)
    body = TEXT | {"stream": True}
    events = ask("/v1/completions", body).text.split("\n\n")
    assert [json.loads(event[6:]) for event in events[:-2]] == [chunks[0], {"choices": [{"finish_reason": "stop"}]}]
    assert events[-2:] == ["data: [DONE]", ""]
    events = ask("/v1/completions", body | {"stream_options": {"include_usage": True}}).text.split("\n\n")
    assert json.loads(events[2][6:]) == {"choices": [], "usage": {"total_tokens": 3}}


def test_failures_of_transformers_server(ask: Ask, inner: Inner, monkeypatch: pytest.MonkeyPatch) -> None:
    inner.content = 'data: {"choices": []}\n\ndata: {"error": "a "quoted" fault"}\n\n'
    *_, last, rest = ask("/v1/completions", TEXT | {"stream": True}).text.split("\n\n")
    assert json.loads(last[6:])["error"]["type"] == "server_error" and rest == ""
    inner.status, inner.content = 500, "Internal Server Error"
    for body in (TEXT, TEXT | {"stream": True}):
        answer = ask("/v1/completions", body)
        assert answer.status_code == 502 and "its own messages" in answer.json()["error"]["message"]
    inner.status, inner.content = 422, json.dumps({"detail": "Unexpected fields"})
    assert ask("/v1/completions", TEXT).json()["error"]["message"] == "Unexpected fields"
    monkeypatch.setattr(front_module, "MAX_BODY_BYTES", 10)
    assert ask("/v1/completions", TEXT).status_code == 413


def test_a_body_that_is_nested_deeply_is_no_json(ask: Ask) -> None:
    answer = ask("/v1/chat/completions", "[" * 100_000)
    assert answer.status_code == 400 and "the body is not JSON" in answer.text


def test_the_python_of_the_page_is_answered(
    inner: Inner, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With OpenAI's own client, which meets the front where it would meet a network."""
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "a captain"}}
    answer = {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
    inner.content = json.dumps(answer)
    client = TestClient(made(inner, context_length=1024), base_url="http://localhost:8000")
    monkeypatch.setattr(openai, "OpenAI", partial(openai.OpenAI, http_client=client))
    page = "docs/serve.md"
    exec(compile(python_of(page), page, "exec"), {})
    assert capsys.readouterr().out.split("\n") == ["mine", "a captain", ""]
    assert inner.asked[-1][1]["messages"] == [{"role": "user", "content": "Who is Ahab?"}]
