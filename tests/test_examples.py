"""The scripts in examples/ train with S²-Attn as they stand."""

import runpy
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from longlora.attention import CutPoints
from longlora.merge import merge_adapter
from longlora.models import registration as register

EXAMPLES = Path(__file__).parent.parent / "examples"
CONTEXT_LENGTH, GROUP_SIZE = 256, 64


@pytest.fixture
def cuts_of_training(monkeypatch) -> list[CutPoints]:
    """Keep the cut points of every call of S²-Attn, those of `set_group_size` on "meta" apart."""
    seen = []

    def watching(query, key, value, cuts, **named):
        if not query.is_meta:
            seen.append(cuts)
        return attend_in_segments(query, key, value, cuts, **named)

    attend_in_segments = register.attend_in_segments
    monkeypatch.setattr(register, "attend_in_segments", watching)
    return seen


def run(monkeypatch, name: str, *arguments: object) -> None:
    options = ["--context-length", CONTEXT_LENGTH, "--max-steps", 1, *arguments]
    monkeypatch.setattr(sys, "argv", [name, *map(str, options)])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set:UserWarning")
def test_transformers_trainer(base_model, text_folder, tmp_path, monkeypatch, capsys, cuts_of_training):
    output = tmp_path / "out"
    run(monkeypatch, "with_trainer.py", text_folder / "one.txt", "--model", base_model, "--output-dir", output)
    assert len(cuts_of_training) == 2 * 2  # layers × rows of a step; evaluation adds none
    assert [cuts.unshifted for cuts in cuts_of_training] == [(GROUP_SIZE,) * 4, (4 * GROUP_SIZE,)] * 2
    assert all(cuts.shifted is None for cuts in cuts_of_training)
    assert "eval_loss" in capsys.readouterr().out
    saved = AutoModelForCausalLM.from_pretrained(output)
    assert saved.config.max_position_embeddings == CONTEXT_LENGTH
    assert saved.config.rope_parameters["factor"] == CONTEXT_LENGTH / 64


def test_transformers_trainer_wants_enough_text(base_model, tmp_path, monkeypatch):
    (tmp_path / "short.txt").write_text("A word.", encoding="utf-8")
    with pytest.raises(SystemExit, match="two rows of 256 are needed"):
        run(monkeypatch, "with_trainer.py", tmp_path / "short.txt", "--model", base_model)


@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set:UserWarning")
def test_trl_with_packed_documents(base_model, tmp_path, monkeypatch, cuts_of_training):
    texts, output = tmp_path / "texts", tmp_path / "out"
    texts.mkdir()
    for number, length in enumerate((100, 40, 300)):
        (texts / f"{number}.txt").write_text("x" * length, encoding="utf-8")
    run(monkeypatch, "with_trl.py", texts, "--model", base_model, "--output-dir", output)
    assert len(cuts_of_training) == 2 * 2 * 2  # TRL recomputes activations
    # The longest document fills a row, and its rest shares one with the others; TRL adds an end to each.
    in_groups, whole = {(64,) * 4, (37, 41, 45, 64)}, {(256,), (41, 45, 101)}
    assert {tuple(sorted(cuts.unshifted)) for cuts in cuts_of_training} == in_groups | whole
    report = merge_adapter(output, tmp_path / "merged")
    assert report.largest_difference < 1e-4


def test_cells_for_one_gpu(tmp_path, monkeypatch, capsys):
    """The cells run in order, with fewer texts, steps and questions."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    text = (EXAMPLES / "one_gpu.py").read_text(encoding="utf-8")
    smaller = {
        'standard_library_files("train")': 'standard_library_files("train")[:4]',
        "CONTEXT = 1024": "CONTEXT = 512",
        "max_steps=30": "max_steps=1",
        "gradient_accumulation_steps=8": "gradient_accumulation_steps=1",
        "lengths=[CONTEXT // 4, CONTEXT // 2, CONTEXT]": "lengths=[CONTEXT], depths=[0.5]",
        "num_trials=3": "num_trials=1",
        "max_new_tokens=60": "max_new_tokens=2",
    }
    for shown, used in smaller.items():
        assert shown in text
        text = text.replace(shown, used)
    exec(compile(text, "one_gpu.py", "exec"), {"__name__": "__main__"})
    assert (tmp_path / "runs" / "tiny-512" / "merged" / "README.md").exists()
    printed = capsys.readouterr().out
    assert "longest context" in printed and "def read_lines(path):" in printed
