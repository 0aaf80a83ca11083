"""Activations as counted are those that a real model holds, tensor by tensor."""

import warnings
import weakref
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig, AutoModelForCausalLM

from longlora.models.grouping import Grouping, set_grouping
from longlora.models.lora import add_adapter, trainable_parameters
from longlora.models.memory_optimizations import keep_hidden_states_in, tile_feed_forward
from longlora.planner import activations
from longlora.planner.architecture import parse_architecture
from longlora.planner.job import PlannedRun
from longlora.planner.memory import plan_memory

TOKENS = 320
SIZES = {
    "vocab_size": 61,
    "hidden_size": 96,
    "intermediate_size": 264,
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
    "max_position_embeddings": TOKENS,
    "pad_token_id": 0,
}
BFLOAT16, MIXED = "zero2", "single"  # DeepSpeed casts the model; otherwise autocast does what it does


class HeldBytes(TorchDispatchMode):
    """Follows the storages that operations make: how many bytes live now, and how many did at most."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.now = self.peak = 0
        tensors = [*model.parameters(), *model.buffers()]
        self._sizes = {tensor.untyped_storage()._cdata: 0 for tensor in tensors}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._see(leaf.untyped_storage())
        return result

    def _see(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.now -= self._sizes.pop(key)


@dataclass
class Measured:
    """Bytes that one forward and backward pass held."""

    after_forward: int = 0
    peak: int = 0
    weights: int = 0
    trained: dict[str, int] = field(default_factory=dict)


def planned(
    num_layers: int, *, model_type: str = "llama", sizes: dict[str, Any] | None = None, **run: Any
) -> PlannedRun:
    values = {**SIZES, "model_type": model_type, "num_hidden_layers": num_layers, **(sizes or {})}
    return PlannedRun(
        architecture=parse_architecture(values, "small"),
        context_length=TOKENS,
        num_gpus=2 if run.get("strategy") == BFLOAT16 else 1,
        **{"attention": "full", **run},
    )


def measure(run: PlannedRun, *, sizes: dict[str, Any] | None = None) -> Measured:
    """Train one row on a small model as the run says, and follow what is held."""
    shape, tuned = run.architecture, run.tuning != "full"
    values = {**SIZES, **(sizes or {}), "num_hidden_layers": shape.num_layers}
    config = AutoConfig.for_model(shape.model_type, **values)
    weights = torch.bfloat16 if tuned or not run.mixed else torch.float32
    model = AutoModelForCausalLM.from_config(config, attn_implementation="s2", dtype=weights)
    set_grouping(model, Grouping(group_size=run.group_size, sink_tokens=run.sink_tokens))
    if tuned:
        model = add_adapter(
            model,
            trainable=("embed", "norm") if run.tuning == "lora+" else (),
            r=run.lora_rank,
            lora_alpha=16,
            lora_dropout=0.0,
            target_modules=run.lora_targets,
        )
    keep_hidden_states_in(model, torch.bfloat16)
    if run.tiled_mlp:
        tile_feed_forward(model, num_tokens=run.tiled_mlp)
    if not run.mixed:
        model = model.to(torch.bfloat16)
    if run.gradient_checkpointing:
        with warnings.catch_warnings(action="ignore", category=FutureWarning):  # its newer name came with 5.23
            model.gradient_checkpointing_enable({"use_reentrant": False})
            model.enable_input_require_grads()
    model.config.use_cache = False
    model.train()
    for parameter in model.parameters():
        if parameter.requires_grad:  # rows are short here, so that gradients of weights would hide the activations
            parameter.register_post_accumulate_grad_hook(lambda parameter: setattr(parameter, "grad", None))
    ids = torch.zeros(1, run.context_length, dtype=torch.long)
    with HeldBytes(model) as held:
        with torch.autocast("cpu", torch.bfloat16, enabled=run.mixed):
            loss = model(input_ids=ids, labels=ids).loss
        after_forward = held.now
        loss.backward()
        del loss
    return Measured(
        after_forward=after_forward,
        peak=held.peak,
        weights=sum(parameter.nbytes for parameter in model.parameters()),
        trained=trainable_parameters(model),
    )


def difference(few: Measured, many: Measured, attribute: str, num_layers: int) -> float:
    """What one more layer adds to a measurement, per token."""
    return (getattr(many, attribute) - getattr(few, attribute)) / num_layers / TOKENS


COMBINATIONS = [(strategy, tuning) for strategy in (BFLOAT16, MIXED) for tuning in ("lora", "lora+", "full")]


@pytest.mark.parametrize(
    ("strategy", "tuning", "targets"),
    [(*combination, "attention") for combination in COMBINATIONS]
    + [(*combination, "all-linear") for combination in COMBINATIONS if combination[1] != "full"],
)
def test_what_a_layer_keeps(strategy: str, tuning: str, targets: str) -> None:
    options = {"strategy": strategy, "tuning": tuning, "lora_targets": targets, "gradient_checkpointing": False}
    few, many = planned(1, **options), planned(3, **options)
    found = difference(measure(few), measure(many), "after_forward", 2)
    counted = (activations.kept_layers(many) - activations.kept_layers(few)) / 2
    # Autocast's copies of the weights in 16 bits live as long as the layers; they do not grow with the row.
    found -= autocast_copies(few) / TOKENS
    assert counted == pytest.approx(found, rel=0.005)


def autocast_copies(run: PlannedRun) -> int:
    """Autocast's copies of one layer's trained weights that its gradient needs."""
    if not run.mixed:
        return 0
    shape = run.architecture
    linears = shape.attention_linears() + (shape.mlp_linears() if run.trains_mlp else [])
    if run.tuning == "full":
        return 2 * sum(left * right for left, right in linears)
    return 2 * run.lora_rank * sum(left + right for left, right in linears)


@pytest.mark.parametrize("strategy", [BFLOAT16, MIXED])
@pytest.mark.parametrize("kv_heads", [2, 6])
@pytest.mark.parametrize("sink_tokens", [1, 4])
def test_what_a_layer_keeps_where_groups_see_sink_tokens(strategy: str, kv_heads: int, sink_tokens: int) -> None:
    """By SDPA, which runs them here as on cards where it is the fastest."""
    sizes = {"num_key_value_heads": kv_heads}
    options: dict[str, Any] = {"strategy": strategy, "sizes": sizes, "gradient_checkpointing": False}
    options |= {"attention": "s2", "group_size": TOKENS // 4, "sink_tokens": sink_tokens}
    few, many = planned(1, **options), planned(3, **options)
    found = difference(measure(few, sizes=sizes), measure(many, sizes=sizes), "after_forward", 2)
    counted = (activations.kept_layers(many) - activations.kept_layers(few)) / 2
    found -= autocast_copies(few) / TOKENS
    # The first group of each half of the heads has none, and its queries are not copied.
    assert counted == pytest.approx(found, rel=0.011)
    without = replace(few, sink_tokens=0)
    assert activations.kept_layers(without) < 0.97 * activations.kept_layers(few)


@pytest.mark.parametrize(("strategy", "tuning"), COMBINATIONS)
def test_what_checkpointing_keeps_of_a_layer(strategy: str, tuning: str) -> None:
    few, many = (planned(layers, strategy=strategy, tuning=tuning) for layers in (1, 3))
    found = difference(measure(few), measure(many), "after_forward", 2)
    assert activations.layer_input(few) == found
    assert activations.kept_layers(many) - activations.kept_layers(few) == 2 * found


def held_at_peak(run: PlannedRun) -> float:
    """Bytes per token at the worst moment of a layer's backward pass."""
    held = activations.kept_layers(run) + activations.shared_by_layers(run)
    return held + max(map(sum, activations.layer_moments(run).values())) + autocast_copies(run) / TOKENS


@pytest.mark.parametrize(("strategy", "tuning"), COMBINATIONS)
def test_the_peak_of_a_checkpointed_model(strategy: str, tuning: str) -> None:
    run = planned(3, strategy=strategy, tuning=tuning)
    found = measure(run).peak / TOKENS
    counted = held_at_peak(run)
    assert counted == pytest.approx(found, rel=0.03)
    in_flight = activations.layer_moments(run)["the feed-forward"].in_flight
    assert in_flight > 0.1 * counted  # the tolerance would notice it missing


@pytest.mark.parametrize(("strategy", "tuning"), COMBINATIONS)
@pytest.mark.parametrize("model_type", ["llama", "qwen3"])
def test_the_peak_with_a_tiled_feed_forward_is_a_norms(strategy: str, tuning: str, model_type: str) -> None:
    sizes = {"head_dim": 24, "num_key_value_heads": 2} if model_type == "qwen3" else {}
    run = planned(3, strategy=strategy, tuning=tuning, tiled_mlp=10, model_type=model_type, sizes=sizes)
    found = measure(run, sizes=sizes).peak / TOKENS
    counted = held_at_peak(run)
    # Where every weight is trained, fewer of autocast's copies are there than are counted.
    assert counted == pytest.approx(found, rel=0.06 if (strategy, tuning) == (MIXED, "full") else 0.015)


@pytest.mark.parametrize(("strategy", "tuning"), COMBINATIONS)
def test_whole_logits_take_twelve_bytes_per_token_and_word(strategy: str, tuning: str) -> None:
    peaks, counted = [], []
    for vocabulary in (4000, 8000):
        sizes = {"hidden_size": 48, "intermediate_size": 64, "vocab_size": vocabulary}
        run = planned(1, strategy=strategy, tuning=tuning, sizes=sizes, chunked_loss=False)
        peaks.append(measure(run, sizes=sizes).peak)
        counted.append(activations.loss_bytes(run))
    found = (peaks[1] - peaks[0]) / 4000 / TOKENS
    assert (counted[1] - counted[0]) / 4000 / TOKENS == activations.LOGIT_BYTES
    assert found == pytest.approx(activations.LOGIT_BYTES, rel=0.03)


@pytest.mark.parametrize("model_type", ["qwen2", "qwen3", "mistral", "phi3", "granite", "gemma"])
def test_other_families_keep_what_is_counted(model_type: str) -> None:
    sizes = {"head_dim": 24, "num_key_value_heads": 2, "sliding_window": None}
    options: dict[str, Any] = {"model_type": model_type, "sizes": sizes, "gradient_checkpointing": False}
    few, many = (planned(layers, strategy=BFLOAT16, **options) for layers in (1, 3))
    found = difference(measure(few, sizes=sizes), measure(many, sizes=sizes), "after_forward", 2)
    counted = (activations.kept_layers(many) - activations.kept_layers(few)) / 2
    if model_type == "phi3":
        # Its queries lie head by head, and on a CPU SDPA's output lies as the queries do: the output projection keeps a
        # copy that lies token by token. Kernels on CUDA return that at once.
        counted += few.compute_bytes * few.architecture.query_size
    assert counted == pytest.approx(found, rel=0.03)


@pytest.mark.parametrize("tuning", ["lora", "lora+", "full"])
@pytest.mark.parametrize("targets", ["attention", "all-linear"])
@pytest.mark.parametrize("tied", [False, True])
def test_weights_and_trained_parameters_are_those_of_the_model(tuning: str, targets: str, tied: bool) -> None:
    sizes = {"tie_word_embeddings": tied}
    run = planned(2, strategy=MIXED, tuning=tuning, lora_targets=targets, lora_rank=3, sizes=sizes)
    found = measure(run, sizes=sizes)
    items = {item.name: item.bytes for item in plan_memory(run).items}
    # PEFT keeps the frozen original of what is trained as a copy; of tied embeddings both names are copied.
    assert sum(items.get(name, 0) for name in ("weights", "frozen weights", "trained weights")) == found.weights
    assert run.trained_parameters == found.trained["total"]
    if tuning == "lora+":
        assert run.trained_by_kind() == {kind: found.trained[kind] for kind in ("lora", "embeddings", "norms")}


def test_a_term_that_is_left_out_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    run = planned(3, strategy=BFLOAT16, tuning="lora+", gradient_checkpointing=False)
    counted = activations.kept_layers(run)
    monkeypatch.setattr(activations, "_norm", lambda run, width: 4 * width)  # without the normalised vector
    assert activations.kept_layers(run) < 0.95 * counted


def test_tiles_of_the_feed_forward_shrink_with_the_row() -> None:
    """ALST's rule: as many tokens in a tile as the hidden state is wide."""
    run = planned(2, strategy=BFLOAT16, tuning="lora", tiled_mlp=96)
    whole, tiled = activations.layer_moments(replace(run, tiled_mlp=None)), activations.layer_moments(run)
    assert activations.num_mlp_tiles(run) == 4  # ceil(320 / 96)
    inside = 6 * 2 * run.architecture.intermediate_size  # three tensors kept and three gradients of 16 bits
    held = [sum(layer["the feed-forward"]) for layer in (whole, tiled)]
    assert held[0] - held[1] == pytest.approx(inside * 3 / 4 - 2 * 2 * run.architecture.hidden_size, abs=2)
