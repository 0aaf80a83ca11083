"""Long and short question sets in one file, in a ratio."""

import json
from collections import Counter
from pathlib import Path

import pytest
from typer.testing import CliRunner

from longlora.cli.main import app
from longlora.corpus.mixing import mix, parse_ratio
from longlora.data.sources import read_conversations
from longlora.errors import ConfigError, DataError


@pytest.fixture
def sources(tmp_path: Path) -> tuple[str, str]:
    """Twenty-one long rows in Alpaca's form, ten short ones as messages."""
    long = [{"instruction": f"long {index}", "output": "yes"} for index in range(21)]
    (tmp_path / "long.json").write_text(json.dumps(long))
    short = [{"messages": [{"role": "user", "content": f"short {i}"}, {"role": "assistant", "content": "no"}]} for i in range(10)]  # fmt: skip  # noqa: E501
    (tmp_path / "short.jsonl").write_text("\n".join(map(json.dumps, short)))
    return str(tmp_path / "long.json"), str(tmp_path / "short.jsonl")


def test_as_many_rows_as_there_are(sources: tuple[str, str], tmp_path: Path) -> None:
    out = tmp_path / "mixed.jsonl"
    parts = mix(*sources, out, ratio=(9, 3), seed=1)
    assert {name: (part.num_rows, part.num_used) for name, part in parts.items()} == {
        "long": (21, 18),
        "short": (10, 6),
    }
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) == 24
    questions = [row["messages"][0]["content"] for row in rows]
    assert Counter(question.split()[0] for question in questions) == {"long": 18, "short": 6}
    assert len(set(questions)) == 24  # none twice
    assert sorted(questions, key=lambda question: question.split()[0]) != questions  # mixed, not one after the other
    assert rows[0]["source"].rpartition(":")[0] in sources
    # What was written is read again by training.
    assert [conversation.messages[0]["content"] for _, conversation in read_conversations(str(out))] == questions


def test_the_seed_decides(sources: tuple[str, str], tmp_path: Path) -> None:
    written = []
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        mix(*sources, tmp_path / f"{name}.jsonl", ratio=(2, 1), seed=seed)
        written.append((tmp_path / f"{name}.jsonl").read_bytes())
    assert written[0] == written[1] != written[2]


def test_too_few_rows(sources: tuple[str, str], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a ratio of 1:11 needs that many rows, found 21 and 10; use a smaller ratio"):
        mix(*sources, tmp_path / "x.jsonl", ratio=(1, 11))


def test_writing_over_a_source(sources: tuple[str, str]) -> None:
    before = Path(sources[0]).read_bytes()
    with pytest.raises(DataError, match="is one of the sources; write to another file"):
        mix(*sources, Path(sources[0]), ratio=(9, 3))
    assert Path(sources[0]).read_bytes() == before


@pytest.mark.parametrize("text", ["9", "9:", "0:3", "a:b", "9:-3", "9:3:1"])
def test_ratios_that_are_none(text: str) -> None:
    with pytest.raises(ConfigError, match="--ratio must be two whole numbers above 0"):
        parse_ratio(text)


def test_the_command(sources: tuple[str, str], tmp_path: Path) -> None:
    arguments = ["corpus", "mix", *sources, "--ratio", "2:1", "--out", str(tmp_path / "mixed.json")]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert "20 of 21 rows" in done.output and "10 of 10 rows" in done.output and "30 rows written" in done.output
    assert len(json.loads((tmp_path / "mixed.json").read_text())) == 30
    report = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)
    assert report["long"]["num_used"] == 20
