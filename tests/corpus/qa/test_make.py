"""A whole set from a well-behaved server: what is asked, what the records hold, what is dropped."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from tests.corpus.qa.chat_server import ChatServer, Response, completion, scholar, step_of, written
from tests.corpus.qa.conftest import Make, records

from longlora.corpus.qa.chunks import ShelfText
from longlora.corpus.qa.document_qa import NO_QUOTATION
from longlora.corpus.qa.estimate import Estimate
from longlora.corpus.qa.make import journal_path
from longlora.corpus.quotations import Passages
from longlora.data.sources import Source
from longlora.errors import ConfigError, DataError


def test_records_hold_the_whole_document_and_where_they_come_from(make: Make, texts: Path, tmp_path: Path) -> None:
    summary = make()
    found = records(tmp_path / "qa.json")
    assert summary.is_complete
    assert summary.num_records == len(found) > 0
    assert summary.num_documents == 3
    whole = {path.name: path.read_text(encoding="utf-8").strip() for path in texts.iterdir()}
    for record in found:
        origin = record["provenance"]
        text = whole[Path(origin["source"]).name]
        assert set(record) == {"instruction", "output", "provenance"}
        assert text in record["instruction"]
        assert record["instruction"].endswith("?")
        assert Passages(text).holds(origin["quotes"][0])
        assert (origin["model"], origin["seed"], origin["quotes_checked"]) == ("scholar-1", 0, "exact")
        for begin, end in origin["sections"]:
            assert 0 <= begin < end <= len(text) + 2
    kinds = {(record["provenance"]["document_kind"], record["provenance"]["question_kind"]) for record in found}
    books = {"causes", "characters", "details", "relations", "summary"}
    papers = {"comparison", "contributions", "details", "limits", "methods", "results"}
    assert kinds == {("book", kind) for kind in books} | {("paper", kind) for kind in papers}


def test_a_long_document_is_asked_over_notes_and_by_section(make: Make, server: ChatServer, tmp_path: Path) -> None:
    make()
    long = [one["provenance"] for one in records(tmp_path / "qa.json") if "b-long" in one["provenance"]["source"]]
    scopes = {origin["question_kind"]: origin["asked_over"] for origin in long}
    assert scopes.pop("details") == "section"
    assert set(scopes.values()) == {"notes"}
    steps = Counter(step_of(prompt) for prompt in server.prompts)
    assert steps["notes"] >= 3
    over_notes = next(origin for origin in long if origin["asked_over"] == "notes")
    assert len(over_notes["sections"]) == steps["notes"]
    # All sections together are the document, without a gap.
    bounds = over_notes["sections"]
    assert all(first[1] == second[0] for first, second in pairwise(bounds))
    # No prompt is larger than the window leaves, by the measure in use.
    assert max(len(prompt) / 3 + request["max_tokens"] for prompt, request in _requests(server)) <= 2400


def _requests(server: ChatServer) -> list[tuple[str, dict[str, Any]]]:
    return [(request["messages"][0]["content"], request) for request in server.requests]


def test_notes_that_do_not_fit_are_condensed(make: Make, server: ChatServer, texts: Path, tmp_path: Path) -> None:
    def long_notes(request: dict[str, Any], before: int) -> Response:
        prompt = request["messages"][0]["content"]
        if step_of(prompt) != "notes":
            return scholar(request)
        return completion(written(prompt) + " and so on" * 80)

    server.answer = long_notes
    summary = make(source=texts / "b-long.txt", window=1900)
    assert Counter(step_of(prompt) for prompt in server.prompts)["condense"] >= 2
    assert summary.is_complete


def test_the_estimate_counts_the_calls_that_are_made(make: Make, server: ChatServer) -> None:
    estimates: list[Estimate] = []
    make(judge=True, confirm=lambda estimate: estimates.append(estimate) or True)
    assert estimates[0].num_calls >= len(server.requests) > 0
    made = Counter(step_of(prompt) for prompt in server.prompts)
    # The scholar's notes are short, so none need condensing; the estimate takes them for as long as they may be.
    assert {step: estimates[0].calls[step] for step in ("notes", "questions", "judge")} == {**made}
    assert estimates[0].tokens.completion_tokens == sum(
        count * (300 if step in ("notes", "condense") else 600) for step, count in estimates[0].calls.items()
    )


def test_nothing_is_sent_without_consent(make: Make, server: ChatServer, tmp_path: Path) -> None:
    summary = make(confirm=lambda estimate: False)
    assert (summary.stopped_by, summary.num_records) == ("not confirmed", 0)
    assert not server.requests
    assert not (tmp_path / "qa.json").exists()


def test_a_second_run_asks_nothing_and_writes_the_same(make: Make, server: ChatServer, tmp_path: Path) -> None:
    make()
    first, sent = (tmp_path / "qa.json").read_bytes(), len(server.requests)
    make(confirm=None)
    make(answerer=None)
    assert (tmp_path / "qa.json").read_bytes() == first
    assert len(server.requests) == sent


def test_more_documents_may_be_added(make: Make, server: ChatServer, texts: Path, tmp_path: Path) -> None:
    make(source=texts / "a-short.txt")
    few, sent = records(tmp_path / "qa.json"), len(server.requests)
    make()
    more = records(tmp_path / "qa.json")
    assert more[: len(few)] == few
    assert len(more) > len(few)
    assert len(server.requests) - sent == len(server.prompts) - sent


def test_lines_for_a_name_in_jsonl(make: Make, texts: Path, tmp_path: Path) -> None:
    make(tmp_path / "qa.json", source=texts / "a-short.txt")
    make(tmp_path / "qa.jsonl", source=texts / "a-short.txt")
    lines = (tmp_path / "qa.jsonl").read_text(encoding="utf-8").splitlines()
    in_list, in_lines = records(tmp_path / "qa.json"), [json.loads(line) for line in lines]
    assert [one["instruction"] for one in in_lines] == [one["instruction"] for one in in_list]


def test_documents_are_cut_before_all_else(make: Make, texts: Path, tmp_path: Path) -> None:
    make(max_document_tokens=400, source=texts / "b-long.txt")
    text = (texts / "b-long.txt").read_text(encoding="utf-8")
    for record in records(tmp_path / "qa.json"):
        origin = record["provenance"]
        assert origin["is_cut"]
        assert 200 <= origin["document_tokens"] <= 400
        assert text[:600].strip() in record["instruction"]
        assert text[1300:1400].strip() not in record["instruction"]


def test_the_same_text_twice_is_asked_once(make: Make, server: ChatServer, texts: Path) -> None:
    make(source=texts / "a-short.txt")
    sent = len(server.requests)
    (texts / "copy.txt").write_bytes((texts / "a-short.txt").read_bytes())
    summary = make(source=texts / "*[ty].txt")  # a-short, copy
    assert summary.repeated == [str(texts / "copy.txt")]
    assert (summary.num_documents, len(server.requests)) == (1, sent)


def test_what_is_skipped_is_said_once(make: Make, texts: Path, caplog: pytest.LogCaptureFixture) -> None:
    (texts / "picture.png").write_bytes(b"\x89PNG\0")
    (texts / "b-long.txt").unlink()
    make()
    assert [record.message for record in caplog.records if "skipped" in record.message] == [
        f"skipped 1 files or rows: 1 not UTF-8 text: {texts / 'picture.png'}"
    ]


def test_a_source_is_read_once_and_before_a_call_is_sent(make: Make, server: ChatServer, texts: Path) -> None:
    text = (texts / "a-short.txt").read_text(encoding="utf-8")
    breaks_off = [True]

    def read() -> Iterator[tuple[str, ShelfText]]:
        yield "a", ShelfText(text)
        if breaks_off.pop():
            raise DataError("the connection was lost")
        yield "b", ShelfText(text[:200])

    source = Source(identity="", num_documents=2, read=read)
    with pytest.raises(DataError, match="the connection was lost"):
        make(source=source)
    assert not server.requests
    breaks_off.append(False)
    assert make(source=source).is_complete


SENTENCE = "One two three four five six seven."


@pytest.mark.parametrize(
    ("pair", "reason"),
    [
        ({"question": "Who?", "answer": "I'm sorry, I cannot help with that.", "quotes": [SENTENCE]}, "refusal"),
        ({"question": "Who?", "answer": "The text does not mention it.", "quotes": []}, "refusal"),
        ({"question": "What does this excerpt say?", "answer": "It.", "quotes": [SENTENCE]}, "speaks of a part"),
        ({"question": "Who?", "answer": "He.", "quotes": []}, NO_QUOTATION),
        ({"question": "Who?", "answer": "He.", "quotes": ["This was never written there."]}, "quotation not found"),
    ],
)
def test_what_is_dropped_is_counted(
    make: Make, server: ChatServer, texts: Path, tmp_path: Path, pair: dict[str, Any], reason: str
) -> None:
    (texts / "a-short.txt").write_text(f"{SENTENCE} And more of this.", encoding="utf-8")
    good = {"question": "How many?", "answer": "Seven.", "quotes": ["two THREE  four\nfive"]}
    server.answer = lambda request, before: completion(json.dumps([pair, good]))
    summary = make(source=texts / "a-short.txt")
    # Five prompts get the same reply: its good pair once, and then as a duplicate.
    assert summary.dropped == {reason: 5, "duplicate question": 4}
    assert [record["output"] for record in records(tmp_path / "qa.json")] == ["Seven."]


def test_what_a_paper_does_not_discuss_is_an_answer_with_its_proof(
    make: Make, server: ChatServer, texts: Path, tmp_path: Path
) -> None:
    (texts / "a-short.txt").write_text(f"{SENTENCE} And more of this.", encoding="utf-8")
    pair = {"question": "Which?", "answer": "The paper does not discuss other languages.", "quotes": [SENTENCE]}
    server.answer = lambda request, before: completion(json.dumps([pair]))
    make(source=texts / "a-short.txt")
    assert [record["output"] for record in records(tmp_path / "qa.json")] == [pair["answer"]]


def test_the_kind_that_a_record_names_decides_the_prompts(
    make: Make, server: ChatServer, texts: Path, tmp_path: Path
) -> None:
    text = (texts / "a-short.txt").read_text(encoding="utf-8")
    (tmp_path / "corpus.jsonl").write_text(json.dumps({"text": text, "document_kind": "paper"}) + "\n")
    make(source=tmp_path / "corpus.jsonl")
    (first, *_) = records(tmp_path / "qa.json")
    assert first["instruction"].startswith("Read the paper below") and first["provenance"]["document_kind"] == "paper"
    assert {record["provenance"]["question_kind"] for record in records(tmp_path / "qa.json")} >= {"limits", "methods"}


def test_an_unreadable_reply_is_asked_again_with_the_next_seed(make: Make, server: ChatServer, texts: Path) -> None:
    def once(request: dict[str, Any], before: int) -> Response:
        return completion("no idea {") if request["seed"] == 7 else scholar(request)

    server.answer = once
    summary = make(source=texts / "a-short.txt", seed=7)
    assert summary.num_records == 10
    assert Counter(request["seed"] for request in server.requests) == {7: 5, 8: 5}


def test_progress_counts_each_call_once(
    make: Make, server: ChatServer, texts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[int] = []

    @contextmanager
    def bar(description: str, *, total: int) -> Iterator[Callable[[int, str], None]]:
        yield lambda count, text: counted.append(count)
        assert sum(counted) == total

    monkeypatch.setattr("longlora.corpus.qa.make.progress_bar", bar)
    server.answer = lambda request, before: completion("no idea {") if request["seed"] == 7 else scholar(request)
    make(source=texts / "a-short.txt", seed=7)
    assert len(counted) == 10 and sum(counted) == 5  # each was asked twice


def test_silence_of_the_server_is_said(
    make: Make, server: ChatServer, texts: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("longlora.corpus.qa.asking._SECONDS_OF_SILENCE", 0.02)
    server.answer = lambda request, before: replace(scholar(request), delay=0.2)
    assert make(source=texts / "a-short.txt").is_complete
    assert caplog.text.count("the run waits for the model") == 1


def test_unreadable_replies_leave_nothing(make: Make, server: ChatServer, texts: Path, tmp_path: Path) -> None:
    server.answer = lambda request, before: completion(None)
    summary = make(source=texts / "a-short.txt")
    assert summary.dropped == {"unreadable reply": 5}
    assert summary.is_complete
    assert not (tmp_path / "qa.json").exists()


def test_the_judge_decides(make: Make, server: ChatServer, texts: Path, tmp_path: Path) -> None:
    def strict(request: dict[str, Any], before: int) -> Response:
        prompt = request["messages"][0]["content"]
        if step_of(prompt) != "judge":
            return scholar(request)
        assert request["temperature"] == 0
        assert '"number": 2' in prompt
        verdicts = [
            {"number": 1, "verdict": "Supported", "reason": "line 1"},
            {"number": "2", "verdict": "unsupported"},
        ]
        return completion(json.dumps(verdicts))

    server.answer = strict
    summary = make(source=texts / "a-short.txt", judge=True)
    assert summary.dropped == {"judged unsupported": 5}
    assert {record["provenance"]["judgement"] for record in records(tmp_path / "qa.json")} == {"line 1"}


def test_a_pair_without_a_verdict_is_dropped(make: Make, server: ChatServer, texts: Path) -> None:
    server.answer = lambda request, before: (
        completion("hm") if step_of(request["messages"][0]["content"]) == "judge" else scholar(request)
    )
    summary = make(source=texts / "a-short.txt", judge=True)
    assert summary.dropped == {"no verdict": 10}


def test_prompts_of_ones_own(make: Make, server: ChatServer, texts: Path, tmp_path: Path) -> None:
    (tmp_path / "mine" / "books").mkdir(parents=True)
    mine = "Ask {{count}} about\n<text>\n{{material}}\n</text>\n"
    (tmp_path / "mine" / "books" / "places.txt").write_text(mine, encoding="utf-8")
    make(source=texts / "a-short.txt", prompts=tmp_path / "mine")
    assert [prompt[:11] for prompt in server.prompts] == ["Ask 2 about"]
    assert {record["provenance"]["question_kind"] for record in records(tmp_path / "qa.json")} == {"places"}


def test_quotations_may_be_fuzzy_or_off(make: Make, server: ChatServer, texts: Path, tmp_path: Path) -> None:
    (texts / "a-short.txt").write_text(" ".join(f"word{n}" for n in range(90)) + ".", encoding="utf-8")
    words = [f"word{n}" for n in range(40, 50)]
    words[4] = "worm"
    pair = {"question": "Who?", "answer": "He.", "quotes": [" ".join(words)]}
    server.answer = lambda request, before: completion(json.dumps([pair]))
    summaries = {
        quotes: make(tmp_path / f"{quotes}.json", source=texts / "a-short.txt", quotes=quotes).dropped
        for quotes in ("exact", "fuzzy", "off")
    }
    assert summaries["exact"] == {"quotation not found": 5}
    assert summaries["fuzzy"] == summaries["off"] == {"duplicate question": 4}
    tight = make(tmp_path / "tight.json", source=texts / "a-short.txt", quotes="fuzzy", quote_similarity=0.95)
    assert tight.dropped == {"quotation not found": 5}


def test_a_file_of_somebody_else_is_not_overwritten(make: Make, tmp_path: Path) -> None:
    (tmp_path / "qa.json").write_text("[]", encoding="utf-8")
    with pytest.raises(ConfigError, match="exists and has no journal"):
        make()
    with pytest.raises(ConfigError, match="is a folder"):
        make(tmp_path)
    with pytest.raises(ConfigError, match=r"no journal .* to write from"):
        make(tmp_path / "other.json", answerer=None)
    assert not journal_path(tmp_path / "qa.json").exists()


def test_a_window_too_small_is_refused(make: Make) -> None:
    with pytest.raises(ConfigError, match=r"--window 1500 must leave at least \d+ tokens for the text, and leaves"):
        make(window=1500)
