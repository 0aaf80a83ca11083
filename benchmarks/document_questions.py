"""Do rule-based questions teach the tiny model to answer about documents longer than its base context?

    python benchmarks/document_questions.py --train BOOKS PAPERS --held-out OTHER_BOOKS OTHER_PAPERS
    python benchmarks/document_questions.py … --dry   # a few steps and questions, to check that it runs

Pairs are generated from texts by rules (`_rule_questions.py`; `.tex` files are papers, others books), checked like
`longlora corpus check`, and trained on like `longlora train`: the tiny model, from 256 to 1,024 tokens. The result then
answers questions about excerpts of unseen texts, of about 900 tokens each, whose evidence is farther back than the base
context. An answer is right if it equals the expected one, word for word. The same questions are asked of the base
itself, and of the base with only the new positions. Every answer becomes a row of `results/document-questions.jsonl`,
the source of the table in `docs/longqa.md`.
"""

import argparse
import json
import random
import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import zip_longest
from pathlib import Path
from typing import Any

import _report
import torch
from _rule_questions import FORMS, Pair, excerpts, names_of
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from longlora.config import Recipe, parse_recipe
from longlora.corpus.checking import check_file
from longlora.corpus.quality import Quality
from longlora.corpus.question_rows import Row as CheckedRow
from longlora.corpus.question_rows import write_rows
from longlora.data.sources import read_documents
from longlora.evaluation.questions import Question
from longlora.evaluation.reader import read_answer
from longlora.models.chat_template import ensure_chat_template
from longlora.models.load import (
    extended_config,
    load_config,
    load_for_inference,
    load_tokenizer,
    load_weights,
    model_source,
)
from longlora.support.progress import shown
from longlora.tiny import TINY_MODEL
from longlora.training.run import train

CONTEXT_LENGTH = 1024
OLD_CONTEXT = 256
SEED = 0
SHORT, LONG = 430, 1900  # characters of an excerpt: about 180 tokens of prose, within the base context, and about 850
PAPER_SCALE = 0.8  # formulas have more tokens
SHORTEST = 400  # characters; anything shorter is not a document to `corpus check`
LONG_SHARE = 0.4  # of the training excerpts
SHORT_QUESTIONS, LONG_QUESTIONS = 6, 2  # about one excerpt
RARE = ("speaker", "reference")  # forms that few excerpts allow
SPARE_TOKENS = 8  # by which an answer may exceed the right one

ROWS = _report.RESULTS / "document-questions.jsonl"
PAGE = _report.REPOSITORY / "docs" / "longqa.md"
MODELS = ("base", "positions only", "trained")
Row = dict[str, Any]


def make_pairs(folders: Sequence[Path], num_excerpts: int, characters: int, each: int, rng: random.Random) -> list[Row]:
    """Make pairs in LongAlpaca's format, `each` or half as many per excerpt, with all forms as frequent as possible."""
    pools: dict[str, list[tuple[Path, str, str, frozenset[str]]]] = {form: [] for form in ("", *RARE)}
    for path, text, names in _texts(folders):
        size = max(SHORT, round(PAPER_SCALE * characters)) if path.suffix == ".tex" else characters
        for number, excerpt in enumerate(excerpts(text, size)):
            if SHORTEST <= len(excerpt) <= 1.05 * characters:
                rare = next((form for form in RARE if any(FORMS[form](excerpt, names, rng))), "")
                pools[rare].append((path, f"{path.name}, excerpt {number} of {characters}", excerpt, names))
    for pool in pools.values():
        rng.shuffle(pool)
    counts, taken = Counter[str](), 0
    rows: list[Row] = []
    # One of each in turn.
    for path, name, excerpt, names in (item for both in zip_longest(*pools.values()) for item in both if item):
        open_forms = [form for form in FORMS if counts[form] < num_excerpts * each / len(FORMS)]
        found = [pair for form in open_forms for pair in FORMS[form](excerpt, names, rng) if _is_proven(excerpt, pair)]
        chosen = _chosen(found, each, counts, rng)
        if len(chosen) < max(1, each // 2):
            continue
        counts.update(pair.form for pair in chosen)
        rows += [_row(path, name, excerpt, pair) for pair in chosen]
        taken += 1
        if taken == num_excerpts:
            break
    return rows


def _texts(folders: Sequence[Path]) -> Iterator[tuple[Path, str, frozenset[str]]]:
    for name, text in read_documents([str(folder) for folder in folders]):
        yield Path(name), text, names_of(text)


def _chosen(found: list[Pair], each: int, counts: Counter[str], rng: random.Random) -> list[Pair]:
    """Choose pairs about one excerpt, preferring the forms that are rare so far."""
    rng.shuffle(found)
    taken = Counter[str]()
    chosen = []
    while found and len(chosen) < each:
        pair = min(found, key=lambda pair: (taken[pair.form], counts[pair.form]))
        found.remove(pair)
        taken[pair.form] += 1
        chosen.append(pair)
    return chosen


def _is_proven(excerpt: str, pair: Pair) -> bool:
    """Return whether a pair will pass `corpus check`."""
    quality = Quality()
    quality.add(
        CheckedRow(document=excerpt, question=pair.question, answer=pair.answer, provenance={"quotes": [pair.quote]})
    )
    return quality.num_proven == quality.num_unique == 1 and not quality.given_away.count


def _row(path: Path, name: str, excerpt: str, pair: Pair) -> Row:
    kind = "paper" if path.suffix == ".tex" else "book"
    provenance = {"source": name, "document_kind": kind, "question_kind": pair.form}
    return {
        "instruction": f"Read the {kind} below. A question about it follows.\n{excerpt}\n{pair.question}",
        "output": pair.answer,
        "provenance": {**provenance, "quotes": [pair.quote]},
    }


def conversations(rows: Sequence[Row]) -> Iterator[Row]:
    """Join the pairs about one excerpt into a conversation: the excerpt once, then all questions."""
    together: dict[str, list[Row]] = {}
    for row in rows:
        together.setdefault(row["provenance"]["source"], []).append(row)
    for same in together.values():
        messages = []
        for number, row in enumerate(same):
            question = row["instruction"] if number == 0 else row["instruction"].splitlines()[-1]
            messages += [{"role": "user", "content": question}, {"role": "assistant", "content": row["output"]}]
        yield {"messages": messages}


def beyond_old_context(rows: Sequence[Row], each: int, tokenizer: PreTrainedTokenizerBase) -> list[Row]:
    """Keep `each` rows of each form whose evidence begins farther from the prompt's end than the base context."""
    kept, counts = [], Counter[str]()
    for row in rows:
        prompt, form = row["instruction"], row["provenance"]["question_kind"]
        if counts[form] == each:
            continue
        behind = tokenizer(prompt[prompt.index(row["provenance"]["quotes"][0]) :], add_special_tokens=False)
        distance = len(behind["input_ids"])
        num_tokens = len(_prompt(row, tokenizer)) + len(tokenizer(row["output"])["input_ids"]) + SPARE_TOKENS
        if distance > OLD_CONTEXT and num_tokens <= CONTEXT_LENGTH:
            counts[form] += 1
            kept.append({**row, "provenance": {**row["provenance"], "distance": distance}})
    return kept


def _prompt(row: Row, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    asked = [{"role": "user", "content": row["instruction"]}]
    return tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)  # type: ignore[return-value]


def recipe_of(source: Path, output: Path, steps: int) -> Recipe:
    """Return the demo's recommended recipe, for conversations, with full tuning, and fewer steps under S²-Attn."""
    return parse_recipe(
        {
            "model_name_or_path": TINY_MODEL,
            "context_length": CONTEXT_LENGTH,
            "output_dir": str(output / "run"),
            "data": {"kind": "sft", "source": str(source), "cache_dir": str(output / "cache")},
            # Groups separate questions from their evidence: here, S²-Attn teaches only the form of answers.
            "attention": {"pattern": "s2", "dense_finish": DENSE_FINISH},
            "rope": {"rope_type": "yarn"},
            "tuning": "full",
            "max_steps": steps,
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 1,
            "learning_rate": 1e-3,
            "lr_scheduler_type": "linear",
            "warmup_steps": max(1, steps // 20),
            "save_steps": steps,
            "gradient_checkpointing": False,
            "dtype": "float32",
        }
    )


DENSE_FINISH = 0.95


def with_positions_alone(recipe: Recipe) -> PreTrainedModel:
    """Return the base with the recipe's positions, untrained."""
    name = model_source(TINY_MODEL)
    config = load_config(name)
    extended_config(config, recipe)
    return load_weights(name, config, dtype=torch.float32, attention="sdpa").eval()


def ask(name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row]) -> list[Row]:
    """Ask a model every question, greedily."""
    answers = []
    for row in shown(rows, f"Asking {name}", total=len(rows)):
        prompt, expected = _prompt(row, tokenizer), row["output"]
        room = len(tokenizer(expected)["input_ids"]) + SPARE_TOKENS
        question = Question(
            input_ids=prompt, expected=(expected,), max_new_tokens=room, distance=row["provenance"]["distance"]
        )
        answer, _ = read_answer(model, tokenizer, question)
        provenance = {key: value for key, value in row["provenance"].items() if key != "quotes"}
        said = {"question": row["instruction"].splitlines()[-1], "expected": expected, "answer": answer.strip()}
        right = " ".join(answer.split()) == " ".join(expected.split())
        answers.append({"model": name, **provenance, "tokens": len(prompt), **said, "right": right})
    return answers


def table(header: Row, rows: Sequence[Row]) -> str:
    """Format the share of right answers by form and model, with the settings of the run."""
    forms = [form for form in FORMS if any(row["question_kind"] == form for row in rows)]

    def cells(label: str, chosen: Sequence[Row]) -> list[str]:
        by_model = [[row["right"] for row in chosen if row["model"] == name] for name in MODELS]
        examples = {form: row for row in reversed(chosen) if (form := row["question_kind"])}
        example = f"{examples[label]['question']} *{examples[label]['expected']}*" if label in examples else ""
        shares = [f"{sum(right)} of {len(right)}" for right in by_model]
        return [label, example.replace("|", "\\|").replace("\\label", "\\\\label"), *shares]

    lines = [cells(form, [row for row in rows if row["question_kind"] == form]) for form in forms]
    total = [
        f"**{sum(r['right'] for r in rows if r['model'] == name) / (len(rows) / len(MODELS)):.0%}**" for name in MODELS
    ]
    far = [row["distance"] for row in rows if row["model"] == "trained"]
    tokens = [row["tokens"] for row in rows if row["model"] == "trained"]
    origin = header["origin"]
    return "\n".join(
        [
            "| form | a question, and its answer | base | positions only | trained |",
            "| --- | --- | ---: | ---: | ---: |",
            *(f"| {' | '.join(line)} |" for line in [*lines, ["all", "", *total]]),
            "",
            f"{header['pairs']:,} pairs about {header['excerpts']:,} excerpts trained for {header['steps']} steps, "
            f"{header['seconds']:.0f} s. Prompts have {min(tokens):,} to {max(tokens):,} tokens; evidence begins "
            f"{min(far)} to {max(far)} tokens before their end. {origin['device']}, {origin['threads']} thread, "
            f"{origin['versions']}, {origin['date']}; load {origin['load']}.",
        ]
    )


def with_table(page: str, made: str) -> str:
    """Insert the table between its markers in a page."""
    marks = r"(<!-- document questions -->\n).*?(\n<!-- end -->)"
    return re.sub(marks, lambda found: f"{found[1]}\n{made}\n{found[2]}", page, flags=re.DOTALL)


def read_results(path: Path = ROWS) -> tuple[Row, list[Row]]:
    """Read the settings of the run, and the answers."""
    header, *rows = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
    return header, rows


def check(path: Path, tokenizer: PreTrainedTokenizerBase, against: Sequence[str] = ()) -> None:
    """Check a file like `longlora corpus check`, and print its findings.

    Raises:
        SystemExit: there are findings.
    """
    report = check_file(str(path), tokenizer, context_length=CONTEXT_LENGTH, against=against)
    print(path.name, *report.quality.describe(), sep="\n  ", flush=True)
    findings = [f"{finding.count} rows {words}: {finding.examples[:3]}" for words, finding in report.describe()]
    if findings:
        raise SystemExit("\n".join(findings))


def main() -> None:
    """Make pairs, train, ask, and write the rows and the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, nargs="+", required=True, help="Folders of texts to make pairs from.")
    parser.add_argument("--held-out", type=Path, nargs="+", required=True, help="Folders of texts to ask about.")
    parser.add_argument(
        "--out", type=Path, default=Path("build/document-questions"), help="Folder for pairs and model."
    )
    parser.add_argument("--excerpts", type=int, default=1600, help="Excerpts to train on.")
    parser.add_argument("--steps", type=int, default=700, help="Steps of about 2,000 tokens.")
    parser.add_argument("--questions", type=int, default=15, help="Held-out questions of each form.")
    parser.add_argument("--dry", action="store_true", help="A few of each, and no results.")
    arguments = parser.parse_args()
    if arguments.dry:
        arguments.excerpts, arguments.steps, arguments.questions = 12, 2, 1
    torch.set_num_threads(1)
    origin = _report.provenance(torch.device("cpu"), ("torch", "transformers", "peft"))
    header, rows = run(arguments)
    if not arguments.dry:
        header["origin"] = asdict(_report.finished(origin))
        ROWS.write_text(
            "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in [header, *rows]), encoding="utf-8"
        )
        PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8"), table(header, rows)), encoding="utf-8")
    for name in MODELS:
        right = [row["right"] for row in rows if row["model"] == name]
        print(f"{name}: {sum(right)} of {len(right)}")


def run(arguments: argparse.Namespace) -> tuple[Row, list[Row]]:
    """Run everything; return the settings of the run and all answers."""
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = load_tokenizer(model_source(TINY_MODEL))
    ensure_chat_template(tokenizer)
    rng = random.Random(SEED)
    num_long = round(LONG_SHARE * arguments.excerpts)
    pairs = make_pairs(arguments.train, arguments.excerpts - num_long, SHORT, SHORT_QUESTIONS, rng)
    pairs += make_pairs(arguments.train, num_long, LONG, LONG_QUESTIONS, rng)
    held_out = make_pairs(arguments.held_out, 4 * arguments.questions * len(FORMS), LONG, 1, rng)
    held_out = beyond_old_context(held_out, arguments.questions, tokenizer)
    write_rows(out / "pairs.jsonl", pairs)
    write_rows(out / "held-out.jsonl", held_out)
    check(out / "pairs.jsonl", tokenizer)
    check(out / "held-out.jsonl", tokenizer, [str(out / "pairs.jsonl")])
    num_excerpts = write_rows(out / "train.jsonl", conversations(pairs))

    recipe = recipe_of(out / "train.jsonl", out, arguments.steps)
    started = time.monotonic()
    trained = train(recipe)
    header: Row = {"pairs": len(pairs), "excerpts": num_excerpts, "steps": arguments.steps}
    header["seconds"] = time.monotonic() - started
    models = {
        "base": load_for_inference(TINY_MODEL)[0],
        "positions only": with_positions_alone(recipe),
        "trained": load_for_inference(trained)[0],
    }
    answers: list[Row] = []
    for name in reversed(MODELS):
        answers += ask(name, models[name], tokenizer, held_out)
        write_rows(out / "answers.jsonl", answers)
        print(name, dict(Counter(row["question_kind"] for row in answers if row["right"])), flush=True)
    return header, answers


if __name__ == "__main__":
    main()
