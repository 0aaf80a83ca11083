"""Every family: tiles of its feed-forward and the loss in pieces change nothing, or are refused with the reason."""

import copy

import pytest
import torch
from tests.families.families import FAMILIES, VOCABULARY, Family
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from trl.trainer import add_fused_lm_head

from longlora.errors import ConfigError
from longlora.models.lora import add_adapter
from longlora.models.memory_optimizations import tile_feed_forward, why_not_in_pieces

NUM_TOKENS = 13
TOLERANCE = 512 * torch.finfo(torch.float32).eps  # of a tensor's largest number
WITH_EXPERTS = ("mixtral", "qwen3_moe", "gpt_oss", "deepseek_v3", "llama4_text", "qwen3_next")
LOSS_OF_THEIR_OWN = ("llama4_text",)

pytestmark = pytest.mark.filterwarnings("ignore:The explicitly set RoPE scaling factor")
each_family = pytest.mark.parametrize("family", FAMILIES, ids=[family.model_type for family in FAMILIES])


def make(family: Family, seed: int, **settings: object) -> PreTrainedModel:
    """Build a random LoRA+ model in training whose updates are not zero, with one layer's biases random as well."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(family.config(**settings))
    adapted = add_adapter(
        model,
        trainable=("embed", "norm"),
        r=2,
        lora_alpha=4,
        lora_dropout=0.0,
        target_modules="attention" if family.model_type in WITH_EXPERTS else "all-linear",
        train_output=not family.config(**settings).tie_word_embeddings,
    )
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return adapted.train()


def random_tokens(seed: int, batch_size: int = 1) -> Tensor:
    return torch.randint(3, VOCABULARY, (batch_size, NUM_TOKENS), generator=torch.Generator().manual_seed(seed))


def loss_and_gradients(model: nn.Module, loss: Tensor) -> list[Tensor]:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(loss, trained, allow_unused=True)
    assert sum(gradient is not None for gradient in gradients) > 5
    return [loss.detach(), *(torch.zeros(()) if gradient is None else gradient for gradient in gradients)]


def differences(actual: list[Tensor], expected: list[Tensor]) -> list[float]:
    return [
        (got - wanted).abs().max().item() / max(1.0, wanted.abs().max().item())
        for got, wanted in zip(actual, expected, strict=True)
    ]


@each_family
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_the_loss_in_pieces_is_the_models_own(family: Family, tied: bool, seed: int) -> None:
    config = family.config(tie_word_embeddings=tied)
    reason = why_not_in_pieces(config)
    if family.model_type in LOSS_OF_THEIR_OWN:
        assert reason is not None and "its layers are not in one module" in reason
        return
    assert reason is None
    model = make(family, seed, tie_word_embeddings=tied)
    tokens = random_tokens(seed, batch_size=2)
    labels = tokens.masked_fill(torch.rand(tokens.shape, generator=torch.Generator().manual_seed(seed)) < 0.3, -100)
    own = loss_and_gradients(model, model(input_ids=tokens, labels=labels, num_items_in_batch=7).loss)
    add_fused_lm_head(model.get_base_model(), outputs=("log_probs", "entropy", "is_top1"))
    inputs = {"input_ids": tokens, "labels": labels, "num_items_in_batch": 7, "fused_lm_head": True}
    in_pieces = loss_and_gradients(model, model(**inputs).loss)
    assert max(differences(in_pieces, own)) < TOLERANCE, f"seed {seed}"


@each_family
def test_tiles_change_nothing(family: Family, seed: int) -> None:
    model = make(family, seed)
    if family.model_type in WITH_EXPERTS:
        with pytest.raises(ConfigError, match=r"tiled_mlp=5 cannot be applied: .* routes tokens among experts"):
            tile_feed_forward(model, num_tokens=5)
        return
    tokens = random_tokens(seed, batch_size=2)
    before, names = list(model.state_dict()), [name for name, _ in model.named_modules()]
    whole = loss_and_gradients(model, model(input_ids=tokens, labels=tokens).loss)
    tiled = tile_feed_forward(model, num_tokens=5)
    assert len(tiled) == model.config.num_hidden_layers
    in_tiles = loss_and_gradients(model, model(input_ids=tokens, labels=tokens).loss)
    assert max(differences(in_tiles, whole)) < TOLERANCE, f"seed {seed}"
    assert (list(model.state_dict()), [name for name, _ in model.named_modules()]) == (before, names)


@pytest.mark.parametrize(
    ("model_type", "settings", "reason"),
    [
        ("recurrent_gemma", {}, "recurrent_gemma computes its loss differently"),  # its cap has another name
        ("bamba", {"z_loss_coefficient": 0.1}, "bamba computes its loss differently"),
        ("xlstm", {}, "xlstm cannot be checked"),
        ("gemma2", {"final_logit_softcapping": 3.0}, None),
        ("granite", {"logits_scaling": 7.0}, None),
        ("cohere", {"logit_scale": 0.3}, None),
        ("falcon_h1", {"lm_head_multiplier": 0.4}, None),
        ("gptj", {}, None),  # whose output layer has a bias
    ],
)
def test_a_loss_that_trl_does_not_know_is_noticed(model_type: str, settings: dict, reason: str | None) -> None:
    found = why_not_in_pieces(AutoConfig.for_model(model_type, **settings))
    assert found is reason or (reason is not None and found is not None and found.startswith(reason))


def test_the_configuration_is_left_as_it_was() -> None:
    config = AutoConfig.for_model("mixtral", output_router_logits=True)
    before = copy.deepcopy(config.to_dict())
    assert why_not_in_pieces(config) is None
    assert config.to_dict() == before


def test_a_scale_that_is_passed_over_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.models.cohere.modeling_cohere import CohereForCausalLM

    original = CohereForCausalLM.forward

    def scaling_twice(self: CohereForCausalLM, *args: object, **kwargs: object) -> object:
        self.logit_scale = self.config.logit_scale**2
        return original(self, *args, **kwargs)

    config = AutoConfig.for_model("cohere")
    assert why_not_in_pieces(config) is None
    monkeypatch.setattr(CohereForCausalLM, "forward", scaling_twice)
    assert "computes its loss differently" in (why_not_in_pieces(config) or "")
