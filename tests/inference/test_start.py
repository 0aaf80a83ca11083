from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from longlora.inference.conversation import Conversation
from longlora.inference.settings import ChatSettings
from longlora.inference.speaker import Speaker
from longlora.inference.start import load_speaker, memory_for
from longlora.tiny import tiny_model_directory


def answer_of(speaker: Speaker) -> str:
    settings = ChatSettings(max_new_tokens=12)
    conversation = Conversation(speaker, settings, memory_for(speaker, settings)())
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


def test_models_and_adapters_speak_in_32_and_in_4_bits(adapter: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="needs bitsandbytes")
    plain, packed = load_speaker("tiny"), load_speaker("tiny", quantization="nf4")
    adapted, both = load_speaker(str(adapter)), load_speaker(str(adapter), quantization="nf4")
    kinds = [type(each.model.get_decoder().layers[0].mlp.up_proj).__name__ for each in (plain, packed, adapted, both)]
    assert kinds == ["Linear", "Linear4bit", "Linear", "Linear4bit"]
    assert all(len(answer_of(each)) > 5 for each in (plain, packed, adapted, both))
    assert answer_of(adapted) != answer_of(plain)


def test_a_model_without_a_template_is_given_the_papers_prompt(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="longlora"):
        speaker = load_speaker("tiny")
    assert "as in the paper" in caplog.text
    assert speaker.text([{"role": "user", "content": "Where?"}]).endswith("[INST]Where?[/INST]")
