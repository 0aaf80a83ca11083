"""The demo, shortened: its numbers are worthless, its report and its files are whole."""

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from longlora.cli import main as cli
from longlora.demo import walkthrough as demo
from longlora.models.load import load_for_inference

MODELS = ["base", "positions only", "longlora", "recommended", "full attention"]


def test_the_report_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    few_files = demo.standard_library_files("train")[:12]
    monkeypatch.setattr(demo, "EVALUATION_TARGETS", 128)
    monkeypatch.setattr(demo, "RECALL_DOCUMENTS", 4)
    monkeypatch.setattr(demo, "RECALL", replace(demo.RECALL, lengths=(256, 1024), depths=(0.0,), num_trials=2))
    monkeypatch.setattr(
        demo,
        "standard_library_files",
        lambda split: few_files if split == "train" else original("validation"),
    )
    short = {"max_steps": 2, "warmup_steps": 1, "save_steps": 1, "per_device_train_batch_size": 1}
    monkeypatch.setattr(demo, "SHARED_SETTINGS", {**demo.SHARED_SETTINGS, **short})
    output = tmp_path / "demo"
    demo.run_demo(output)

    report = json.loads((output / "report.json").read_text())
    assert list(report["perplexity"]) == MODELS
    for values in report["perplexity"].values():
        assert list(values) == ["128", "256", "512", "1024"]
        assert all(value > 1 for value in values.values())
    assert all(report["seconds"][name]["training"] > 0 for name in MODELS[2:])
    assert report["merge"]["largest_difference"] < 1e-3
    assert report["environment"]["packages"]["torch"]
    assert report["settings"]["evaluation"]["stride"] == 64

    assert list(report["recall"]) == MODELS
    assert all(list(shares) == ["256", "1024"] for shares in report["recall"].values())
    assert report["recall"]["base"]["256"] > report["recall"]["base"]["1024"]
    assert report["answers"] == {} or report["answers"]["recommended"] != report["answers"]["base"]

    markdown = (output / "report.md").read_text()
    assert all(f"| {name} |" in markdown for name in MODELS)
    assert (output / "perplexity.png").read_bytes().startswith(b"\x89PNG")
    assert load_for_inference(output / "merged")[0].config.max_position_embeddings == 1024
    printed = capsys.readouterr().out
    assert all(f"longlora {command} " in printed for command in ("init", "train", "eval", "chat"))


def test_a_finished_demo_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "report.json").touch()
    monkeypatch.setattr(sys, "argv", ["longlora", "demo", "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert (end.value.code, "holds a finished demo; choose another" in capsys.readouterr().err) == (2, True)


original = demo.standard_library_files


def test_the_page_draws_its_shares_from_its_table() -> None:
    docs = Path(__file__).parents[2] / "docs"
    page, paper = ((docs / name).read_text(encoding="utf-8").replace("\n", " ") for name in ("demo.md", "paper.md"))
    table = {}
    for line in (docs / "demo.md").read_text(encoding="utf-8").splitlines():
        name, *values = line.replace("**", "").strip("| ").split(" | ")
        if len(values) >= 7 and "." in values[0]:
            table[re.split("[:, ]", name)[0]] = [float(value.strip("% s|")) for value in values]
    base, positions, longlora, recommended, full = table.values()
    [untrained] = map(float, re.findall(r"YaRN from 256: (\d+\.\d+)", page))
    assert f" {untrained} " in (docs / "results.md").read_text(encoding="utf-8")
    reached = recommended[3]
    assert (
        f"{reached / base[1]:.2f} times the base's perplexity at its own 256, {1 - reached / positions[3]:.0%} less "
        f"than its positions alone, and {1 - reached / untrained:.0%} less than the best"
    ).replace("%", " %") in page
    assert (
        f"ends {reached / full[3] - 1:.0%} above full attention for as many steps, in {recommended[7] / full[7]:.2f} of"
    ).replace("%", " %") in page
    recalled = f"recalls {longlora[6]:.0f} % at the trained length, untrained YaRN {positions[6]:.0f} %"
    assert recalled in paper
