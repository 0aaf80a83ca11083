"""What the Trainer is given of conversations: the labels that were found, by marks and by search."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tests.data.families import TEMPLATES, tokenizer_for
from transformers import LlamaConfig, LlamaForCausalLM

from longlora.config import parse_recipe
from longlora.training.run import train

LLAMA2 = (
    "{%- for m in messages -%}{%- if m.role == 'assistant' -%}{{- ' ' ~ m.content.strip() ~ ' ' ~ eos_token -}}"
    "{%- else -%}{{- bos_token ~ '[INST] ' ~ m.content.strip() ~ ' [/INST]' -}}{%- endif -%}{%- endfor -%}"
)


@pytest.mark.parametrize(
    ("template", "build", "method", "ends"),
    [
        (TEMPLATES["phi3"], "bytes", "by marks, in the chat template", ("<|end|>\n", "<|end|>\n</s>")),
        (LLAMA2, "sentence pieces", "by a search", (" </s>", " </s>")),
    ],
    ids=["marks", "search"],
)
def test_every_answer_reaches_the_trainer(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
    template: str,
    build: str,
    method: str,
    ends: tuple[str, str],
) -> None:
    tokenizer = tokenizer_for(template, build=build)
    tokenizer.save_pretrained(tmp_path / "base")
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=512,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "base")
    turns = [{"role": ("user", "assistant")[n % 2], "content": f"turn {n} ends."} for n in range(12)]
    (tmp_path / "rows.json").write_text(json.dumps([{"messages": turns}]))
    given: list[dict[str, Any]] = []
    step = transformers.Trainer.training_step

    def record(self: Any, model: Any, inputs: dict[str, Any], *more: Any) -> Any:
        given.append({name: inputs[name][0].tolist() for name in ("input_ids", "labels")})
        return step(self, model, inputs, *more)

    monkeypatch.setattr(transformers.Trainer, "training_step", record)
    values = {
        "model_name_or_path": str(tmp_path / "base"),
        "output_dir": str(tmp_path / "run"),
        "context_length": 512,
        "max_steps": 1,
        "warmup_steps": 0,
        "gradient_accumulation_steps": 1,
        "gradient_checkpointing": False,
        "merge": False,
        "data": {"kind": "sft", "source": str(tmp_path / "rows.json"), "cache_dir": str(tmp_path / "cache")},
    }
    with caplog.at_level("INFO", logger="longlora"):
        train(parse_recipe(values))
    (row,) = given
    assert row["input_ids"] == tokenizer.apply_chat_template(turns, return_dict=False)
    runs: list[list[int]] = [[]]
    for label in row["labels"]:
        if label != -100:
            runs[-1].append(label)
        elif runs[-1]:
            runs.append([])
    texts = [tokenizer.decode(run).lstrip() for run in runs if run]
    assert texts == [f"turn {n} ends.{ends[n == 11]}" for n in range(1, 12, 2)]
    assert f"answers were found {method}" in caplog.text
    shown = capsys.readouterr().err
    assert "what is learned in ⟦ ⟧" in shown and "turn 11 ends." in shown
