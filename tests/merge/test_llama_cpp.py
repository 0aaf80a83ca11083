"""A real llama.cpp reads the exported positions as transformers does, or is named as a reader that does not.

`make llama-cpp` builds what is needed into build/llama-cpp: the converter (from `vendor/llama.cpp` of the source
distribution of llama_cpp_python) and, in `site/`, the package. It takes half an hour on two cores, so no test does.
LONGLORA_LLAMA_CPP names another folder.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from longlora.models.directories import save_tokenizer
from longlora.models.older_keys import write_older_keys
from longlora.models.positions import extend_positions
from longlora.rope.other_readers import misread
from longlora.tiny import tiny_model_directory

BUILT = Path(__file__).parents[2] / "build" / "llama-cpp"
LLAMA_CPP = Path(os.environ.get("LONGLORA_LLAMA_CPP", BUILT))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (LLAMA_CPP / "site").is_dir(), reason="no llama.cpp: `make llama-cpp` builds it"),
]

LENGTH, COMPARED = 900, 128  # tokens read, and the last of them that are compared
OPTIONS: dict[str, dict[str, Any]] = {
    "linear": {},
    "theta": {},
    "yarn": {},
    "llama3": {},
    "dynamic": {},
    "yarn, attention": {"attention_factor": 1.3},
    "yarn, mscale": {"mscale": 0.7, "mscale_all_dim": 0.5},
    "yarn, beta": {"beta_fast": 4},
    "yarn, whole ramp": {"truncate": False},
    "longrope": {"long_factor": [1 + pair / 8 for pair in range(20)]},
}
FAMILIES: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": None},
    "qwen3": {},
    "gemma3_text": {"sliding_window": 64, "layer_types": ["sliding_attention", "full_attention"]},
    "gemma2": {"sliding_window": 64, "layer_types": ["sliding_attention", "full_attention"]},
}
CASES = [("llama", kind) for kind in OPTIONS]
CASES += [(family, kind) for family in FAMILIES for kind in ("linear", "theta", "yarn")]
CASES += [(family, "llama3") for family in ("mistral", "qwen3")]  # random weights hardly show Gemma's

# The converter knows tokenizers by a checksum of token ids. The tiny model's splits as that of SmolLM does.
READ = """
import sys
from pathlib import Path
import numpy, torch
root = Path(sys.argv[1])
sys.path[:0] = [str(root), str(root / "gguf-py"), str(root / "site")]
import convert_hf_to_gguf, llama_cpp
from conversion.base import TextModel
TextModel.get_vocab_base_pre = lambda self, tokenizer: "smollm"
TextModel._set_vocab_sentencepiece = lambda self: self._set_vocab_gpt2()  # Gemma's way
tokens, text, *folders = torch.load(sys.argv[2])
for folder in folders:
    sys.argv = ["convert", folder, "--outfile", folder + "/model.gguf", "--outtype", "f32"]
    convert_hf_to_gguf.main()
    options = dict(n_ctx=1024, n_batch=1024, logits_all=True, n_threads=1, verbose=False)
    model = llama_cpp.Llama(folder + "/model.gguf", **options)
    model.eval(tokens)
    logits = torch.from_numpy(numpy.array(model.scores[: len(tokens)]))
    torch.save((logits, model.tokenize(text.encode(), add_bos=False)), folder + "/read.pt")
"""


def test_positions_are_read_or_the_reader_is_named(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_directory())
    text = Path(json.__file__).read_text(encoding="utf-8")  # of the kind that the tiny model was trained on
    tokens = tokenizer(text)["input_ids"][:LENGTH]
    sample = "def f(x):\n    return 2026 + x  # 'don't'\n\n\nclass A:\n\tpass"
    expected = {tmp_path / str(number): _export(tmp_path / str(number), *case) for number, case in enumerate(CASES)}
    torch.save((tokens, sample, *map(str, expected)), tmp_path / "asked.pt")
    command = [sys.executable, "-c", READ, str(LLAMA_CPP), str(tmp_path / "asked.pt")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    divergence: dict[tuple[str, str], float] = {}
    wrong = []
    for case, (folder, is_misread) in zip(CASES, expected.items(), strict=True):
        with torch.no_grad():
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
            log_p = model(torch.tensor([tokens])).logits[0, -COMPARED:].log_softmax(-1)  # (128, vocabulary)
        read, pieces = torch.load(folder / "read.pt")
        log_q = read[-COMPARED:].log_softmax(-1)
        divergence[case] = float((log_p.exp() * (log_p - log_q)).sum(-1).mean())
        wrong += [case] if (divergence[case] > 1e-4) != is_misread else []
        assert pieces == tokenizer(sample, add_special_tokens=False)["input_ids"]
    print(divergence)
    assert not wrong, {case: divergence[case] for case in wrong}


def _export(folder: Path, family: str, kind: str) -> bool:
    """Write a model with scaled positions as an export is written; whether llama.cpp is said to misread it."""
    source = tiny_model_directory()
    config = AutoConfig.from_pretrained(source)
    if family != "llama":
        values = {key: getattr(config, key) for key in ("vocab_size", "hidden_size", "intermediate_size", "head_dim")}
        values |= {"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2}
        values |= {"max_position_embeddings": 256, "bos_token_id": 0, "eos_token_id": 1, "initializer_range": 0.2}
        values |= FAMILIES[family]
        config = AutoConfig.for_model(family, **values)
    extend_positions(config, context_length=1024, rope_type=kind.split(",")[0], options=OPTIONS[kind])
    torch.manual_seed(0)
    if family == "llama":
        model = AutoModelForCausalLM.from_pretrained(source, config=config)
    else:
        model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder)
    save_tokenizer(AutoTokenizer.from_pretrained(source), folder)
    write_older_keys(folder)
    return "llama.cpp" in misread(config.rope_parameters, model_type=family)
