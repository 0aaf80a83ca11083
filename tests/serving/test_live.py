"""transformers' own server with a merged model, asked by OpenAI's client."""

import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from openai import AuthenticationError, BadRequestError, NotFoundError, OpenAI
from tests.merge.adapters import load, save_random
from transformers import AutoTokenizer

from longlora.models.load import load_for_inference
from longlora.models.lora import add_adapter
from longlora.tiny import tiny_model_directory

pytestmark = pytest.mark.slow

QUESTION = [{"role": "user", "content": "import os"}]
NUM_TOKENS = 12
KEY = "open sesame"
PATIENCE = 10  # seconds; two on a machine that has nothing else to do


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter on the tiny model, with its tokenizer, which has no chat template."""
    folder = tmp_path_factory.mktemp("run") / "mine" / "adapter"
    model = add_adapter(
        load(tiny_model_directory()),
        trainable=("norm",),
        r=2,
        lora_alpha=4,
        lora_dropout=0.0,
        target_modules="attention",
    )
    torch.manual_seed(0)
    save_random(model, folder)
    for file in tiny_model_directory().glob("tokenizer*"):
        shutil.copy(file, folder)
    return folder


@pytest.fixture(scope="module")
def server(adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The command, and the line that it prints."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    cache = tmp_path_factory.mktemp("cache")
    command = [sys.executable, "-m", "longlora.cli", "serve", str(adapter), "--engine", "transformers"]
    process = subprocess.Popen(
        [*command, "--port", str(port)],
        env=os.environ | {"XDG_CACHE_HOME": str(cache), "LONGLORA_API_KEY": KEY},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        assert select.select([process.stdout], [], [], 240)[0], "no line within four minutes"
        yield process, process.stdout.readline()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_chat_completion_and_streams(server: tuple[subprocess.Popen[str], str], adapter: Path) -> None:
    _, line = server
    url = line.split()[1]
    assert "by transformers: model mine, 256 tokens" in line
    client = OpenAI(base_url=url, api_key=KEY, max_retries=0)

    model, _ = load_for_inference(adapter)
    tokenizer = AutoTokenizer.from_pretrained(adapter)
    prompt = tokenizer.bos_token if tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id else ""
    expected_chat = greedy(model, tokenizer, f"{prompt}[INST]import os[/INST]")
    expected_text = greedy(model, tokenizer, "import os\nimport ")

    asked = {"model": "mine", "max_tokens": NUM_TOKENS, "temperature": 0}
    chat = client.chat.completions.create(messages=QUESTION, **asked)
    assert chat.choices[0].message.content == expected_chat
    assert chat.usage is not None and chat.usage.completion_tokens <= NUM_TOKENS
    parts = [p for p in client.chat.completions.create(messages=QUESTION, stream=True, **asked) if p.choices]
    assert len(parts) > 2
    assert "".join(part.choices[0].delta.content or "" for part in parts) == expected_chat

    text = client.completions.create(prompt="import os\nimport ", **asked)
    assert text.choices[0].text == expected_text
    stream = client.completions.create(prompt="import os\nimport ", stream=True, **asked)
    assert "".join(part.choices[0].text for part in stream if part.choices) == expected_text

    counted = client.chat.completions.create(
        messages=QUESTION, stream=True, stream_options={"include_usage": True}, **asked
    )
    *_, last = counted
    assert last.choices == [] and last.usage is not None and last.usage.completion_tokens <= NUM_TOKENS
    drawn = {
        client.completions.create(prompt="import ", **asked | {"temperature": 1, "seed": n}).choices[0].text
        for n in (1, 2, 3)
    }
    assert len(drawn) > 1  # a temperature is followed, though the model's own settings draw no tokens


def test_what_clients_are_refused(server: tuple[subprocess.Popen[str], str]) -> None:
    url = server[1].split()[1]
    client = OpenAI(base_url=url, api_key=KEY, max_retries=0)
    assert [(model.id, model.model_extra["max_model_len"]) for model in client.models.list()] == [("mine", 256)]
    assert client.models.retrieve("mine").id == "mine"
    with pytest.raises(NotFoundError, match="`mine` is"):
        client.completions.create(model="other", prompt="x", max_tokens=1)
    with pytest.raises(AuthenticationError, match="API key is missing or wrong"):
        OpenAI(base_url=url, api_key="guess", max_retries=0).models.list()
    for wish in ({"messages": []}, {"max_tokens": -1}, {"n": 2}, {"logprobs": True}, {"max_tokens": 256}):
        with pytest.raises(BadRequestError) as refused:
            client.chat.completions.create(**{"model": "mine", "messages": QUESTION} | wish)
        assert next(iter(wish)) in str(refused.value) or refused.value.code == "context_length_exceeded"
    for path in ("/load_model", "/reset", "/v1/responses"):
        with pytest.raises(NotFoundError):
            client.with_options(base_url=url.removesuffix("/v1")).post(path, body={"model": "/"}, cast_to=object)


def test_sigterm_in_a_stream_ends_all_at_once(server: tuple[subprocess.Popen[str], str]) -> None:
    process, line = server
    client = OpenAI(base_url=line.split()[1], api_key=KEY, max_retries=0)
    stream = client.completions.create(model="mine", prompt="import ", stream=True, max_tokens=200, temperature=1)
    next(iter(stream))
    process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    assert process.wait(60) == 143
    assert time.monotonic() - began < PATIENCE, time.monotonic() - began
    stream.close()
    with socket.socket() as probe:
        assert probe.connect_ex(("localhost", int(line.split()[1].split(":")[2].split("/")[0]))) != 0


@torch.no_grad()
def greedy(model: torch.nn.Module, tokenizer: AutoTokenizer, text: str) -> str:
    """The likeliest tokens one after another, without a cache."""
    begin = tokenizer(text, add_special_tokens=not text.startswith(tokenizer.bos_token or "\0"), return_tensors="pt")
    tokens = begin["input_ids"]
    length = tokens.shape[1]
    for _ in range(NUM_TOKENS):
        best = model(input_ids=tokens, use_cache=False).logits[:, -1].argmax(dim=-1, keepdim=True)
        if int(best) == tokenizer.eos_token_id:
            break
        tokens = torch.cat([tokens, best], dim=1)
    return tokenizer.decode(tokens[0, length:], skip_special_tokens=True)
