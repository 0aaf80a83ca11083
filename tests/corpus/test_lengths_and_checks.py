"""What `corpus stats` and `corpus check` count, against rows whose faults and lengths are known."""

import gzip
import json
import random
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from typer.testing import CliRunner

from longlora.cli.main import app
from longlora.corpus.checking import check_file, percentiles
from longlora.corpus.near_duplicates import RunIndex
from longlora.data.sources import read_conversations
from longlora.errors import ConfigError, DataError
from longlora.models.chat_template import ensure_chat_template
from longlora.tiny import tiny_model_directory


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    loaded = AutoTokenizer.from_pretrained(tiny_model_directory())
    ensure_chat_template(loaded)
    return loaded


def prose(seed: int, words: int = 300) -> str:
    choose = random.Random(seed)
    lines = [" ".join(f"word{choose.randrange(3000)}" for _ in range(15)) for _ in range(words // 15)]
    return "\n".join(lines)


def asked(document: str, question: str, answer: str = "It says so.") -> dict[str, Any]:
    return {"instruction": f"Read this.\n{document}\n{question}", "output": answer}


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_lengths_are_those_of_training(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    rows = [asked(prose(1), "Why?"), {"instruction": "Who?", "output": "One of two."}]
    lengths = check_file(write(tmp_path / "a.jsonl", rows), tokenizer)
    for row, prompt, answer in zip(rows, lengths.prompts, lengths.answers, strict=True):
        bos = tokenizer.bos_token if tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id else ""
        text = f"{bos}[INST]{row['instruction']}[/INST]"
        whole = tokenizer(f"{text}{row['output']}{tokenizer.eos_token}", add_special_tokens=False)["input_ids"]
        assert prompt + answer == len(whole)
        assert prompt == pytest.approx(len(tokenizer(text, add_special_tokens=False)["input_ids"]), abs=1)
    assert lengths.kinds == {"document and question": 1, "question without a document": 1}
    assert lengths.lengths["row"] == [a + b for a, b in zip(lengths.prompts, lengths.answers, strict=True)]


def test_kinds_and_rows_that_are_left_out(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    turns = [{"role": role, "content": "x"} for role in ("system", "user", "assistant", "user", "assistant")]
    rows = [{"messages": turns}, {"messages": turns[:2]}, {"messages": [*turns[:2], turns[2] | {"content": " "}]}]
    lengths = check_file(write(tmp_path / "a.jsonl", rows), tokenizer)
    assert lengths.kinds == {"question without a document, several answers, system message": 1}
    assert {reason: found.count for reason, found in lengths.unusable.items()} == {
        "without an answer": 1,
        "with an empty answer": 1,
    }


def test_lengths_of_texts(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    path = write(tmp_path / "a.jsonl", [{"text": "one two three"}, {"text": "four"}])
    lengths = check_file(path, tokenizer)
    assert lengths.lengths == {"text": [len(tokenizer(text)["input_ids"]) for text in ("one two three", "four")]}
    assert lengths.to_dict()["kinds"] == {"text": 2}


def test_percentiles_are_lengths_that_occur() -> None:
    assert percentiles([1, 2, 3, 4, 100]) == {"p0": 1, "p5": 1, "p25": 2, "p50": 3, "p75": 4, "p95": 100, "p100": 100}


def test_files_that_are_neither(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(DataError, match=r"it needs the columns of a conversation .* or a text \(--text-column\)"):
        check_file(write(tmp_path / "a.jsonl", [{"body": "x"}]), tokenizer)
    (tmp_path / "b.json").write_text("{")
    with pytest.raises(DataError, match=r"b\.json is not valid JSON"):
        check_file(str(tmp_path / "b.json"), tokenizer)
    with pytest.raises(DataError, match=r"contains no usable row: 1 with an empty answer"):
        check_file(write(tmp_path / "c.jsonl", [asked("x", "y", "")]), tokenizer)


def test_a_file_that_breaks_off(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    rows = "".join(json.dumps({"instruction": prose(seed), "output": "x"}) + "\n" for seed in range(60))
    packed = gzip.compress(rows.encode())
    (tmp_path / "a.jsonl.gz").write_bytes(packed[: len(packed) * 3 // 4])
    with pytest.raises(DataError, match=r"a\.jsonl\.gz is not valid gzip"):
        check_file(str(tmp_path / "a.jsonl.gz"), tokenizer)


def test_a_file_without_faults(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    ours = write(tmp_path / "a.jsonl", [asked(prose(1), "Why?"), asked(prose(1), "Who?"), asked(prose(2), "Why?")])
    other = write(tmp_path / "b.jsonl", [asked(prose(3), "Why?"), {"instruction": "Where is it?", "output": "Here."}])
    report = check_file(ours, tokenizer, context_length=100_000, against=[other])
    assert report.describe() == [] and report.num_rows == 3


def test_faults(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    long = asked(prose(1, 600), "Why?")
    rows = [long, long, asked("x", "y", ""), {"instruction": "Say much", "output": prose(2)}, {"instruction": "q", "output": "a"}]  # fmt: skip  # noqa: E501
    path = write(tmp_path / "a.jsonl", rows)
    total = check_file(path, tokenizer).lengths["row"][0]
    report = check_file(path, tokenizer, context_length=500)
    assert report.num_rows == 5
    assert (report.cut.count, report.num_cut_tokens) == (2, 2 * (total - 500))
    assert report.cut.examples[0] == f"{path}:1 ({total - 500:,} tokens)"
    assert report.repeated.examples == [f"{path}:2"]
    assert report.unusable["with an empty answer"].examples == [f"{path}:3"]
    reasons = [reason for reason in report.unusable if "room" in reason or "exceed" in reason]
    assert [report.unusable[reason].examples for reason in reasons] == [[f"{path}:4"]]


def test_leaks(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    book = prose(1, 3000)
    other = write(
        tmp_path / "other.jsonl",
        [
            asked(book, "What is the name of the ship?"),
            {"instruction": "Name three colours of the rainbow, please.", "output": "Red, green, blue."},
        ],
    )
    excerpt = "\n".join(book.splitlines()[50:120])
    changed = " ".join(word if index % 50 else "else" for index, word in enumerate(book.split()))
    rows = [
        asked(book, "what is the name of the ship"),
        asked(excerpt, "Who is the captain?"),
        asked(changed.replace(" word1", "\nword1"), "Who is the captain?"),
        asked(prose(9, 3000), "What is the name of the ship?"),  # another document: no leak
        {"instruction": "Name three colours of the rainbow please", "output": "Red and so on."},
        {"instruction": "Name three towns on the river, please.", "output": "None."},
    ]
    ours = write(tmp_path / "ours.jsonl", rows)
    report = check_file(ours, tokenizer, context_length=1 << 20, against=[other])
    assert [example.split()[0] for example in report.leaked_documents.examples] == [f"{ours}:{n}" for n in (1, 2, 3)]
    assert report.leaked_rows.examples == [f"{ours}:1 and {other}:1"]
    assert report.leaked_questions.examples == [f"{ours}:5 and {other}:2"]


def test_leaks_between_texts(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    train = write(tmp_path / "a.jsonl", [{"text": prose(1)}, {"text": prose(2)}, {"text": prose(2)}])
    other = write(tmp_path / "b.jsonl", [{"text": prose(1)}])
    report = check_file(train, tokenizer, context_length=10, against=[other])
    assert (report.leaked_documents.count, report.leaked_rows.count, report.repeated.count) == (1, 0, 1)
    assert report.num_texts == 3 and report.cut.count == 0


def test_shares_of_runs() -> None:
    index = RunIndex()
    words = [f"w{number}" for number in range(4000)]
    index.add("book", " ".join(words))
    index.add("note", "a short note of few words")
    assert index.find(" ".join(words[1000:3000])) == ("book", 1.0)
    half = index.find(" ".join(words[:1000] + [f"x{number}" for number in range(1000)]))
    assert half is not None and half[0] == "book" and 0.4 < half[1] < 0.6
    assert index.find("A short note of few words!") == ("note", 1.0)
    assert index.find("another note of few words") is None and index.find("") is None


def test_measures_of_questions(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    lines = [f"On day {number} the ship saw {number} gulls near cape {number}, and sailed on." for number in range(100)]
    lines[90] = lines[15]
    document = "\n".join(lines)
    early, late, twice = lines[5], lines[95], lines[15]
    rows = [
        asked(document, "How many gulls did it see first?", "Five.") | {"provenance": {"quotes": [early, late]}},
        asked(document, "Where was it later?", "Near cape 15.")
        | {"provenance": {"quotes": [twice], "question_kind": "x"}},
        asked(document, "Who was there?", "Nobody knows.") | {"provenance": {"quotes": ["a passage of another book"]}},
        asked(document, "Did the ship see gulls?", "The ship saw 44 gulls near cape 44, I think."),
        asked(document, "Was it near the cape?", "near the cape"),
        {"instruction": "A question without a document", "output": "It has none."},
    ]
    path = write(tmp_path / "a.jsonl", rows)
    report = check_file(path, tokenizer, context_length=100_000)
    quality = report.quality
    assert (quality.num_questions, quality.num_proven, len(quality.documents)) == (5, 3, 1)
    assert (quality.num_found, quality.num_unique) == (4, 3)  # the fourth row's answer repeats its document
    assert [quality.depths[part] for part in (0, 1, 4, 9)] == [1, 1, 1, 1]
    assert quality.kinds == {"how": 1, "x": 1, "who": 1, "other": 2}
    assert quality.not_found.examples == [f"{path}:3"] and quality.given_away.examples == [f"{path}:5"]
    words = [words for words, _ in report.describe()]
    assert words == ["quote passages that are not in their document", "have all words of the answer in the question"]


def test_a_page_to_look_at(tmp_path: Path) -> None:
    row = asked(prose(1), "Why <b>so</b>?", "Because.") | {"provenance": {"quotes": [prose(1).splitlines()[3]]}}
    source, page = write(tmp_path / "a.jsonl", [row]), tmp_path / "check.html"
    arguments = ["corpus", "check", source, "--tokenizer", "tiny", "--context", "99999", "--page", str(page)]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert "evidence: 100% of them have some" in done.output and "page written to" in done.output
    html = page.read_text(encoding="utf-8")
    assert "Why &lt;b&gt;so&lt;/b&gt;?" in html and "data:image/png;base64," in html
    assert prose(1).splitlines()[3] in html and "http" not in html.partition("</style>")[2]


def test_whatever_training_reads(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    from datasets import Dataset, DatasetDict

    rows = Dataset.from_list([asked(prose(1), "Why?"), asked(prose(2), "Who?")])
    rows.save_to_disk(tmp_path / "saved")
    DatasetDict(train=rows).save_to_disk(tmp_path / "splits")
    (tmp_path / "hub" / "data").mkdir(parents=True)  # a data set of the hub, downloaded as it is
    rows.to_parquet(tmp_path / "hub" / "data" / "train-00000-of-00001.parquet")
    (tmp_path / "hub" / "README.md").write_text("---\nlicense: mit\n---\n# A data set")
    for name in ("saved", "splits", "hub"):
        trained_on = list(read_conversations(str(tmp_path / name)))
        assert check_file(str(tmp_path / name), tokenizer).num_rows == len(trained_on) == 2
    folder = tmp_path / "texts"
    folder.mkdir()
    for name in "ab":
        (folder / f"{name}.txt").write_text(prose(3))
    assert check_file(str(folder), tokenizer).kinds == {"text": 2}


def test_the_commands(tmp_path: Path) -> None:
    from PIL import Image

    path = write(tmp_path / "a.jsonl", [asked(prose(1), "Why?"), {"instruction": "Who?", "output": "One."}])
    figure = tmp_path / "lengths.png"
    done = CliRunner().invoke(app, ["corpus", "stats", str(path), "--tokenizer", "tiny", "--figure", str(figure)])
    assert done.exit_code == 0, done.output
    assert "document and question" in done.output
    with Image.open(figure) as image:
        assert image.width > 800
        assert len(image.convert("RGB").getcolors(maxcolors=1 << 20) or []) > 20
    vector = tmp_path / "lengths.svg"
    stats = ["corpus", "stats", str(path), "--tokenizer", "tiny", "--figure"]
    assert CliRunner().invoke(app, [*stats, str(vector)]).exit_code == 0
    assert "<svg" in vector.read_text(encoding="utf-8") and not list(tmp_path.glob(".*"))
    with pytest.raises(ConfigError, match=r"must end in \.png, \.svg or \.pdf, found lengths\.txt"):
        unread = ["corpus", "stats", "nowhere.json", "--tokenizer", "tiny", "--figure", str(tmp_path / "lengths.txt")]
        CliRunner().invoke(app, unread, catch_exceptions=False)
    as_json = CliRunner().invoke(app, ["corpus", "stats", str(path), "--tokenizer", "tiny", "--json"])
    assert json.loads(as_json.stdout)["tokens"]["answer"]["p100"] > 1
    good = CliRunner().invoke(app, ["corpus", "check", str(path), "--tokenizer", "tiny", "--context", "99999"])
    assert good.exit_code == 0 and "2 rows checked, nothing found" in good.output
    arguments = ["corpus", "check", str(path), "--tokenizer", "tiny", "--context", "400", "--against", str(path)]
    bad = CliRunner().invoke(app, arguments)
    assert bad.exit_code == 1
    assert "1 rows ask the same question about the same document as another file" in bad.output
    assert "rows exceed 400 tokens: " in bad.output
    assert json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)["cut"]["count"] == 1


def test_a_check_says_how_answers_are_found_and_shows_the_first(tmp_path: Path) -> None:
    rows = [{"messages": [{"role": ("user", "assistant")[n % 2], "content": f"turn {n} ends."} for n in range(12)]}]
    source = write(tmp_path / "a.jsonl", rows)
    result = CliRunner().invoke(app, ["corpus", "check", str(source), "--tokenizer", "tiny", "--context", "512"])
    assert result.exit_code == 0, result.output
    assert "answers were found by a search" in result.output and "1 rows checked, nothing found" in result.output
    assert "⟦turn 11 ends.</s>⟧" in result.output.replace("\n", "")
    as_json = CliRunner().invoke(
        app, ["corpus", "check", str(source), "--tokenizer", "tiny", "--context", "512", "--json"]
    )
    assert json.loads(as_json.stdout)["num_searched"] == 1
