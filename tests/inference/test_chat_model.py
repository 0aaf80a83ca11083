import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tests.four_bit_kernel import multiply_by_formula
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from longlora.inference.chat_model import ChatModel, ChatSettings, load_chat_model
from longlora.inference.conversation import Chat
from longlora.models.load import load_for_inference
from longlora.tiny import tiny_model_directory


def answer_of(chat_model: ChatModel) -> str:
    settings = ChatSettings(max_new_tokens=12)
    conversation = Chat(chat_model, settings)
    answer, _ = conversation.ask("def add(first, second):")
    return "".join(answer)


@pytest.fixture
def adapter(tmp_path: Path, seed: int) -> Path:
    """A LoRA of random weights on the tiny model, which changes what it says."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(tiny_model_directory())
    model = get_peft_model(model, LoraConfig(r=4, lora_alpha=256, target_modules="all-linear", init_lora_weights=False))
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.fixture(params=[False, True], ids=["any processor", "AVX512-BF16"])
def avx512_bf16(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Whether bitsandbytes packs layers for that kernel: the shapes of those that it computed with it.

    The kernel itself is replaced by its formula, since few processors have it.
    """
    modules = pytest.importorskip("bitsandbytes.nn.modules", reason="needs bitsandbytes")
    functional = pytest.importorskip("bitsandbytes.functional")
    shapes: list[tuple[int, ...]] = []

    def multiply(states: Tensor, weight: Tensor, out: Tensor | None = None, *, state: Any) -> Tensor:
        shapes.append(tuple(state.shape))
        return multiply_by_formula(states, weight, state=state)

    monkeypatch.setattr(modules, "has_avx512bf16", lambda: request.param)
    monkeypatch.setattr(functional, "gemv_4bit", multiply)
    return shapes


def test_models_and_adapters_speak_in_32_and_in_4_bits(adapter: Path, avx512_bf16: list[tuple[int, ...]]) -> None:
    plain, packed = load_chat_model("tiny"), load_chat_model("tiny", quantization="nf4")
    adapted, both = load_chat_model(str(adapter)), load_chat_model(str(adapter), quantization="nf4")
    kinds = [type(each.model.get_decoder().layers[0].mlp.up_proj).__name__ for each in (plain, packed, adapted, both)]
    assert kinds == ["Linear", "Linear4bit", "Linear", "Linear4bit"]
    assert all(len(answer_of(each)) > 5 for each in (plain, packed))  # the adapters' weights are random: they may stop
    assert answer_of(adapted) != answer_of(plain) and answer_of(both) != answer_of(packed)
    assert not avx512_bf16  # the tiny model's layers do not fit that kernel


@pytest.mark.parametrize("avx512_bf16", [True], indirect=True)
def test_layers_that_fit_the_kernel_use_it(
    base_model: Path, tmp_path: Path, seed: int, avx512_bf16: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(base_model, tmp_path, dirs_exist_ok=True)
    torch.manual_seed(seed)
    config = AutoConfig.from_pretrained(base_model, hidden_size=64, intermediate_size=96, head_dim=16)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tokens = torch.arange(3, 40)[None]
    logits = []
    for has_kernel in (True, False):
        monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda has_kernel=has_kernel: has_kernel)
        model, _ = load_for_inference(tmp_path, quantization="nf4")
        with torch.no_grad():
            logits.append(model(tokens).logits)
    assert set(avx512_bf16) == {(64, 64), (32, 64), (96, 64)}  # not (64, 96), whose inputs are one block and a half
    difference = (logits[0] - logits[1]).norm() / logits[1].norm()
    assert 0 < difference < 0.02  # its scales are bfloat16: half of 2⁻⁸ in each


def test_a_model_without_a_template_is_given_the_papers_prompt(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="longlora"):
        chat_model = load_chat_model("tiny")
    assert "using the paper's prompt" in caplog.text
    assert chat_model.text([{"role": "user", "content": "Where?"}]).endswith("[INST]Where?[/INST]")
