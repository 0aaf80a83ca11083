"""Attention "s2" inside tiny random models: ordinary when evaluating, S²-Attn when training, loud when neither."""

import copy
from collections.abc import Iterator

import pytest
import torch
from accelerate.utils import send_to_device
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from transformers import (
    AttentionInterface,
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)
from transformers.masking_utils import AttentionMaskInterface, create_causal_mask
from transformers.modeling_outputs import CausalLMOutput

from longlora import register
from longlora.attention import s2_attention_reference
from longlora.errors import ConfigError
from longlora.register import DeferredMask, check_s2_reaches, forget_group_size, set_group_size

TOLERANCE = 64 * torch.finfo(torch.float32).eps  # of a tensor's largest number
NUM_TOKENS = 12
PACKED_LENGTHS = (5, 1, 6)

SIZES = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,  # large, so that every token of the context moves the predictions
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def tiny_model(seed: int, config: PreTrainedConfig | None = None, *, attention: str = "s2") -> PreTrainedModel:
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config or LlamaConfig(**SIZES), attn_implementation=attention)


def with_attention(model: PreTrainedModel, attention: str) -> PreTrainedModel:
    """Copy a model, mode and group size included, to compute its attention another way."""
    model = copy.deepcopy(model)
    model.set_attn_implementation(attention)
    return model


@pytest.fixture
def model(seed: int) -> PreTrainedModel:
    return tiny_model(seed)


def random_tokens(seed: int, batch_size: int = 2, num_tokens: int = NUM_TOKENS) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, SIZES["vocab_size"], (batch_size, num_tokens), generator=generator)


def padding(*stretches: tuple[int, int]) -> Tensor:
    time = torch.arange(NUM_TOKENS)
    return torch.stack([(time >= first) & (time < last) for first, last in stretches]).long()


BATCHES = {
    "plain": {},
    "mask of ones": {"attention_mask": padding((0, 12), (0, 12))},
    "left padding": {"attention_mask": padding((3, 12), (0, 12))},
    "right padding": {"attention_mask": padding((0, 12), (0, 7))},
    "packed": {"position_ids": torch.cat([torch.arange(length) for length in PACKED_LENGTHS])[None]},
    "packed differently": {
        "position_ids": torch.stack(
            [torch.cat([torch.arange(7), torch.arange(5)]), torch.cat([torch.arange(2), torch.arange(10)])]
        )
    },
}


@pytest.fixture(params=BATCHES.values(), ids=BATCHES.keys())
def batch(request: pytest.FixtureRequest, seed: int) -> dict[str, Tensor]:
    return {"input_ids": random_tokens(seed), "use_cache": False, **request.param}


def real_tokens(batch: dict[str, Tensor]) -> Tensor:
    return batch.get("attention_mask", torch.ones_like(batch["input_ids"])).bool()  # (B, T)


def logits_and_gradients(model: PreTrainedModel, **batch) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the logits of real tokens, and every parameter's gradient of a loss that looks at all of them."""
    model.zero_grad()
    logits = model(**batch).logits[real_tokens(batch)]  # (N, V)
    logits.logsumexp(dim=-1).sum().backward()
    return logits.detach(), {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def assert_close(actual: Tensor, expected: Tensor, message: str = "") -> None:
    allowed = TOLERANCE * max(1.0, expected.abs().max().item())
    error = (actual - expected).abs().max().item()
    assert error <= allowed, f"differs by {error:.2e}, {allowed:.2e} allowed: {message}"


def assert_same_training(actual: tuple[Tensor, dict], expected: tuple[Tensor, dict], message: str = "") -> None:
    assert_close(actual[0], expected[0], f"logits {message}")
    for name, gradient in expected[1].items():
        assert_close(actual[1][name], gradient, f"gradient of {name} {message}")


@pytest.fixture(scope="module")
def reference_attention() -> str:
    """Give transformers the definition of S²-Attn under a name of its own."""

    def attend(module, query, key, value, attention_mask, scaling=None, position_ids=None, **_):
        batch_size, num_tokens = query.shape[0], query.shape[2]
        cu_seqlens = None
        if attention_mask is None:
            starts = (position_ids.expand(batch_size, -1) == 0).flatten().nonzero().flatten()
            cu_seqlens = torch.tensor([*starts.tolist(), batch_size * num_tokens])
        output = s2_attention_reference(
            query,
            key,
            value,
            group_size=module.config.s2_group_size,
            scale=scaling,
            cu_seqlens=cu_seqlens,
            padding_mask=attention_mask,
        )
        return output.transpose(1, 2), None

    AttentionInterface.register("s2 by definition", attend)
    AttentionMaskInterface.register("s2 by definition", lambda **arguments: arguments["attention_mask"])
    return "s2 by definition"


# Evaluating and generating


@torch.no_grad()
def test_evaluation_is_sdpa_bit_for_bit(model, batch):
    set_group_size(model, 3)
    model.train()(**batch)  # training in between leaves nothing behind
    expected = with_attention(model, "sdpa").eval()(**batch).logits
    assert torch.equal(model.eval()(**batch).logits, expected)


@torch.no_grad()
def test_evaluation_takes_a_mask_of_queries_by_keys_as_sdpa_does(model, seed):
    batch = {
        "input_ids": random_tokens(seed),
        "attention_mask": torch.rand(2, 1, NUM_TOKENS, NUM_TOKENS).lt(0.5) | torch.eye(NUM_TOKENS).bool(),
    }
    expected = with_attention(model, "sdpa").eval()(**batch).logits
    assert torch.equal(model.eval()(**batch).logits, expected)


@pytest.mark.parametrize("cache", [None, "static"])
def test_generation_is_sdpa_bit_for_bit(model, cache, seed):
    prompt = {"input_ids": random_tokens(seed), "attention_mask": padding((4, 12), (0, 12))}
    settings = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "cache_implementation": cache}
    expected, actual = (
        with_attention(model, attention)
        .eval()
        .generate(**prompt, **settings, output_logits=True, return_dict_in_generate=True)
        for attention in ("sdpa", "s2")
    )
    assert torch.equal(actual.sequences, expected.sequences)
    assert torch.equal(torch.stack(actual.logits), torch.stack(expected.logits))


# Training


@pytest.mark.parametrize("group_size", [1, 3, 4, 8, 100])
def test_training_is_s2_by_definition(model, batch, group_size, reference_attention, seed):
    set_group_size(model, group_size)
    actual = logits_and_gradients(model.train(), **batch)
    expected = logits_and_gradients(with_attention(model, reference_attention).train(), **batch)
    assert_same_training(actual, expected, f"seed {seed}")


def test_training_is_not_full_attention(model, batch):
    set_group_size(model, 3)
    s2_logits, _ = logits_and_gradients(model.train(), **batch)
    full_logits, _ = logits_and_gradients(with_attention(model, "sdpa").train(), **batch)
    with pytest.raises(AssertionError, match="differs by"):
        assert_close(s2_logits, full_logits)


@pytest.mark.parametrize("which", ["logits", "gradient"])
def test_an_error_of_ten_times_the_tolerance_would_be_noticed(model, which, seed):
    expected = logits_and_gradients(model.train(), input_ids=random_tokens(seed))
    logits, gradients = expected[0].clone(), {name: gradient.clone() for name, gradient in expected[1].items()}
    assert_same_training((logits, gradients), expected)
    tensor = logits if which == "logits" else gradients["model.layers.1.self_attn.q_proj.weight"]
    tensor[3, 5] += 10 * TOLERANCE * max(1.0, tensor.abs().max().item())
    with pytest.raises(AssertionError, match=which):
        assert_same_training((logits, gradients), expected)


def test_without_a_group_size_training_is_full_attention(model, batch, seed):
    set_group_size(model, None)
    actual = logits_and_gradients(model.train(), **batch)
    expected = logits_and_gradients(with_attention(model, "sdpa").train(), **batch)
    assert_same_training(actual, expected, f"seed {seed}")


@pytest.mark.parametrize(("num_tokens", "group_size"), [(16, 4), (11, 3), (3, 1), (1, 1)])
def test_the_default_group_is_a_quarter_of_the_row(model, num_tokens, group_size, seed):
    batch = {"input_ids": random_tokens(seed, num_tokens=num_tokens)}
    default = model.train()(**batch).logits
    set_group_size(model, group_size)
    assert torch.equal(model(**batch).logits, default)


def test_a_packed_row_trains_as_its_documents_alone(model, seed):
    tokens = random_tokens(seed, batch_size=1)
    set_group_size(model, 3)
    model.train()
    positions = BATCHES["packed"]["position_ids"]
    packed = logits_and_gradients(model, input_ids=tokens, position_ids=positions, use_cache=False)
    alone = [
        logits_and_gradients(model, input_ids=document, use_cache=False)
        for document in tokens.split(PACKED_LENGTHS, dim=1)
    ]
    assert_same_training(packed, summed(alone), f"seed {seed}")


def test_cumulative_lengths_pack_as_positions_do(model, seed):
    """As data collators for variable-length attention hand them over."""
    set_group_size(model, 3)
    batch = {"input_ids": random_tokens(seed, batch_size=1), "use_cache": False}
    by_positions = logits_and_gradients(model.train(), **batch, position_ids=BATCHES["packed"]["position_ids"])
    borders = torch.tensor([0, *torch.tensor(PACKED_LENGTHS).cumsum(0)], dtype=torch.int32)
    by_lengths = logits_and_gradients(model, **batch, cu_seq_lens_q=borders, cu_seq_lens_k=borders)
    assert_same_training(by_lengths, by_positions, f"seed {seed}")


def test_training_scales_scores_as_the_model_asks(seed, reference_attention):
    model = tiny_model(seed, GraniteConfig(**SIZES, attention_multiplier=0.7)).train()
    set_group_size(model, 3)
    actual = logits_and_gradients(model, input_ids=random_tokens(seed))
    expected = logits_and_gradients(with_attention(model, reference_attention), input_ids=random_tokens(seed))
    assert_same_training(actual, expected, f"seed {seed}")


@pytest.mark.parametrize("stretch", [(5, 12), (0, 7)], ids=["left", "right"])
def test_a_padded_row_trains_as_its_tokens_alone(model, stretch, seed):
    """Positions count on from the padding; RoPE sees only their differences."""
    set_group_size(model, 3)
    tokens = random_tokens(seed, batch_size=1)
    padded = logits_and_gradients(model.train(), input_ids=tokens, attention_mask=padding(stretch))
    alone = logits_and_gradients(model, input_ids=tokens[:, slice(*stretch)])
    assert_same_training(padded, alone, f"seed {seed}")


def test_rows_of_a_batch_train_as_each_alone(model, seed):
    set_group_size(model, 3)
    tokens = random_tokens(seed, batch_size=3)
    together = logits_and_gradients(model.train(), input_ids=tokens)
    alone = [logits_and_gradients(model, input_ids=row) for row in tokens.split(1)]
    assert_same_training(together, summed(alone), f"seed {seed}")


def summed(parts: list[tuple[Tensor, dict]]) -> tuple[Tensor, dict]:
    gradients = {name: sum(part[1][name] for part in parts) for name in parts[0][1]}
    return torch.cat([part[0] for part in parts]), gradients


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated:FutureWarning")
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing_changes_nothing(model, batch, use_reentrant):
    set_group_size(model, 3)
    logits, gradients = logits_and_gradients(model.train(), **batch)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": use_reentrant})
    again_logits, again_gradients = logits_and_gradients(model, **batch)
    assert torch.equal(again_logits, logits)
    assert all(torch.equal(again_gradients[name], gradient) for name, gradient in gradients.items())


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_a_compiled_model_trains_alike_and_compiles_nothing_anew_for_another_packing(model, seed):
    set_group_size(model, 3)
    counter = CompileCounter()
    torch._dynamo.reset()
    compiled = copy.deepcopy(model.train())
    compiled.compile(backend=counter)
    num_compilations = []
    for name in ("packed", "packed differently", "packed"):
        batch = {"input_ids": random_tokens(seed), "use_cache": False}
        batch["position_ids"] = BATCHES[name]["position_ids"].expand(2, -1).contiguous()
        assert_same_training(logits_and_gradients(compiled, **batch), logits_and_gradients(model, **batch), name)
        num_compilations.append(counter.frame_count)
    assert num_compilations[0] > 0 and len(set(num_compilations)) == 1


# Layers with windows of their own


def mistral(**settings) -> MistralConfig:
    return MistralConfig(**SIZES, **settings)


@pytest.mark.parametrize("name", ["plain", "left padding", "packed"])
def test_a_layer_with_a_sliding_window_keeps_its_attention_in_training(name, seed):
    model = tiny_model(seed, mistral(sliding_window=4)).train()
    set_group_size(model, 3)
    batch = {"input_ids": random_tokens(seed), "use_cache": False, **BATCHES[name]}
    logits, gradients = logits_and_gradients(model, **batch)
    expected_logits, expected_gradients = logits_and_gradients(with_attention(model, "sdpa"), **batch)
    assert torch.equal(logits, expected_logits)
    assert all(torch.equal(gradients[name], gradient) for name, gradient in expected_gradients.items())


def test_of_layers_with_and_without_a_window_only_the_latter_train_with_groups(seed):
    layers = ["sliding_attention", "full_attention"]
    config = Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=4, layer_types=layers)
    model = tiny_model(seed, config).train()
    tokens = random_tokens(seed)
    ordinary = with_attention(model, "sdpa")(tokens, output_hidden_states=True)
    set_group_size(model, 3)
    grouped = model(tokens, output_hidden_states=True)
    assert torch.equal(grouped.hidden_states[1], ordinary.hidden_states[1])
    with pytest.raises(AssertionError, match="differs by"):
        assert_close(grouped.logits, ordinary.logits)


# The group size


@pytest.mark.parametrize("group_size", [0, -4])
def test_refuses_a_group_without_tokens(model, group_size):
    with pytest.raises(ConfigError, match=f"at least 1 token, got {group_size}"):
        set_group_size(model, group_size)


def test_a_forgotten_group_size_is_not_saved(model, tmp_path, seed):
    untouched = model.config.to_dict()
    tokens = random_tokens(seed)
    default = model.train()(tokens).logits
    set_group_size(model, 5)
    forget_group_size(model)
    forget_group_size(model)  # nothing left to forget
    assert model.config.to_dict() == untouched
    assert torch.equal(model(tokens).logits, default)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="s2").train()
    assert torch.equal(loaded(tokens).logits, default)


# What is refused


def test_training_refuses_a_mask_of_queries_by_keys(model):
    mask = torch.ones(1, 1, 4, 4, dtype=torch.bool).tril()
    with pytest.raises(ConfigError, match="neither a mask of queries by keys nor a KV cache"):
        model.train()(random_tokens(0, 1, 4), attention_mask=mask)


@pytest.mark.parametrize("num_tokens", [1, 2])
def test_training_refuses_a_cache_with_tokens_in_it(model, num_tokens):
    cache = model.eval()(random_tokens(0), use_cache=True).past_key_values
    with pytest.raises(ConfigError, match="neither a mask of queries by keys nor a KV cache"):
        model.train()(random_tokens(1, num_tokens=num_tokens), past_key_values=cache)


def test_training_refuses_attention_dropout(seed):
    model = tiny_model(seed, LlamaConfig(**SIZES, attention_dropout=0.1))
    model.eval()(random_tokens(seed))
    with pytest.raises(ConfigError, match=r"set attention_dropout to 0 .*, not 0\.1"):
        model.train()(random_tokens(seed))


@pytest.mark.parametrize("name", ["softcap", "s_aux", "position_bias"])
@pytest.mark.parametrize("training", [True, False])
def test_refuses_what_would_change_attention_and_is_not_implemented(model, name, training):
    """In evaluation too: "sdpa" would leave out `s_aux` without a word."""
    with pytest.raises(ConfigError, match=f"LlamaAttention needs {name}"):
        model.train(training)(random_tokens(0), **{name: torch.ones(4)})


def deferred_mask(model: PreTrainedModel, **arguments) -> DeferredMask:
    defaults = {"attention_mask": None, "past_key_values": None, "position_ids": torch.arange(6)[None]}
    return create_causal_mask(model.config, torch.zeros(1, 6, 32), **(defaults | arguments))


def own_masks() -> Iterator[tuple[str, dict]]:
    packed = torch.tensor([[0, 1, 2, 0, 1, 2]])
    blocks = torch.tensor([[-1, 0, 0, 0, -1, -1]])
    positions = {"position_ids": packed}
    yield "intersection", {"and_mask_function": lambda b, h, q, k: k > 1}
    yield "union", {"or_mask_function": lambda b, h, q, k: k < 2}
    yield "union, packed", {"or_mask_function": lambda b, h, q, k: k < 2, **positions}
    yield "image", {"block_sequence_ids": blocks}
    yield "image, packed", {"block_sequence_ids": blocks, **positions}


@pytest.mark.parametrize("arguments", [own for _, own in own_masks()], ids=[name for name, _ in own_masks()])
def test_refuses_a_mask_of_the_models_own(model, arguments):
    mask = deferred_mask(model, **arguments)
    positions = arguments.get("position_ids", torch.arange(6)[None])
    with pytest.raises(ConfigError, match="a mask of its own"):
        mask.cuts(6, group_size=2, position_ids=positions, cu_seqlens=None)


def test_refuses_packed_documents_whose_positions_do_not_reach_the_layer(model):
    mask = deferred_mask(model, position_ids=torch.tensor([[0, 1, 2, 0, 1, 2]]))
    with pytest.raises(ConfigError, match="a mask of its own"):
        mask.cuts(6, group_size=2, position_ids=None, cu_seqlens=None)


def test_a_layer_that_gets_no_positions_trains_whole_rows(model):
    cuts = deferred_mask(model).cuts(6, group_size=4, position_ids=None, cu_seqlens=None)
    assert cuts.unshifted == (4, 2)


def test_positions_within_padding_make_no_documents(model):
    mask = deferred_mask(model, attention_mask=torch.tensor([[0, 0, 0, 1, 1, 1]]))
    cuts = mask.cuts(6, group_size=100, position_ids=torch.tensor([[1, 1, 1, 0, 1, 2]]), cu_seqlens=None)
    assert cuts.unshifted == (3, 3)


def test_training_refuses_attention_that_goes_both_ways(seed):
    config = LlamaConfig(**SIZES)
    config.is_causal = False
    model = tiny_model(seed, config)
    model.eval()(random_tokens(seed))
    with pytest.raises(ConfigError, match="a mask of its own"):
        model.train()(random_tokens(seed))


# The mask


def test_the_mask_is_made_once_for_all_layers(model, batch, monkeypatch):
    made = []

    def counting(*arguments, **named):
        made.append(arguments)
        return cut_points(*arguments, **named)

    cut_points = register.cut_points
    monkeypatch.setattr(register, "cut_points", counting)
    model.train()(**batch)
    assert len(made) == 1 < model.config.num_hidden_layers


def test_training_makes_no_mask_of_queries_by_keys(model, batch, monkeypatch):
    def refuse(**arguments):
        raise AssertionError("made a dense mask")

    monkeypatch.setattr(register, "sdpa_mask", refuse)
    model.train()(**batch)
    with pytest.raises(AssertionError, match="made a dense mask"):
        model.eval()(**batch)


def test_the_mask_survives_being_sent_to_another_device(model, seed):
    """accelerate sends a layer's arguments to its device when a model is spread over several."""
    mask = deferred_mask(model, position_ids=torch.tensor([[0, 1, 2, 0, 1, 2]]))
    sent = send_to_device({"attention_mask": mask}, "meta")["attention_mask"]
    assert sent.cuts(
        6, group_size=None, position_ids=torch.tensor([[0, 1, 2, 0, 1, 2]]), cu_seqlens=None
    ).unshifted == (
        3,
        3,
    )
    assert torch.equal(sent.dense, mask.dense)


# check_s2_reaches


class OwnAttentionConfig(PreTrainedConfig):
    """Configures a model that computes attention by itself."""

    model_type = "own-attention"


class OwnAttention(PreTrainedModel):
    """Computes attention by itself."""

    config_class = OwnAttentionConfig
    _supports_sdpa = True
    _supports_attention_backend = True

    def __init__(self, config: OwnAttentionConfig) -> None:
        super().__init__(config)
        self.embedding = torch.nn.Embedding(8, 4)
        self.post_init()

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, use_cache: bool | None = None):
        hidden = self.embedding(input_ids)
        hidden = torch.nn.functional.scaled_dot_product_attention(hidden, hidden, hidden, is_causal=True)
        return CausalLMOutput(logits=hidden)


class BrokenConfig(PreTrainedConfig):
    """Configures a model that cannot run."""

    model_type = "broken"


class Broken(OwnAttention):
    """Looks up its attention in a table of its own."""

    config_class = BrokenConfig

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, use_cache: bool | None = None):
        return {"sdpa": None}[self.config._attn_implementation]


AutoModelForCausalLM.register(OwnAttentionConfig, OwnAttention)
AutoModelForCausalLM.register(BrokenConfig, Broken)

PER_HEAD = {"head_dim": 8}
REACHED = [
    LlamaConfig(**SIZES),
    mistral(sliding_window=None),
    Qwen3Config(**SIZES, **PER_HEAD),
    MixtralConfig(**SIZES, num_local_experts=4, sliding_window=None),
    Gemma3TextConfig(**SIZES, **PER_HEAD, layer_types=["sliding_attention", "full_attention"]),  # window of 4096
]


@pytest.mark.parametrize("config", REACHED, ids=[config.model_type for config in REACHED])
def test_architectures_that_train_with_s2_pass(config):
    before = copy.deepcopy(config.to_dict())
    attention = config._attn_implementation
    check_s2_reaches(config)
    assert config.to_dict() == before
    assert config._attn_implementation == attention
    assert AttentionInterface()["s2"] is register._s2_attention_forward


REFUSED = [
    (OwnAttentionConfig(), "no layer of own-attention would train with S²-Attn"),
    (mistral(sliding_window=4), "no layer of mistral would train with S²-Attn"),
    (mistral(sliding_window=4096), "no layer of mistral would train with S²-Attn"),
    (BrokenConfig(), r"broken does not run with attn_implementation=\"s2\" \(KeyError: 's2'\)"),
    (Gemma2Config(**SIZES, **PER_HEAD), "Gemma2Attention needs softcap"),
    (LlamaConfig(**SIZES, attention_dropout=0.1), "no attention dropout"),
]


@pytest.mark.parametrize(("config", "message"), REFUSED, ids=[message[:20] for _, message in REFUSED])
def test_architectures_that_would_not_train_with_s2_are_refused(config, message):
    with pytest.raises(ConfigError, match=message):
        check_s2_reaches(config)
    assert AttentionInterface()["s2"] is register._s2_attention_forward
