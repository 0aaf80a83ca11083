"""lm-evaluation-harness with a task of the user's own: on a merged model and on an adapter, offline, once only."""

import json
import math
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from longlora.errors import ConfigError, DataError
from longlora.evaluation import harness_tasks, subject
from longlora.evaluation.harness import HarnessOptions, run_harness
from longlora.evaluation.harness_tasks import SHORT_TASKS, check_ruler, plan_calls
from longlora.evaluation.results import Harness, harness_metrics, read_lm_eval
from longlora.models.load import load_for_inference
from longlora.models.lora import add_adapter
from longlora.tiny import tiny_model_directory

pytest.importorskip("lm_eval", reason="lm-eval is not installed")
Run = Callable[..., tuple[int, str, str]]
QUESTIONS = [
    {"text": f"the sea was calm and {number} ships", "choices": [" lay still", " qxz"], "answer": 0}
    for number in range(5)
]


@pytest.fixture(scope="module")
def task_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("task")
    data = folder / "questions.json"
    data.write_text("\n".join(map(json.dumps, QUESTIONS)))
    task = {
        "task": "ships",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{text}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "answer",
        "target_delimiter": "",  # the choices begin with a space of their own
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 1.0},
    }
    (folder / "ships.yaml").write_text(yaml.safe_dump(task))
    del task["doc_to_choice"]
    generate = task | {
        "task": "ships_generated",
        "output_type": "generate_until",
        "doc_to_target": "{{choices[answer]}}",
        "generation_kwargs": {"max_gen_toks": 40, "do_sample": False, "until": ["\n"]},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }
    (folder / "generated.yaml").write_text(yaml.safe_dump(generate))
    return folder / "ships.yaml"


@pytest.fixture(scope="module")
def adapter(base_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LoRA, embeddings and norms, as longlora trains them, moved far enough to be noticed."""
    torch.manual_seed(0)
    model, tokenizer = load_for_inference(base_model)
    adapted = add_adapter(
        model, r=2, lora_alpha=4.0, lora_dropout=0.0, target_modules="all-linear", trainable=["embed", "norm"]
    )
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name or "modules_to_save" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    directory = tmp_path_factory.mktemp("adapter")
    adapted.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def own_likelihoods(directory: Path) -> list[float]:
    """Each choice's log-probability, by the model as longlora reads it."""
    model, tokenizer = load_for_inference(directory)
    values = []
    for question in QUESTIONS:
        for choice in question["choices"]:  # type: ignore[attr-defined]
            text, whole = (
                tokenizer(question["text"])["input_ids"],
                tokenizer(f"{question['text']}{choice}")["input_ids"],
            )
            with torch.no_grad():
                rows = torch.log_softmax(model(input_ids=torch.tensor([whole])).logits[0].float(), dim=-1)
            places = range(len(text), len(whole))
            values.append(sum(rows[place - 1, whole[place]].item() for place in places))
    return values


def harness_likelihoods(folder: Path) -> list[float]:
    lines = (folder / "samples" / "ships.jsonl").read_text(encoding="utf-8").splitlines()
    samples = sorted(map(json.loads, lines), key=lambda sample: sample["doc_id"])
    return [float(response[0][0]) for sample in samples for response in sample["resps"]]


def test_the_harness_reads_with_the_very_model(
    run: Run, base_model: Path, adapter: Path, task_file: Path, tmp_path: Path
) -> None:
    values = {}
    for name, directory in {"base": base_model, "adapter": adapter}.items():
        status, out, err = run("eval", "harness", directory, "--task-file", task_file, "--out", tmp_path / name)
        assert status == 0, err
        assert "ships" in out and "5 samples" in out
        values[name] = harness_likelihoods(tmp_path / name)
        assert values[name] == pytest.approx(own_likelihoods(directory), rel=1e-4)
    assert values["base"] != pytest.approx(values["adapter"], rel=1e-2)  # the adapter is not left out

    written = json.loads((tmp_path / "adapter" / "harness.json").read_text(encoding="utf-8"))
    right = [values["adapter"][2 * n] > values["adapter"][2 * n + 1] for n in range(5)]
    assert written["tasks"]["ships"]["metrics"]["acc"]["value"] == pytest.approx(sum(right) / 5)
    assert written["tasks"]["ships"]["num_samples"] == 5 and written["tasks"]["ships"]["num_cut"] == 0
    assert written["context"] == 64 and written["settings"]["chat"] is False


def test_it_goes_on_after_the_last_task_and_counts_prompts_that_lost_their_beginning(
    base_model: Path, task_file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = HarnessOptions(limit=2)
    first = run_harness(str(base_model), [], output=tmp_path, task_files=[task_file], options=options)
    samples = tmp_path / "samples" / "ships.jsonl"
    samples.write_text("kept")
    both = [task_file, task_file.with_name("generated.yaml")]
    second = run_harness(str(base_model), [], output=tmp_path, task_files=both, options=options)
    assert samples.read_text() == "kept"  # not asked again
    assert second.tasks["ships"] == first.tasks["ships"] and set(second.tasks) == {"ships", "ships_generated"}
    # 64 positions less 40 for the answer leave 24 bytes for a prompt of 28.
    assert second.tasks["ships_generated"].num_cut == 2 and "2 of 2 prompts did not fit" in caplog.text
    with pytest.raises(ConfigError, match="holds another measurement"):
        run_harness(str(base_model), [], output=tmp_path, task_files=both, options=HarnessOptions(limit=3))


def refuse(*_: object, **__: object) -> None:
    raise AssertionError("the model was loaded first")


def test_tasks_that_are_not_there(
    base_model: Path, task_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def call(*tasks: str, files: list[Path] | None = None) -> None:
        run_harness(str(base_model), tasks, output=tmp_path, task_files=files or [])

    with monkeypatch.context() as patch:
        patch.setattr(subject, "load_for_inference", refuse)
        patch.setattr(
            harness_tasks, "_manager", lambda metadata, defaults=False, folder=None: Manager(defaults, metadata)
        )
        with pytest.raises(ConfigError, match="name tasks with --tasks, or your own file"):
            call()
        with pytest.raises(ConfigError, match="must be an lm-eval YAML file"):
            call(files=[task_file.parent])
        with pytest.raises(ConfigError, match="lm-eval has no task 'rulr'"):
            call("rulr")
    missing = task_file.with_name("missing.yaml")
    task = yaml.safe_load(task_file.read_text()) | {"dataset_path": "nobody/has-this-one", "dataset_kwargs": {}}
    missing.write_text(yaml.safe_dump(task))
    with pytest.raises(DataError, match="needs data that cannot be read or downloaded, and HF_HUB_OFFLINE forbids"):
        call(files=[missing])


class Entry:
    def __init__(self, kind: str, members: list[str]) -> None:
        self.kind = type("Kind", (), {"name": kind})
        self.tags, self.cfg, self.yaml_path = set(members), {"task": members}, Path("tasks", members[0], "x.yaml")


class Manager:
    """Stands for lm-eval's, whose index of 14,000 tasks takes a quarter of a minute to read."""

    def __init__(self, include_defaults: bool, metadata: dict[str, Any]) -> None:
        self.metadata = metadata
        leaves = ["niah_single_1", "ruler_vt", "babilong_qa1", "longbench_trec", *SHORT_TASKS]
        leaves += ["scrolls_qasper", "scrolls_quality", "longproc_html_0.5k", "longproc_html_2k", "longproc_html_8k"]
        leaves += ["infinitebench_passkey"]
        self.task_index = {name: Entry("TASK", [name]) for name in leaves} | {
            "ruler": Entry("GROUP", ["niah_single_1", "ruler_vt"]),
            "infinitebench": Entry("GROUP", ["infinitebench_passkey"]),
            "longproc": Entry("GROUP", ["longproc_html_0.5k", "longproc_html_2k", "longproc_html_8k"]),
            "babilong_longctx": Entry("GROUP", ["babilong_qa1"]),
            "longbench": Entry("GROUP", ["longbench_fewshot"]),
            "longbench_fewshot": Entry("TAG", ["longbench_trec"]),
        }


@pytest.fixture
def plan(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    monkeypatch.setattr(
        harness_tasks, "_manager", lambda metadata, defaults=False, folder=None: Manager(defaults, metadata)
    )

    def call(*tasks: str, lengths: list[int] | None = None, context: int = 32768) -> dict[str, Any]:
        calls = plan_calls(tasks, [], lengths=lengths, context=context, tokenizer_path="tok")
        return {call.name: (call.manager.metadata, call.lengths) for call in calls}

    return call


def test_each_task_gets_its_lengths_in_its_own_way(
    plan: Callable[..., dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    found = plan("ruler")
    lengths = [4096, 8192, 16384, 32768]
    assert list(found) == [f"{name}@{length}" for length in lengths for name in ("niah_single_1", "ruler_vt")]
    assert found["ruler_vt@8192"] == ({"max_seq_lengths": [8192], "tokenizer": "tok"}, [8192])
    assert list(plan("niah_single_1", lengths=[5000])) == ["niah_single_1@5000"]
    with pytest.raises(ConfigError, match=r"RULER begins at 4,096 tokens, but this model reads 1,024: leave it out"):
        plan("ruler_vt", context=1024)
    with pytest.raises(ConfigError, match=r"RULER begins at 4,096 tokens: leave 1,024 out of --lengths"):
        plan("ruler_vt", "short", lengths=[8192, 1024])
    found = plan("babilong", context=4096)
    assert {name: values[0]["max_seq_lengths"] for name, values in found.items()} == {
        "babilong_qa1@1k": "1k", "babilong_qa1@2k": "2k", "babilong_qa1@4k": "4k",
    }  # fmt: skip
    assert list(plan("babilong", context=512)) == ["babilong_qa1@0k"]
    assert list(plan("babilong", lengths=[131072])) == ["babilong_qa1@128k"]
    with pytest.raises(ConfigError, match=r"BABILong comes in lengths of 1024, .* not of 5000"):
        plan("babilong", lengths=[5000])
    assert plan("longbench") == {"longbench_trec": ({}, None)}
    assert list(plan("short", "longbench", "short")) == [*SHORT_TASKS, "longbench_trec"]
    assert list(plan("scrolls", "infinitebench")) == ["scrolls_qasper", "scrolls_quality", "infinitebench_passkey"]
    assert list(plan("longproc", context=32768)) == [f"longproc_html_{size}" for size in ("0.5k", "2k", "8k")]
    assert list(plan("longproc", context=4096)) == ["longproc_html_0.5k", "longproc_html_2k"]
    assert "longproc_html_8k is left out: its answers take 9,216 of the 4,096 tokens" in caplog.text
    with pytest.raises(ConfigError, match=r"lm-eval has no task 'rulr'; did you mean ruler"):
        plan("rulr")


def test_what_ruler_needs_is_said_beforehand(monkeypatch: pytest.MonkeyPatch, base_model: Path, tmp_path: Path) -> None:
    monkeypatch.setattr(subject, "load_for_inference", refuse)
    with pytest.raises(ConfigError, match="RULER begins at"):
        run_harness(str(base_model), ["ruler"], output=tmp_path)
    missing = {"wonderwords"}
    monkeypatch.setattr(harness_tasks, "find_spec", lambda name: None if name in missing else object())
    with pytest.raises(ConfigError, match=r"ruler needs wonderwords: pip install 'lm_eval\[ruler\]'"):
        check_ruler(["short", "ruler"], None, 8192)
    missing.clear()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    nltk = SimpleNamespace(data=SimpleNamespace(find=lambda name: (_ for _ in ()).throw(LookupError(name))))
    monkeypatch.setitem(sys.modules, "nltk", nltk)
    with pytest.raises(DataError, match=r"needs nltk's data punkt_tab, .* `python -m nltk.downloader punkt_tab`"):
        check_ruler(["niah_single_1"], [4096], 1024)
    check_ruler(["ruler_vt", "short"], [4096], 1024)  # which need neither
    nltk.data.find = lambda name: name
    check_ruler(["ruler"], [4096], 1024)


def test_a_task_that_fails_is_named_and_the_others_go_on(
    base_model: Path, task_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As RULER's word list fails where it finds no room, with a ZeroDivisionError."""
    broken = task_file.with_name("broken.yaml")
    fault = yaml.safe_load(task_file.read_text()) | {"task": "broken", "doc_to_text": "{{text}}{{1 // 0}}"}
    broken.write_text(yaml.safe_dump(fault))
    with pytest.raises(DataError, match=r"broken failed within lm-eval \(ZeroDivisionError: .*the other tasks are"):
        run_harness(str(base_model), [], output=tmp_path, task_files=[broken, task_file])
    written = json.loads((tmp_path / "harness.json").read_text(encoding="utf-8"))
    assert list(written["tasks"]) == ["ships"]


def test_metrics_are_read_with_their_errors() -> None:
    results = {
        "alias": "x",
        "acc,none": 0.5,
        "acc_stderr,none": 0.1,
        "f1,strict": 1,
        "f1_stderr,strict": "N/A",
        "4096,none": 0.25,
        "8192,none": -1,
        "broken,none": math.nan,
    }
    assert harness_metrics(results) == {
        "acc": {"value": 0.5, "standard_error": 0.1},
        "f1 (strict)": {"value": 1.0, "standard_error": None},
        "4096": {"value": 0.25, "standard_error": None},
    }


def test_code_of_the_model_runs_only_where_it_is_allowed(base_model: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"longproc runs model-written code on this machine: allow it with --run-code"
    ):
        run_harness(str(base_model), ["short", "longproc"], output=tmp_path)


@pytest.mark.slow
def test_rulers_tasks_that_need_no_network_are_run(tmp_path: Path) -> None:
    pytest.importorskip("wonderwords", reason="lm_eval[ruler] is not installed")
    model = tmp_path / "model"  # with a tokenizer to which a chain of variables is less than 4,096 tokens
    shutil.copytree(tiny_model_directory(), model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 4096}))
    options = HarnessOptions(lengths=[4096], limit=1, max_new_tokens=4)
    result = run_harness(str(model), ["ruler_vt", "ruler_fwe"], output=tmp_path / "out", options=options)
    assert list(result.tasks) == ["ruler_vt@4096", "ruler_fwe@4096"]
    for task in result.tasks.values():
        assert (list(task.metrics), task.num_samples, task.lengths, task.num_cut) == (["4096"], 1, [4096], 0)
    assert [test.test for test in result.by_length()] == ["ruler_vt", "ruler_fwe"]


# As lm-eval 0.4.13 writes it, shortened.
LM_EVAL = {
    "results": {
        "ruler_vt": {
            "alias": "x",
            "4096,none": 0.98,
            "4096_stderr,none": "N/A",
            "8192,none": 0.4,
            "16384,none": -1,
        },
        "arc_easy": {"alias": "arc_easy", "acc,none": 0.7, "acc_stderr,none": 0.01},
    },
    "n-samples": {"ruler_vt": {"original": 1000, "effective": 1000}, "arc_easy": {"original": 9, "effective": 9}},
    "config": {"model": "hf", "model_args": {"pretrained": "org/theirs"}},
    "model_name": "org/theirs",
    "lm_eval_version": "0.4.13",
    "max_length": 16384,
}


def test_what_lm_eval_wrote_itself_is_read(tmp_path: Path) -> None:
    path = tmp_path / "results_2026-01-01T00-00-00.000000.json"
    path.write_text(json.dumps(LM_EVAL))
    found = read_lm_eval(path)
    assert (found.model, found.context, list(found.tasks)) == (
        "org/theirs", 16384, ["ruler_vt@4096", "ruler_vt@8192", "arc_easy"],
    )  # fmt: skip
    (test,) = found.by_length()
    assert test.reading == ("reads", 4096, 8192, True)
    assert test.effective_length["generated"] == {"bar": 4096, "nolima": 4096, "ruler": 4096}
    assert test.shares()[4096].num_trials == 500
    for content in ("{}", "[]", "x", json.dumps({"results": {"a": 1}})):
        path.write_text(content)
        with pytest.raises(DataError, match="is no result of lm-evaluation-harness"):
            read_lm_eval(path)
    assert Harness(model="m", tasks={}).by_length() == []


def test_without_lm_eval(base_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ConfigError, match=r"pip install 'longlora\[eval\]'"):
        run_harness(str(base_model), ["short"], output=tmp_path)
