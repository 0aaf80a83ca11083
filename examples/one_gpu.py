"""Extend a model on one GPU, cell by cell."""

# %% [markdown]
# # Extend a model on one GPU
#
# From a model's name to an extended model, and a test of what it can retrieve. VS Code, PyCharm and Spyder run the
# cells one by one; `jupytext --to notebook one_gpu.py` converts them to a notebook; `python one_gpu.py` runs them all.
# Unchanged, it extends longlora's tiny model in a few minutes, without a GPU.

# %% Settings
import torch

import longlora
from longlora.planner.compute import GIB, find_gpu
from longlora.tiny.stdlib import standard_library_files
from longlora.training.draft import Hardware, draft_recipe

MODEL = "tiny"  # a directory, a hub name, or a short name: "meta-llama/Meta-Llama-3-8B"
CONTEXT = 1024  # tokens: 32768
GPU = "rtx-4090"  # what to plan for; `longlora plan MODEL --context N` compares GPUs
DATA = [str(path) for path in standard_library_files("train")]  # files, folders or hub data sets: ["books/"]
OVERRIDES = ["max_steps=30", "gradient_accumulation_steps=8", "learning_rate=1e-3"]  # []: the planned recipe unchanged

# %% What fits: the settings that a run on this GPU needs, before any weights are loaded
gpu = find_gpu(GPU)
draft = draft_recipe(
    MODEL, CONTEXT, Hardware(gpus=1, memory_gib=gpu.memory_gib, gpu=gpu), data=DATA, overrides=OVERRIDES
)
plan = draft.plan
print(f"{plan.memory.total / GIB:.1f} of {gpu.memory_gib:g} GiB; longest context {plan.longest_context:,} tokens")
for change in draft.changes:
    print("switched on:", change.what)
if not plan.fits:
    raise SystemExit(f"{MODEL} at {CONTEXT:,} tokens does not fit on {GPU}; choose a shorter context or another GPU")

# %% Train: S²-Attn in groups, with one layer of six dense; running this cell again resumes an interrupted run
adapter = longlora.train(draft.recipe)

# %% Merge: an ordinary model directory for transformers, vLLM and others
merged = adapter.parent / "merged"
if not merged.exists():
    longlora.merge_adapter(adapter, merged)

# %% Test how far it reads: facts hidden in long texts, by length and depth
model, tokenizer = longlora.load_for_inference(merged)
retrieval = longlora.run_retrieval(
    model,
    tokenizer,
    longlora.needle(),
    lengths=[CONTEXT // 4, CONTEXT // 2, CONTEXT],
    num_trials=3,
    output=adapter.parent / "needle",
)
print(retrieval.verdict)

# %% Generate
prompt = tokenizer("def read_lines(path):\n", return_tensors="pt").to(model.device)
with torch.no_grad():
    written = model.generate(**prompt, max_new_tokens=60, do_sample=False)
print(tokenizer.decode(written[0], skip_special_tokens=True))
