"""Kill a run with SIGKILL at random moments, repeatedly, and check that it ends like an undisturbed one.

    python benchmarks/_kill_and_resume.py [--kills 20] [--seed 0] [--work FOLDER]

After each kill, every checkpoint that is marked as complete is read in full. The run trains a small random Llama for a
few seconds, with a checkpoint every other step, so that many kills hit a checkpoint being written. If a run finishes
before there were enough kills, another is started. The exit status is 1, with the reason, if anything differs.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from longlora.config import Recipe, parse_recipe
from longlora.models.load import load_tokenizer, model_source
from longlora.support.digests import is_sealed
from longlora.training.run import train

MAX_STEPS = 24


def main() -> None:
    """Run the experiment and print one line for each kill and one for the outcome."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, help="folder to work in; by default a temporary one, deleted at the end")
    arguments = parser.parse_args()
    chance = random.Random(arguments.seed)
    work = arguments.work or Path(tempfile.mkdtemp(prefix="longlora-kill-"))
    work.mkdir(parents=True, exist_ok=True)
    make_base(work / "base", chance)

    started = time.monotonic()
    assert wait(start(recipe(work, "undisturbed"))) == 0, "the undisturbed run failed"
    seconds = time.monotonic() - started
    print(f"undisturbed: {MAX_STEPS} steps in {seconds:.1f} s", flush=True)

    kills, runs, inside_saves = 0, 0, 0
    while kills < arguments.kills:
        runs += 1
        disturbed = recipe(work, f"disturbed-{runs}")
        while True:
            process = start(disturbed)
            moment = chance.uniform(0, seconds) if kills < arguments.kills else None
            if moment is None or ended_within(process, moment):
                assert moment is not None or wait(process) == 0, "the last start failed"
                break
            os.kill(process, signal.SIGKILL)
            wait(process)
            kills += 1
            if (Path(disturbed.output_dir) / "adapter").exists():  # killed after everything was done
                break
            whole, partial = inspect(Path(disturbed.output_dir) / "checkpoints")
            inside_saves += bool(partial)
            print(f"kill {kills} after {moment:.2f} s: whole {whole}, cut short {partial}", flush=True)
        compare(work, disturbed)
    print(
        f"{kills} kills in {runs} runs, {inside_saves} while a checkpoint was being written: same curve, same adapter"
    )
    if arguments.work is None:
        shutil.rmtree(work)


def make_base(directory: Path, chance: random.Random) -> None:
    """Write a small random model with the tiny model's tokenizer, and texts of random words."""
    tokenizer = load_tokenizer(model_source("tiny"))
    tokenizer.save_pretrained(directory)
    torch.manual_seed(0)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
            tie_word_embeddings=True,
        )
    ).save_pretrained(directory)
    words = "the sea was calm and a ship lay still upon it".split()
    (directory / "texts.txt").write_text(" ".join(chance.choice(words) for _ in range(20_000)), encoding="utf-8")


def recipe(work: Path, name: str) -> Recipe:
    """Return the recipe of a run with a dense finish, and with dropout, so that random generator states matter."""
    return parse_recipe(
        {
            "model_name_or_path": str(work / "base"),
            "output_dir": str(work / name),
            "context_length": 128,
            "max_steps": MAX_STEPS,
            "learning_rate": 1e-2,
            "gradient_accumulation_steps": 2,
            "save_steps": 2,
            "attention": {"dense_finish": 0.25},
            "lora": {"lora_dropout": 0.1},
            "data": {"source": str(work / "base" / "texts.txt"), "cache_dir": str(work / f"cache-{name}")},
        }
    )


def start(run: Recipe) -> int:
    """Train in a forked child, which has the libraries already loaded; return its process id."""
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        with open(os.devnull, "w") as nothing:
            os.dup2(nothing.fileno(), 1)
            with open(Path(run.output_dir).with_suffix(".log"), "a") as log:
                os.dup2(log.fileno(), 2)
        train(run)
        status = 0
    finally:
        if status:
            import traceback

            traceback.print_exc()
            sys.stderr.flush()
        os._exit(status)


def wait(process: int) -> int:
    """Wait for a child; return its exit status, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def ended_within(process: int, seconds: float) -> bool:
    """Return whether a child ends by itself within this time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found, status = os.waitpid(process, os.WNOHANG)
        if found:
            assert os.waitstatus_to_exitcode(status) == 0, "a start after a kill failed; see the .log in --work"
            return True
        time.sleep(0.005)
    return False


def inspect(checkpoints: Path) -> tuple[list[str], list[str]]:
    """Read all checkpoints that are marked as complete; return the names of those and of the others."""
    whole, partial = [], []
    for checkpoint in sorted(checkpoints.glob("checkpoint-*")):
        if not is_sealed(checkpoint):
            partial.append(checkpoint.name)
            continue
        newest = max(filter(is_sealed, checkpoints.glob("checkpoint-*")), key=step)
        if checkpoint == newest:  # an older one may be being deleted
            load_file(checkpoint / "adapter_model.safetensors")
            torch.load(checkpoint / "optimizer.pt", weights_only=True)
            torch.load(checkpoint / "scheduler.pt", weights_only=True)
            torch.load(checkpoint / "rng_state.pth", weights_only=False)
            assert json.loads((checkpoint / "trainer_state.json").read_text())["global_step"] == step(checkpoint)
        whole.append(checkpoint.name)
    return whole, partial


def step(checkpoint: Path) -> int:
    """Return the step of a checkpoint."""
    return int(checkpoint.name.rpartition("-")[2])


def compare(work: Path, disturbed: Recipe) -> None:
    """Check that a run has the same losses and weights as the undisturbed one."""
    root, reference = Path(disturbed.output_dir), work / "undisturbed"
    curves = [
        [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (reference, root)
    ]
    assert len(curves[0]) == MAX_STEPS and curves[0] == curves[1], f"losses of {root} differ"
    weights = [load_file(folder / "adapter" / "adapter_model.safetensors") for folder in (reference, root)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0]), f"weights of {root} differ"
    assert not list(root.glob(".*partial*")), "something half-written is left"
    assert (root / "summary.json").exists() and (root / "curves.png").exists(), "the run did not look back"


if __name__ == "__main__":
    main()
