"""`longlora corpus …` as a user calls it."""

import io
import json
import sys
from pathlib import Path

import pytest
from tests.corpus.qa.chat_server import ChatServer, completion, scholar, status
from tests.corpus.qa.conftest import SMALL, Run, records

from longlora.corpus.qa.answering_model import choose_model
from longlora.corpus.qa.make import journal_path
from longlora.corpus.qa.prompt_files import load_prompts, prompts_digest
from longlora.errors import ConfigError

OPTIONS = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]


def test_make_qa(run: Run, server: ChatServer, texts: Path, tmp_path: Path) -> None:
    where = ["--out", tmp_path / "qa.jsonl", "--model", "scholar", "--base-url", server.base_url]
    prices = ["--price-in", 2, "--price-out", 10]
    status, out, err = run("corpus", "make-qa", texts / "a-short.txt", *where, *OPTIONS, *prices, "--yes")
    assert status == 0, err
    assert "1 documents of" in err
    assert "5 calls to make (5 questions), 0 in the journal" in err
    assert "at most 0.0" in err
    assert "if each of 8 calls at once writes 30 tokens in a second" in err
    assert f"10 records from 1 documents, written to {tmp_path / 'qa.jsonl'}" in out
    assert "500 tokens read and 250 written, 0.00 at the given prices" in out
    assert len((tmp_path / "qa.jsonl").read_text(encoding="utf-8").splitlines()) == 10
    # More documents need no new file, and what is in the journal is not asked again.
    limits = ["--max-tokens", 10**6, "--max-cost", 100]
    status, out, err = run("corpus", "make-qa", texts, *where, *OPTIONS, *prices, *limits, "--yes", "--json")
    assert status == 0, err
    assert "5 in the journal" in err
    assert "s a call so far" in err
    assert "stops before 1,000,000 tokens are exceeded\nstops before 100.00 is exceeded" in err
    result = json.loads(out)
    assert result["is_complete"]
    assert result["num_answered"] == len(server.requests) - 5
    assert result["cost"] == pytest.approx(len(server.requests) * 700e-6)
    status, out, _ = run("corpus", "make-qa", texts, *where, *OPTIONS, "--from-journal")
    assert (status, f"{result['num_records']} records from 3 documents" in out) == (0, True)


def test_every_setting_is_an_option(run: Run, server: ChatServer, texts: Path, tmp_path: Path) -> None:
    chosen = {
        "window": 9000,
        "kind": "book",
        "chars_per_token": 3.5,
        "questions": 3,
        "ask_sections": 2,
        "reply_tokens": 500,
        "notes_tokens": 400,
        "temperature": 0.1,
        "seed": 5,
        "quotes": "fuzzy",
        "quote_similarity": 0.6,
        "max_document_tokens": 700,
    }
    options = [f"--{name.replace('_', '-')}={value}" for name, value in chosen.items()]
    where = ["--out", tmp_path / "qa.json", "--model", "scholar", "--base-url", server.base_url]
    run("corpus", "make-qa", texts / "a-short.txt", *where, *options, "--judge", "--yes")
    header = json.loads(journal_path(tmp_path / "qa.json").read_text(encoding="utf-8").splitlines()[0])["settings"]
    expected = chosen | {"model": "scholar", "judge": True}
    assert {name: header[name] for name in expected} == expected
    defaults = {"tokenizer": None, "tries": 2, "duplicate_similarity": 0.7}
    assert {name: header[name] for name in header.keys() - expected.keys() - {"prompts", "journal_version"}} == defaults


def test_consent_is_asked_for(
    run: Run, server: ChatServer, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["corpus", "make-qa", texts, "--out", tmp_path / "qa.json", "--model", "scholar", *OPTIONS]
    arguments += ["--base-url", server.base_url]
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    code, _, err = run(*arguments)
    assert (code, "confirm with --yes" in err) == (2, True)
    answers = io.StringIO("n\n")
    monkeypatch.setattr(answers, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdin", answers)
    code, out, err = run(*arguments)
    assert (code, "stopped, not confirmed" in out) == (1, True), err
    assert "cost unknown without --price-in and --price-out" in err
    assert not server.requests


def test_what_is_left_is_said(run: Run, server: ChatServer, texts: Path, tmp_path: Path) -> None:
    server.answer = lambda request, before: (
        status(400, "too long") if "persons or groups" in request["messages"][0]["content"] else scholar(request)
    )
    where = ["--out", tmp_path / "qa.json", "--model", "scholar", "--base-url", server.base_url, *OPTIONS, "--yes"]
    code, out, err = run("corpus", "make-qa", texts / "a-short.txt", *where)
    assert code == 1, err
    assert "1 calls failed: 1 status 400" in out
    assert "not complete: at least 1 calls have no reply; the same command asks them again" in out
    assert len(records(tmp_path / "qa.json")) == 8
    server.answer = lambda request, before: completion("[]")
    code, out, _ = run("corpus", "make-qa", texts / "c-paper.txt", *where)
    assert (code, "0 records from 1 documents; nothing is written" in out) == (1, True)
    assert "dropped 6: 6 unreadable reply" in out


def test_prompts_to_begin_with(run: Run, tmp_path: Path) -> None:
    code, out, _ = run("corpus", "qa-prompts", tmp_path / "mine")
    assert (code, f"--prompts {tmp_path / 'mine'}" in out) == (0, True)
    assert prompts_digest(load_prompts(tmp_path / "mine")) == prompts_digest(load_prompts())
    code, _, err = run("corpus", "qa-prompts", tmp_path / "mine")
    assert (code, "already exists" in err) == (2, True)


MISTAKES = {
    "": "give one answering model, --model NAME on a server or --local MODEL; found neither",
    "--model a --local tiny": "found both",
    "--local tiny --base-url http://localhost/v1": "no --base-url, no --tokenizer",
    "--model a": "--window must be the number of tokens",
    "--model a --window 9000": "set OPENAI_API_KEY, or --base-url",
    "--model a --window 9000 --base-url localhost:8000/v1": "--base-url must be an address such as http://localhost:8000",
    "--model a --window 9000 --base-url http://": "--base-url must be an address",
    "--model a --window 9000 --base-url http://localhost:99999/v1": "--base-url must be an address",
    "--model a --window 9000 --base-url http://localhost/v1 --timeout 0": "--timeout must be above 0",
    "--model a --window 9000 --base-url http://localhost/v1 --price-in 1": "--price-in and --price-out must be given",
    "--model a --window 9000 --base-url http://localhost/v1 --questions 0": "--questions must be at least 1, got 0",
    "--model a --window 9000 --base-url http://localhost/v1 --max-document-tokens 0": "--max-document-tokens must be",
    "--model a --window 9000 --base-url http://localhost/v1 --temperature -1": "--temperature must not be negative",
    "--model a --window 9000 --base-url http://localhost/v1 --quote-similarity 2": "--quote-similarity must be above 0",
    "--model a --window 9000 --base-url http://localhost/v1 --chars-per-token 0": "--chars-per-token must be above 0",
    "--model a --window 9000 --base-url http://localhost/v1 --concurrency 0": "--concurrency must be at least 1",
    "--model a --window 9000 --base-url http://localhost/v1 --attempts 0": "--attempts must be at least 1",
    "--model a --window 9000 --base-url http://localhost/v1 --requests-per-minute 0": "--requests-per-minute must be",
    "--model a --window 9000 --base-url http://localhost/v1 --tokens-per-minute -1": "--tokens-per-minute must be",
    "--model a --window 9000 --base-url http://localhost/v1 --prompts nowhere": "--prompts nowhere must contain .txt",
}


@pytest.mark.parametrize("arguments", MISTAKES)
def test_mistakes(run: Run, texts: Path, tmp_path: Path, arguments: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    code, out, err = run("corpus", "make-qa", texts, "--out", tmp_path / "qa.json", *arguments.split(), "--yes")
    assert code == 2, out + err
    assert MISTAKES[arguments] in err
    assert "Traceback" not in err


def test_without_the_openai_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("longlora.corpus.qa.answering_model.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'longlora\[corpus\]'"):
        choose_model(
            model="a",
            base_url="http://localhost/v1",
            local="",
            window=1000,
            tokenizer=None,
            chars_per_token=3,
            timeout_seconds=1,
        )


def test_the_whole_way(run: Run, server: ChatServer, texts: Path, tmp_path: Path) -> None:
    short = tmp_path / "short.jsonl"
    short.write_text("".join(json.dumps({"instruction": f"Say {n}", "output": f"{n}"}) + "\n" for n in range(5)))
    out = tmp_path / "data"
    where = ["--model", "scholar", "--base-url", server.base_url, "--window", 9000, "--yes"]
    data = ["--tokenizer", "tiny", "--context", 100_000, "--short", short, "--ratio", "2:1"]
    command = [
        "corpus",
        "build",
        texts / "a-short.txt",
        "--out",
        out,
        *where,
        *data,
        "--price-in",
        2,
        "--price-out",
        10,
    ]
    status, said, err = run(*command)
    assert status == 0, said + err
    assert "calls to make" in err and "at the given prices" in err  # before they are sent
    assert (
        "15 rows written" in said and "15 rows checked, nothing found" in said and "questions about 1 document" in said
    )
    asked = len(server.requests)
    mixed = (out / "train.jsonl").read_bytes()
    assert (out / "check.html").exists()
    status, said, _ = run(*command)
    assert (status, len(server.requests), (out / "train.jsonl").read_bytes()) == (0, asked, mixed)
    assert "0 texts written" in said


def test_the_whole_way_says_mistakes_before_it_reads(run: Run, texts: Path, tmp_path: Path) -> None:
    command = ["corpus", "build", texts, "--out", tmp_path / "data", "--tokenizer", "tiny", "--context", 1000]
    status, _, err = run(*command, "--model", "scholar")
    assert status == 2 and "--window must be" in err
    assert not (tmp_path / "data").exists()
