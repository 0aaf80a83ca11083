"""A model spread over devices answers as it does on one. Here the devices are the CPU and the disk."""

from pathlib import Path
from typing import Any

import pytest
import torch

from longlora.errors import ConfigError
from longlora.evaluation.perplexity import loss_by_position
from longlora.evaluation.retrieval import run_retrieval
from longlora.evaluation.retrieval_tests import passkey
from longlora.evaluation.subject import model_identity
from longlora.models import load as model_module
from longlora.models.load import load_for_inference

SPREAD = {
    "model.embed_tokens": "disk",
    "model.rotary_emb": "cpu",
    "model.layers.0": "cpu",
    "model.layers.1": "disk",
    "model.norm": "cpu",
    "lm_head": "disk",
}


def test_the_disk_and_the_cpu_together_are_the_cpu(base_model: Path, tmp_path: Path) -> None:
    whole, tokenizer = load_for_inference(base_model, dtype="float32", device="cpu")
    spread, _ = load_for_inference(base_model, dtype="float32", device_map=SPREAD)
    assert any(parameter.is_meta for parameter in spread.parameters())
    assert model_identity(spread) == model_identity(whole)
    documents = [torch.randint(3, 250, (130,)).tolist()]
    curves = [
        loss_by_position(model, documents, length=64, num_buckets=3, show_progress=False) for model in (whole, spread)
    ]
    assert [b.loss for b in curves[1]] == pytest.approx([b.loss for b in curves[0]], rel=1e-6)
    results = [
        run_retrieval(
            model, tokenizer, passkey(), lengths=[300], depths=[0.5], num_trials=2, beyond=True,
            output=tmp_path / name, show_progress=False,
        )
        for name, model in {"whole": whole, "spread": spread}.items()
    ]  # fmt: skip
    logs = [(tmp_path / name / "trials.jsonl").read_text(encoding="utf-8") for name in ("whole", "spread")]
    answers = [[line.split('"answer"')[1].split('"scores"')[0] for line in log.splitlines()[1:]] for log in logs]
    assert results[0].lengths == results[1].lengths
    assert answers[0] == answers[1] and len(answers[0]) == 2


def test_other_weights_are_told_apart_on_the_disk_too(base_model: Path, tmp_path: Path) -> None:
    model, tokenizer = load_for_inference(base_model)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] += 1
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    changed, original = (
        model_identity(load_for_inference(name, device_map=SPREAD)[0]) for name in (tmp_path, base_model)
    )
    assert changed != original


def test_an_adapter_is_spread_only_where_all_of_it_arrives(base_model: Path, adapter: Path) -> None:
    documents = [list(range(3, 70))]
    options: dict[str, Any] = {"length": 64, "num_buckets": 3, "show_progress": False}
    whole = loss_by_position(load_for_inference(adapter)[0], documents, **options)
    spread = loss_by_position(load_for_inference(adapter, device_map="auto")[0], documents, **options)
    assert [b.loss for b in spread] == pytest.approx([b.loss for b in whole], rel=1e-6)
    base = loss_by_position(load_for_inference(base_model)[0], documents, **options)
    assert [b.loss for b in base] != pytest.approx([b.loss for b in whole], rel=1e-4)
    with pytest.raises(ConfigError, match="merge the adapter"):
        load_for_inference(adapter, device_map=SPREAD)


def test_what_is_passed_on(base_model: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Any]] = []
    load = model_module.AutoModelForCausalLM.from_pretrained

    def record(*arguments: Any, **options: Any) -> Any:
        seen.append(options)
        return load(*arguments, **options)

    monkeypatch.setattr(model_module.AutoModelForCausalLM, "from_pretrained", record)
    for name in (base_model, adapter):
        load_for_inference(name, device_map="auto")
        load_for_inference(name)
    assert [options.get("device_map") for options in seen] == ["auto", None, "auto", None]
    assert all("device_map" not in options for options in seen[1::2])


def test_one_device_and_several_at_once(base_model: Path) -> None:
    with pytest.raises(ConfigError, match="device=cpu and device_map=auto each determine where"):
        load_for_inference(base_model, device="cpu", device_map="auto")
