"""Prompts: those of the package are complete, and what is wrong with a user's own is said."""

from pathlib import Path

import pytest

from longlora.corpus.qa.prompt_files import SHIPPED, load_prompts, prompts_digest
from longlora.errors import ConfigError


def test_the_package_asks_what_the_paper_asked() -> None:
    prompts = load_prompts()
    books, papers = ({template.name for template in prompts[kind].questions} for kind in ("book", "paper"))
    assert {"summary", "relations", "characters", "details"} <= books
    assert {"contributions", "methods", "results", "limits", "comparison"} <= papers
    assert {one.name: one.over for one in prompts["book"].questions}["details"] == "section"
    for one in (*prompts["book"], *prompts["paper"]):
        assert one.name == "record" or len(one.text) > 200
    for template in prompts["book"].questions:
        assert "{{reply_form}}" not in template.text
        assert '"quotes"' in template.text
        # What is the same for all questions comes first, so that a server can keep it from one call to the next.
        assert template.text.index("{{material}}") < 60


def test_values_with_braces_stay_as_they_are() -> None:
    filled = load_prompts()["book"].record.fill(document="a {{question}} \\1 {x}", question="Why {{document}}?")
    assert "a {{question}} \\1 {x}" in filled
    assert filled.rstrip().endswith("Why {{document}}?")


def write(folder: Path, name: str, text: str) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text, encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("books/who.txt", "{{ material }}", r"books/who.txt must contain {{count}}, found {{material}}"),
        ("books/who.txt", "Ask.", r"must contain {{count}}, {{material}}, found no placeholder"),
        ("papers/who.txt", "{{material}} {{count}} {{titel}}", r"contains unknown {{titel}}; known there: "),
        ("books/notes.txt", "{{material}} {{count}}", r"contains unknown {{count}}; known there"),
        ("books/record.txt", "{{document}}", r"must contain {{question}}"),
        ("shared/judge.txt", "{{material}}", r"must contain {{pairs}}"),
        (
            "books/who.txt",
            "over: parts\n---\n{{material}} {{count}}",
            "must be `whole` or `section`, found 'parts'",
        ),
    ],
)
def test_what_is_wrong_with_a_prompt(tmp_path: Path, name: str, text: str, message: str) -> None:
    write(tmp_path, name, text)
    with pytest.raises(ConfigError) as raised:
        load_prompts(tmp_path)
    assert message in str(raised.value)


def test_a_prompt_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "books").mkdir()
    (tmp_path / "books" / "who.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"the prompt .*who.txt cannot be read"):
        load_prompts(tmp_path)


def test_ones_own_kinds_replace_the_packages(tmp_path: Path) -> None:
    write(tmp_path, "books/where.txt", "over: section\n---\n{{material}} {{count}}")
    prompts, shipped = load_prompts(tmp_path), load_prompts()
    assert [(one.name, one.over) for one in prompts["book"].questions] == [("where", "section")]
    assert prompts["book"].notes == shipped["book"].notes
    assert prompts["paper"] == shipped["paper"]
    assert prompts_digest(prompts) != prompts_digest(shipped)


def test_the_form_of_replies_counts_as_a_part_of_each_prompt(tmp_path: Path) -> None:
    write(tmp_path, "shared/reply_form.txt", "Reply with JSON.")
    mine, shipped = load_prompts(tmp_path)["book"].questions[0], load_prompts()["book"].questions[0]
    assert mine.name == shipped.name
    assert mine.sha256 != shipped.sha256


def test_every_prompt_of_the_package_is_loaded() -> None:
    loaded = {(kind, one.name) for kind, prompts in load_prompts().items() for one in prompts}
    files = {path.relative_to(SHIPPED).as_posix() for path in SHIPPED.rglob("*.txt")}
    assert len(files) == len(loaded) - 2 + 1  # judge and condense are in both; reply_form is a part of others
