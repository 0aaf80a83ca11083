"""Tiles of a feed-forward layer: what they hold at a time, what they refuse; packages that may be missing."""

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.modeling_layers import GradientCheckpointingLayer

from longlora.errors import ConfigError
from longlora.models import memory_optimizations as memory
from longlora.models.memory_optimizations import keep_hidden_states_in, nf4_arguments, tile_feed_forward
from longlora.support import machine
from longlora.support.machine import require_package

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 40}


def llama(seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**SIZES)).train()


class Layer(GradientCheckpointingLayer):
    """A decoder layer of nothing but a feed-forward module."""

    def __init__(self, mlp: nn.Module) -> None:
        super().__init__()
        self.mlp = mlp


class ConvolutionalMLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv1d(4, 4, kernel_size=3)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.mix(hidden_states)


class ResidualMLP(nn.Module):
    def forward(self, hidden_states: Tensor, residual: Tensor) -> Tensor:
        return hidden_states + residual


@pytest.mark.parametrize(
    ("module", "reason"), [(ConvolutionalMLP(), "mixes tokens"), (ResidualMLP(), "has more inputs than a row")]
)
def test_layers_that_do_not_take_one_token_at_a_time(module: nn.Module, reason: str) -> None:
    with pytest.raises(ConfigError, match=f"tiled_mlp=8 cannot be applied: 0.mlp .* {reason}; leave tiled_mlp out"):
        tile_feed_forward(nn.ModuleList([Layer(module)]), num_tokens=8)


def test_a_model_without_feed_forward_layers() -> None:
    with pytest.raises(ConfigError, match="tiled_mlp=8: no feed-forward layers found in Linear"):
        tile_feed_forward(nn.Linear(2, 2), num_tokens=8)


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated:FutureWarning")  # its name below 5.23
@pytest.mark.parametrize("checkpointing", [False, True])
def test_no_more_than_a_tile_goes_through_at_a_time(seed: int, checkpointing: bool) -> None:
    model = llama(seed)
    if checkpointing:
        model.gradient_checkpointing_enable()
    lengths: list[int] = []
    model.model.layers[0].mlp.up_proj.register_forward_hook(lambda _, inputs, __: lengths.append(inputs[0].shape[1]))
    tile_feed_forward(model, num_tokens=8)
    saved = bytes_saved(model)
    assert set(lengths) == {8, 3}  # 19 tokens
    lengths.clear()
    with torch.no_grad():
        model(input_ids=torch.zeros(1, 19, dtype=torch.long))
    assert lengths == [8, 8, 3]
    if not checkpointing:
        assert saved < 0.75 * bytes_saved(llama(seed))


def bytes_saved(model: LlamaForCausalLM) -> int:
    """Bytes of activations that a forward pass keeps for the backward pass, which is then done."""
    kept: dict[int, int] = {}
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    tokens = torch.arange(19)[None]
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(input_ids=tokens, labels=tokens).loss
    loss.backward()
    return sum(kept.values())


def test_a_tile_that_is_lost_would_be_noticed(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = torch.arange(19)[None]
    whole = llama(seed)(input_ids=tokens).logits
    model = llama(seed)
    tile_feed_forward(model, num_tokens=8)
    torch.testing.assert_close(model(input_ids=tokens).logits, whole, rtol=1e-5, atol=1e-5)
    monkeypatch.setattr(memory, "checkpoint", lambda forward, tile, **_: forward(tile) * (tile.shape[1] == 8))
    assert not torch.allclose(model(input_ids=tokens).logits, whole, rtol=1e-5, atol=1e-5)


def test_dropout_is_the_same_when_a_tile_is_computed_again(seed: int) -> None:
    """Two backward passes from the same generator state agree only if each tile draws again what it drew before."""

    class DroppingMLP(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, hidden_states: Tensor) -> Tensor:
            return torch.nn.functional.dropout(self.linear(hidden_states), 0.5)

    torch.manual_seed(seed)
    module = DroppingMLP()
    tile_feed_forward(nn.ModuleList([Layer(module)]), num_tokens=3)
    states = torch.randn(1, 8, 4)
    output = module(states)
    output.sum().backward()
    mask = (output != 0).float() * 2  # (1, 8, 4); what was kept is doubled
    expected = torch.einsum("bto,bti->oi", mask, states)
    torch.testing.assert_close(module.linear.weight.grad, expected)


def test_a_package_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.importlib.util, "find_spec", lambda name: None)
    require_package(None, wanted_by="optim=adamw_torch")
    with pytest.raises(ConfigError, match="optim=adamw_8bit needs bitsandbytes, which is not installed: pip install"):
        require_package("bitsandbytes", wanted_by="optim=adamw_8bit")
    with pytest.raises(ConfigError, match="quantization=nf4 needs bitsandbytes"):
        nf4_arguments(torch.bfloat16)


def test_four_bits_as_the_paper_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("bitsandbytes")
    arguments = nf4_arguments(torch.bfloat16)["quantization_config"].to_dict()
    wanted = {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": "bfloat16",
    }
    assert {key: arguments[key] for key in wanted} == wanted
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert nf4_arguments(torch.bfloat16)["device_map"] == {"": "cuda:3"}


def test_hidden_states_are_in_the_type_of_compute_and_the_embedding_learns_in_float32(seed: int) -> None:
    model = llama(seed)
    keep_hidden_states_in(model, torch.bfloat16)
    seen: list[torch.dtype] = []
    for layer in model.model.layers:
        layer.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].dtype))
    ids = torch.arange(20)[None]
    with torch.autocast("cpu", torch.bfloat16):
        model(input_ids=ids, labels=ids).loss.backward()
    assert seen == [torch.bfloat16, torch.bfloat16]
    embedding = model.get_input_embeddings().weight
    assert embedding.dtype == embedding.grad.dtype == torch.float32
    assert torch.isfinite(embedding.grad).all() and embedding.grad.abs().sum() > 0


def test_left_to_autocast_hidden_states_would_be_float32(seed: int) -> None:
    model = llama(seed)
    seen: list[torch.dtype] = []
    model.model.layers[1].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        model(input_ids=torch.arange(20)[None])
    assert seen == [torch.float32]
