"""A real transformers 4 reads what is exported as transformers 5 does, or is named as a reader that does not.

It is installed into a folder of its own, beside the torch that is there; without a package index the test is skipped.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.merge import adapters
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from longlora.merge import merge_adapter
from longlora.models.directories import save_tokenizer
from longlora.models.older_keys import write_older_keys
from longlora.models.positions import extend_positions
from longlora.rope.other_readers import misread

pytestmark = pytest.mark.slow

PACKAGES = ("transformers==4.51.3", "tokenizers==0.21.4", "huggingface_hub==0.30.2")
SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
    "initializer_range": 0.3,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"head_dim": 32},
    "qwen2": {},
    "qwen3": {"head_dim": 32},
    "gemma3_text": {"head_dim": 32, "layer_types": ["sliding_attention", "full_attention"], "sliding_window": 16}
    | {"sliding_window_pattern": 2},
    "olmo2": {},
    "nemotron": {},
    "gpt_neox": {},
}
KINDS: dict[str, dict[str, Any]] = {
    "linear": {},
    "theta": {},
    "dynamic": {},
    "llama3": {},
    "yarn": {},
    "yarn, beta": {"beta_fast": 16},
    "yarn, attention": {"attention_factor": 1.3},
    "yarn, mscale": {"mscale": 0.7, "mscale_all_dim": 0.5},
    "yarn, whole ramp": {"truncate": False},
    "longrope": {"long_factor": [1 + pair / 8 for pair in range(16)]},
}
CASES = [(family, kind) for family in ("llama", "qwen3", "gpt_neox") for kind in KINDS if kind != "longrope"]
CASES += [("llama", "longrope"), ("mistral", "longrope")]
CASES += [(family, kind) for family in ("olmo2", "nemotron") for kind in ("linear", "theta", "yarn")]
CASES += [(family, kind) for family in ("mistral", "qwen2", "gemma3_text") for kind in ("linear", "llama3", "yarn")]

READ = """
import json, sys
import torch, transformers
from transformers import AutoModelForCausalLM, AutoTokenizer
assert transformers.__version__.startswith("4."), transformers.__version__
transformers.logging.set_verbosity_error()
tokens = torch.arange(200)[None] * 7 % 64
for folder in sys.argv[1:]:
    result = {}
    try:
        with torch.no_grad():
            result["logits"] = AutoModelForCausalLM.from_pretrained(folder).eval()(tokens).logits
    except ValueError as error:
        result["error"] = str(error)
    torch.save(result, folder + "/read.pt")
"""
TOKENIZE = """
import json, sys
from transformers import AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
print(json.dumps([tokenizer(sys.argv[2])["input_ids"], tokenizer.additional_special_tokens, tokenizer.chat_template]))
"""


@pytest.fixture(scope="module")
def transformers4(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a process that imports transformers 4."""
    folder = tmp_path_factory.mktemp("transformers4")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), *PACKAGES]
    if subprocess.run(install, capture_output=True).returncode:
        pytest.skip(f"{PACKAGES[0]} cannot be installed here")
    return os.environ | {"PYTHONPATH": str(folder), "PYTHONWARNINGS": "ignore"}


def test_positions_are_read_or_the_reader_is_named(transformers4: dict[str, str], seed: int, tmp_path: Path) -> None:
    tokens = torch.arange(200)[None] * 7 % 64
    expected: dict[Path, torch.Tensor] = {}
    is_misread: dict[Path, bool] = {}
    for number, (family, kind) in enumerate(CASES):
        torch.manual_seed(seed)
        config = AutoConfig.for_model(family, **SIZES, **FAMILIES[family])
        extend_positions(config, context_length=256, rope_type=kind.split(",")[0], options=KINDS[kind])
        model = AutoModelForCausalLM.from_config(config).eval()
        folder = tmp_path / str(number)
        model.save_pretrained(folder)
        write_older_keys(folder)
        with torch.no_grad():
            expected[folder] = model(tokens).logits
        is_misread[folder] = "transformers 4" in misread(config.rope_parameters, model_type=family)
    subprocess.run([sys.executable, "-c", READ, *map(str, expected)], check=True, env=transformers4)
    for (family, kind), (folder, logits) in zip(CASES, expected.items(), strict=True):
        read = torch.load(folder / "read.pt")
        is_right = "logits" in read and float((read["logits"] - logits).abs().max()) < 1e-3
        assert is_right != is_misread[folder], (family, kind, read.get("error"))


def test_a_merged_model_and_its_tokenizer_are_read(
    transformers4: dict[str, str], base_model: Path, tmp_path: Path
) -> None:
    adapters.longlora_adapter(base_model, tmp_path / "adapter")
    merge_adapter(tmp_path / "adapter", tmp_path / "merged")
    subprocess.run([sys.executable, "-c", READ, str(tmp_path / "merged")], check=True, env=transformers4)
    with torch.no_grad():
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
        expected = model(torch.arange(200)[None] * 7 % 64).logits
    torch.testing.assert_close(torch.load(tmp_path / "merged" / "read.pt")["logits"], expected, atol=1e-4, rtol=0)
    _check_tokenizer(transformers4, tmp_path / "merged", "The sea was calm.")


@pytest.mark.parametrize("name", ["PreTrainedTokenizerFast", "LlamaTokenizer", "LlamaTokenizerFast"])
def test_tokenizers_of_several_classes(transformers4: dict[str, str], name: str, tmp_path: Path) -> None:
    letters = [*map(chr, range(33, 127)), *(f"<0x{byte:02X}>" for byte in range(256))]
    vocabulary = {token: number for number, token in enumerate(["<unk>", "<s>", "</s>", "▁", *letters])}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    base = PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    base.add_special_tokens({"extra_special_tokens": ["<|turn|>"]})
    base.chat_template = "{{ messages }}"
    base.save_pretrained(tmp_path / "base")
    path = tmp_path / "base" / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tokenizer_class": name}))
    save_tokenizer(AutoTokenizer.from_pretrained(tmp_path / "base"), tmp_path / "written")
    _check_tokenizer(transformers4, tmp_path / "written", "A calm sea, é.<|turn|> And  more")


def _check_tokenizer(environment: dict[str, str], folder: Path, text: str) -> None:
    command = [sys.executable, "-c", TOKENIZE, str(folder), text]
    done = subprocess.run(command, check=True, env=environment, capture_output=True, text=True)
    ids, extra, template = json.loads(done.stdout.splitlines()[-1])
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert ids == tokenizer(text)["input_ids"]
    assert extra == tokenizer.extra_special_tokens
    assert template == tokenizer.chat_template
