"""The script that trains the tiny model on questions made by rules runs, and its table says what its rows say."""

import importlib
import json
import random
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXT = """The Rat sat by the river with Mole, and nobody came. "I like the quiet of this place," said the Otter. At
noon they ate bread under the old willow tree. Then they slept, both of them.

Nobody saw that the Otter had gone; Toad went long before that hour struck, alone.
\\section{On the sea} \\label{sec-sea} It is known
from Lemma \\ref{lemma-tide} that water rises. """


@pytest.fixture
def rules(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("_rule_questions")


@pytest.fixture
def script(rules: ModuleType) -> ModuleType:
    return importlib.import_module("document_questions")


@pytest.mark.parametrize(
    ("form", "question", "answer"),
    [
        ("order", 'What comes after "under the old willow tree."?', "under the old willow tree. Then they slept,"),
        ("order", 'What comes after "with Mole, and nobody came."?', None),  # a quotation does
        ("name", "What is said of Toad?", "Toad went long before that hour struck,"),
        (
            "speaker",
            'Who says "I like the quiet of this place,"?',
            'I like the quiet of this place," said the Otter.',
        ),
        ("reference", 'Which label has "On the sea"?', "On the sea} \\label{sec-sea}"),
        (
            "reference",
            'Which label has "It is known from Lemma"?',
            "It is known from Lemma \\ref{lemma-tide}",
        ),
        ("count", 'How often does "Otter" occur?', "Otter: 2"),
    ],
)
def test_a_form(rules: ModuleType, form: str, question: str, answer: str | None) -> None:
    text = " ".join(TEXT.split())
    names = frozenset({"Rat", "Mole", "Otter", "Toad"})
    pairs = {pair.question: pair for pair in rules.FORMS[form](text, names, random.Random(0))}
    if answer is None:
        assert question not in pairs
    else:
        assert pairs[question].answer == answer and pairs[question].form == form
    assert all(pair.quote in text for pair in pairs.values())


def test_a_quotation_begins_and_ends_where_the_clause_does(rules: ModuleType) -> None:
    text = " ".join(TEXT.split())
    pairs = list(rules.FORMS["quotation"](text, frozenset(), random.Random(0)))
    assert "noon they ate bread under the old willow tree." in " | ".join(pair.answer for pair in pairs)
    for pair in pairs:
        start = pair.question.split('"')[1]
        assert pair.answer.startswith(f"{start} ") and text.count(start) == 1


def test_excerpts_hold_the_whole_text(rules: ModuleType) -> None:
    text = "One sentence is here. " * 40 + "\n\n" + "Another one stands there. " * 30
    parts = list(rules.excerpts(text, 200))
    assert "".join("".join(parts).split()) == "".join(text.split())
    assert all(len(part) <= 200 for part in parts)


def test_names_are_never_written_small(rules: ModuleType) -> None:
    text = "So he saw Toad, and then Toad saw Mr Badger and Mr Badger. The Wood, the Wood; a wood."
    assert rules.names_of(text) == {"Toad", "Badger"}


def test_the_table_says_what_the_rows_say(script: ModuleType) -> None:
    header, rows = script.read_results()
    page = script.PAGE.read_text(encoding="utf-8")
    assert page == script.with_table(page, script.table(header, rows))
    assert header["pairs"] >= 200 and {row["model"] for row in rows} == set(script.MODELS)
    assert all(row["distance"] > script.OLD_CONTEXT for row in rows)
    for row in rows:
        assert row["right"] == (row["answer"].split() == row["expected"].split())
    shares = {
        name: sum(row["right"] for row in rows if row["model"] == name) / (len(rows) / len(script.MODELS))
        for name in script.MODELS
    }
    assert shares["trained"] >= 0.5 and shares["base"] <= 0.1
    assert page != script.with_table(page, script.table(header, [{**row, "right": True} for row in rows]))


def test_the_whole_way(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two steps on made-up texts; pairs about one excerpt become one conversation."""
    for name in ("seen", "unseen"):
        rng = random.Random(name)
        (tmp_path / name).mkdir()
        names = ["Anna", "Bert", "Carl", "Dora", "Emil"]
        words = "value list other number string first name file line text object return type module class set".split()
        for number in range(4):
            sentences = [
                f"{' '.join(rng.choices(words, k=rng.randint(6, 10)))} by {rng.choice(names)} {rng.choice(words)} it so"
                for _ in range(80)
            ]
            text = ". ".join(sentence[0].upper() + sentence[1:] for sentence in sentences) + "."
            (tmp_path / name / f"{number}.txt").write_text(text)
    monkeypatch.setattr(
        "sys.argv",
        [
            "x",
            "--dry",
            "--train",
            str(tmp_path / "seen"),
            "--held-out",
            str(tmp_path / "unseen"),
            "--out",
            str(tmp_path),
        ],
    )
    script.main()
    said = capsys.readouterr().out
    assert "trained: 0 of" in said and "base: 0 of" in said
    pairs = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    conversations = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    assert sum(len(row["messages"]) for row in conversations) == 2 * len(pairs) > 2 * len(conversations)
    assert (tmp_path / "run" / "model").is_dir()
