"""Models whose ability is known get the score that they deserve, and an interrupted evaluation resumes."""

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
from tests.evaluation.scripted import EVERYTHING, ScriptedModel, scripted
from torch import Tensor
from transformers import PreTrainedTokenizerFast
from transformers.modeling_outputs import CausalLMOutputWithPast

from longlora.distributed import Processes
from longlora.errors import CheckpointError, ConfigError
from longlora.evaluation.drawing import result_table, write_result
from longlora.evaluation.questions import RetrievalTest
from longlora.evaluation.results import Retrieval
from longlora.evaluation.retrieval import LOG_FILE, run_retrieval
from longlora.evaluation.retrieval_tests import association, counting, needle, passkey, recall, topics, tracking

TESTS = {
    "passkey": passkey(),
    "needle": needle(),
    "needles": needle(num_needles=3),
    "recall": recall(num_pairs=5),
    "topics": topics(),
    "association": association(),
    "tracking": tracking(),
    "counting": counting(),
}
LENGTHS = [700, 1000, 1500]


def evaluate(
    model: ScriptedModel, test: RetrievalTest, output: Path, *, lengths: Sequence[int] = LENGTHS, **changes: Any
) -> Retrieval:
    # Six questions at a length, all of them right, are surely above 60 % and no more.
    settings: dict[str, Any] = {"depths": [0, 0.5, 1], "num_trials": 2, "bar": 0.6, "show_progress": False}
    settings |= {"command": "a test"}
    settings |= {} if test.has_depths else {"num_trials": 6}
    return run_retrieval(model, model.tokenizer, test, lengths=lengths, output=output, **settings | changes)


def shares(result: Retrieval, measure: str = "generated") -> dict[int, float]:
    return {row.length: row.shares[measure].share for row in result.lengths}


@pytest.fixture(params=["plain", "chat"])
def any_tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    return request.getfixturevalue("byte_level" if request.param == "plain" else "chat_tokenizer")


@pytest.mark.parametrize("name", TESTS)
def test_a_model_that_recalls_everything(any_tokenizer: PreTrainedTokenizerFast, name: str, tmp_path: Path) -> None:
    result = evaluate(scripted(any_tokenizer, visible=EVERYTHING), TESTS[name], tmp_path)
    for measure in TESTS[name].measures:
        assert shares(result, measure) == dict.fromkeys(LENGTHS, 1.0)
        assert result.effective_length[measure]["bar"] == 1500
    assert "to 1,500 tokens, the longest tested, reliably at ≥ 60 %; there: 100% of 6 (" in result.verdict


@pytest.mark.parametrize("name", TESTS)
def test_a_blind_model_is_at_chance(byte_level: PreTrainedTokenizerFast, name: str, tmp_path: Path) -> None:
    result = evaluate(scripted(byte_level, visible=0), TESTS[name], tmp_path)
    for measure, chance in TESTS[name].measures.items():
        assert shares(result, measure) == pytest.approx(dict.fromkeys(LENGTHS, chance))
        assert set(result.effective_length[measure].values()) == ({None} if not chance else {None, 700})
    assert result.verdict.startswith("cannot do the task at 700 tokens, the shortest tested: 0% of 6")


@pytest.mark.parametrize("name", TESTS)
def test_a_model_that_guesses_cannot_do_it(byte_level: PreTrainedTokenizerFast, name: str, tmp_path: Path) -> None:
    num_trials = 4 if TESTS[name].has_depths else 12
    model = scripted(byte_level, answers="guesses")
    result = evaluate(model, TESTS[name], tmp_path, lengths=[700], num_trials=num_trials, bar=0.8)
    assert result.reading.kind == "cannot" and result.reading.reached is None


@pytest.mark.parametrize("name", TESTS)
def test_a_model_that_matches_words_fails_where_none_match(
    byte_level: PreTrainedTokenizerFast, name: str, tmp_path: Path
) -> None:
    result = evaluate(scripted(byte_level, answers="matches"), TESTS[name], tmp_path, lengths=[700])
    if name == "association":
        assert result.reading.kind == "cannot" and result.is_zero
    else:
        assert result.reading.reached == 700


def test_too_few_questions_certify_nothing(byte_level: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    """All of 15 right is 79.6 % at the lower end: without the interval's lower end it would count as reading."""
    model, few = scripted(byte_level), {"depths": [0], "lengths": [700], "bar": 0.8}
    result = evaluate(model, TESTS["needle"], tmp_path, num_trials=15, **few)
    assert shares(result) == {700: 1.0} and result.reading.reached is None and result.reading.kind == "too few"
    assert "80 % takes 16 of 16 right" in result.verdict
    assert set(result.effective_length["generated"].values()) == {None, 700}  # NoLiMa's measures the rest by it
    assert evaluate(model, TESTS["needle"], tmp_path, num_trials=16, **few).reading.reached == 700


@pytest.mark.parametrize("visible", [800, 1499])
@pytest.mark.parametrize("name", TESTS)
def test_a_model_that_sees_its_last_tokens_reads_as_far_as_it_sees(
    byte_level: PreTrainedTokenizerFast, name: str, visible: int, tmp_path: Path
) -> None:
    lengths = [700, 1000, 2000]
    result = evaluate(scripted(byte_level, visible=visible), TESTS[name], tmp_path, lengths=lengths)
    reached = max(length for length in lengths if length <= visible)
    for measure, chance in TESTS[name].measures.items():
        assert result.effective_length[measure]["bar"] == reached
        for row in result.lengths:
            deep = list(row.by_depth.values())
            # Near the end it sees the fact at any length.
            assert deep[-1][measure].share == 1.0 or not TESTS[name].has_depths
            if row.length <= visible:
                assert row.shares[measure].share == 1.0
            else:
                # Who sees the end alone of what is counted is sure of something else.
                wrong = name == "counting" and deep[0][measure].share < chance
                assert wrong or deep[0][measure].share == pytest.approx(chance)
    trials = [json.loads(line) for line in (tmp_path / LOG_FILE).read_text(encoding="utf-8").splitlines()[1:]]
    for trial in trials:
        if abs(trial["distance"] - visible) > 60:  # the answer, and a fact that is half in sight
            assert trial["scores"]["generated"] == (trial["distance"] < visible)


class Interrupted(Exception):
    pass


class StopsAfter(ScriptedModel):
    """Answers so many prompts, then is interrupted as by Ctrl-C."""

    prompts_left = 10**6

    def forward(self, input_ids: Tensor, logits_to_keep: int = 0, **options: Any) -> CausalLMOutputWithPast:
        if input_ids.shape[1] > 20:
            if not self.prompts_left:
                raise Interrupted
            self.prompts_left -= 1
        return super().forward(input_ids, logits_to_keep=logits_to_keep, **options)


def stopping(tokenizer: PreTrainedTokenizerFast, prompts: int, *, visible: int = 900) -> StopsAfter:
    model = StopsAfter(scripted(tokenizer, visible=visible).config, tokenizer).eval()
    model.prompts_left = prompts
    return model


def without_times(path: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


@pytest.mark.parametrize("torn", [False, True])
def test_an_interrupted_evaluation_asks_only_what_is_missing(
    byte_level: PreTrainedTokenizerFast, tmp_path: Path, torn: bool
) -> None:
    test, lengths = TESTS["passkey"], [700, 1000]
    whole = evaluate(stopping(byte_level, 10**6), test, tmp_path / "whole", lengths=lengths)
    with pytest.raises(Interrupted):
        evaluate(stopping(byte_level, 7), test, tmp_path / "parts", lengths=lengths)
    log = tmp_path / "parts" / LOG_FILE
    assert len(without_times(log)) == 1 + 7
    if torn:
        log.write_bytes(log.read_bytes()[:-9])
    model = stopping(byte_level, 5 + torn)  # not one prompt more
    assert evaluate(model, test, tmp_path / "parts", lengths=lengths).lengths == whole.lengths
    assert model.prompts_left == 0
    assert without_times(log) == without_times(tmp_path / "whole" / LOG_FILE)


def test_a_larger_grid_keeps_what_it_has_and_a_smaller_one_counts_its_own(
    byte_level: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    def seeing_all(prompts: int) -> StopsAfter:
        return stopping(byte_level, prompts, visible=EVERYTHING)

    first = evaluate(seeing_all(6), TESTS["passkey"], tmp_path, lengths=[700])
    more = seeing_all(3 + 9)  # a third trial at each depth of 700, and three at each of 1000
    larger = evaluate(more, TESTS["passkey"], tmp_path, lengths=[700, 1000], num_trials=3)
    assert more.prompts_left == 0
    assert [row.shares["generated"].num_trials for row in larger.lengths] == [9, 9]
    assert evaluate(seeing_all(0), TESTS["passkey"], tmp_path, lengths=[700]).lengths == first.lengths


def test_processes_share_the_trials_and_all_get_the_result(byte_level: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    """Threads for processes: all that they have in common is the folder and a barrier."""
    test, lengths, barrier = TESTS["passkey"], [700, 1000], Barrier(3)
    whole = evaluate(stopping(byte_level, 12), test, tmp_path / "one", lengths=lengths)
    with pytest.raises(Interrupted):
        evaluate(stopping(byte_level, 2), test, tmp_path / "three", lengths=lengths)
    models = [stopping(byte_level, prompts) for prompts in (4, 3, 3)]

    def share(index: int) -> Retrieval:
        processes = Processes(index=index, count=3, device=None, wait=lambda: barrier.wait(60))
        return evaluate(models[index], test, tmp_path / "three", lengths=lengths, processes=processes)

    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(share, range(3)))
    assert [model.prompts_left for model in models] == [0, 0, 0]
    assert [result.lengths for result in results] == [whole.lengths] * 3
    assert without_times(tmp_path / "three" / LOG_FILE) == without_times(tmp_path / "one" / LOG_FILE)
    assert [path.name for path in (tmp_path / "three").iterdir()] == [LOG_FILE]


@pytest.mark.parametrize(
    ("test", "changes", "named"),
    [
        ("passkey", {"seed": 1}, "seed 0 there and 1 now"),
        ("passkey", {"model_name": "other"}, "model '' there and 'other' now"),
        ("needle", {}, "test 'passkey' there and 'needle' now"),
        ("weights", {}, "weights '"),
        ("tokenizer", {}, "tokenizer '"),
    ],
)
def test_a_folder_of_another_evaluation_is_refused(
    byte_level: PreTrainedTokenizerFast,
    chat_tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    test: str,
    changes: dict[str, Any],
    named: str,
) -> None:
    evaluate(scripted(byte_level), TESTS["passkey"], tmp_path, lengths=[700])
    model = scripted(chat_tokenizer if test == "tokenizer" else byte_level)
    if test == "weights":
        model.scale.data += 0.5
    with pytest.raises(ConfigError, match=f"was begun with other settings .*{named}"):
        evaluate(model, TESTS.get(test, TESTS["passkey"]), tmp_path, lengths=[700], **changes)


class BreaksAt(ScriptedModel):
    """Produces NaN for prompts of 900 tokens and more."""

    def forward(self, input_ids: Tensor, logits_to_keep: int = 0, **options: Any) -> CausalLMOutputWithPast:
        output = super().forward(input_ids, logits_to_keep=logits_to_keep, **options)
        if input_ids.shape[1] > 900:
            output.logits[..., 0] = float("nan")
        return output


def test_nan_ends_it_and_keeps_what_was_done(byte_level: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    model = BreaksAt(scripted(byte_level).config, byte_level).eval()
    with pytest.raises(CheckpointError, match=r"NaN after a prompt of 9\d\d tokens.*are kept"):
        evaluate(model, TESTS["passkey"], tmp_path)
    assert [line["length"] for line in without_times(tmp_path / LOG_FILE)[1:]] == [700] * 6


def test_positions_are_checked_before_anything_is_asked(byte_level: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    model = scripted(byte_level, positions=1200)
    with pytest.raises(ConfigError, match=r"1,200 positions, but prompt and answer take 1,\d+ tokens.*--beyond"):
        evaluate(model, TESTS["recall"], tmp_path)
    assert model.num_tokens_read == 0
    assert shares(evaluate(model, TESTS["recall"], tmp_path, beyond=True)) == dict.fromkeys(LENGTHS, 1.0)


def test_a_bar_out_of_range(byte_level: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the bar must lie between 0 and 1"):
        evaluate(scripted(byte_level), TESTS["passkey"], tmp_path, bar=90)


def test_the_original_form_draws_depth_and_ignores_the_seed(
    byte_level: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    results = [
        evaluate(scripted(byte_level), passkey(form="original"), tmp_path / str(seed), lengths=[300], seed=seed)
        for seed in (0, 1)
    ]
    assert results[0].lengths == results[1].lengths
    assert list(results[0].lengths[0].by_depth) == ["drawn"]


@pytest.fixture
def report(byte_level: PreTrainedTokenizerFast, tmp_path: Path) -> Iterator[tuple[Retrieval, Path]]:
    result = evaluate(scripted(byte_level, visible=1000), TESTS["recall"], tmp_path)
    write_result(result, tmp_path)
    yield result, tmp_path


def test_the_report_says_what_was_measured(report: tuple[Retrieval, Path]) -> None:
    result, folder = report
    written = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    assert written["effective_length"]["generated"] == {"bar": 1000, "nolima": 700, "ruler": None}
    assert written["chance"] == {"generated": 0.0, "chosen": 0.2}
    assert written["lengths"][2]["by_depth"]["0"]["chosen"]["share"] == pytest.approx(0.2)
    assert written["settings"]["num_pairs"] == 5
    assert written["provenance"]["command"] == "a test"
    assert {"torch", "transformers", "longlora"} <= set(written["provenance"]["packages"])
    assert (folder / "recall.png").read_bytes().startswith(b"\x89PNG")
    table = result_table(result)
    cells = [list(column.cells) for column in table.columns]
    headings = [str(column.header) for column in table.columns]
    assert headings[:3] == ["length", "answered", "chosen (chance 20%)"]
    assert cells[0] == ["700", "1,000", "1,500"]
    assert cells[1][0] == "100% (61% to 100%)"  # Wilson, 6 of 6
    assert cells[headings.index("depth 0")] == ["100%", "100%", "0%"]


def test_needles_found_are_counted_one_by_one(byte_level: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    class KnowsTheLast(ScriptedModel):
        """Names the last of the numbers that it was asked for."""

        def next_token(self, visible: list[int]) -> int | None:
            text = self.tokenizer.decode(visible)
            typed = text.rpartition(" are")[2]
            last = text.rpartition("magic number of ")[2].partition(" is ")[2][:6]
            target = f" {last}."
            return self.tokenizer(target[len(typed) :])["input_ids"][0] if len(typed) < len(target) else 1

    model = KnowsTheLast(scripted(byte_level).config, byte_level).eval()
    result = evaluate(model, TESTS["needles"], tmp_path, lengths=[1000])
    assert shares(result) == {1000: 0.0}
    assert result.lengths[0].means["found"] == pytest.approx(1 / 3)
    assert "needles found" in [column.header for column in result_table(result).columns]
