import copy
import random

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM as Auto
from transformers import (
    CohereConfig,
    DeepseekV3Config,
    DynamicCache,
    FalconConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    PhiConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3Config,
    SmolLM3Config,
)
from transformers.models.llama.modeling_llama import LlamaForCausalLM, repeat_kv, rotate_half

import longlora.inference.streaming_cache
from longlora.errors import ConfigError
from longlora.inference.streaming_cache import NUM_SINKS, KeyRotation, StreamingCache, key_rotations

VOCABULARY = 61
COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_attention_heads": 3,
    "max_position_embeddings": 32,
    "initializer_range": 0.3,  # large, so that every token that is seen counts
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": None,
}
TOLERANCE = 1e-4  # absolute, of logits around 10: weights in float64, but rotary angles in float32
# Errors are about log-normal: over 360 draws of three layers, log10 of the largest is -4.79 ± 0.19, so this is nine
# standard deviations away. One token more in sight moved a logit by 5.4 at least.
TOLERANCE_OF_LAYERS = 1e-3


def rope(kind: str, **more: float) -> dict[str, object]:
    return {"rope_theta": 10_000.0, "rope_type": kind, **more}


FAMILIES = {
    "default": LlamaConfig(**COMMON, num_key_value_heads=1),
    "linear": LlamaConfig(**COMMON, rope_parameters=rope("linear", factor=4.0)),
    "yarn": LlamaConfig(
        **COMMON, rope_parameters=rope("yarn", factor=4.0, original_max_position_embeddings=8)
    ),  # with its scale of the attention
    "llama3": LlamaConfig(
        **COMMON,
        rope_parameters=rope(
            "llama3", factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8
        ),
    ),
    "gpt-neox": GPTNeoXConfig(**COMMON),  # a quarter of each head turns
    "phi": PhiConfig(**COMMON),
    "cohere": CohereConfig(**COMMON),  # neighbours turn together
    "qwen3": Qwen3Config(**COMMON, head_dim=16, num_key_value_heads=1),
}


def model_of(config: PreTrainedConfig, seed: int, *, num_layers: int = 1) -> PreTrainedModel:
    config = copy.deepcopy(config)
    config.num_hidden_layers = num_layers
    torch.manual_seed(seed)
    return Auto.from_config(config).double().eval()


def some_tokens(count: int, seed: int) -> list[int]:
    draw = random.Random(seed)
    return [draw.randrange(1, VOCABULARY) for _ in range(count)]


@torch.no_grad()
def streamed_logits(
    model: PreTrainedModel, tokens: list[int], cache: StreamingCache, pieces: int = 1, rebase: bool = False
) -> Tensor:
    logits = []
    for begin in range(0, len(tokens), pieces):
        ids = torch.tensor([tokens[begin : begin + pieces]])
        logits.append(model(input_ids=ids, past_key_values=cache, use_cache=True).logits[0])
        if rebase:
            cache.rebase()
    return torch.cat(logits)


@torch.no_grad()
def logits_of_one_layer(model: PreTrainedModel, tokens: list[int], *, window: int, sinks: int) -> Tensor:
    """The definition for one layer, whose keys depend on their own token alone: read sinks and window as a text."""
    rows = []
    for end in range(1, len(tokens) + 1):
        seen = tokens[:end] if end <= window else tokens[:sinks] + tokens[end - window + sinks : end]
        rows.append(model(input_ids=torch.tensor([seen]), use_cache=False).logits[0, -1])
    return torch.stack(rows)


@torch.no_grad()
def logits_of_the_paper(model: LlamaForCausalLM, tokens: list[int], *, window: int, sinks: int) -> Tensor:
    """StreamingLLM as its authors wrote it: keys are kept as they are before rotation, and turned at each token."""
    inner, num_heads = model.model, model.config.num_attention_heads
    kept = [[] for _ in inner.layers]
    rows = []
    for token in tokens:
        hidden = inner.embed_tokens(torch.tensor([[token]]))  # (1, 1, hidden)
        for layer, memory in zip(inner.layers, kept, strict=True):
            attention, normed = layer.self_attn, layer.input_layernorm(hidden)
            query, key, value = (
                project(normed).view(1, -1, attention.head_dim).transpose(0, 1)  # (H, 1, D)
                for project in (attention.q_proj, attention.k_proj, attention.v_proj)
            )
            memory.append((key, value))
            if len(memory) > window:
                del memory[sinks]
            cosine, sine = inner.rotary_emb(hidden, position_ids=torch.arange(len(memory))[None])  # (1, L, D)
            keys, values = (torch.cat(states, dim=1) for states in zip(*memory, strict=True))  # (H_kv, L, D)
            keys = keys * cosine + rotate_half(keys) * sine
            query = query * cosine[:, -1:] + rotate_half(query) * sine[:, -1:]
            keys, values = (repeat_kv(states[None], num_heads // keys.shape[0])[0] for states in (keys, values))
            scores = (query @ keys.transpose(1, 2)) * attention.scaling  # (H, 1, L)
            attended = (scores.softmax(-1) @ values).transpose(0, 1).reshape(1, 1, -1)
            hidden = hidden + attention.o_proj(attended)
            hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        rows.append(model.lm_head(inner.norm(hidden))[0, 0])
    return torch.stack(rows)


@pytest.mark.parametrize("family", FAMILIES)
def test_one_layer_reads_as_if_sinks_and_window_were_the_whole_text(family: str, seed: int) -> None:
    model = model_of(FAMILIES[family], seed)
    tokens = some_tokens(41, seed)
    cache = StreamingCache(key_rotations(model), window=13, num_sinks=3)
    expected = logits_of_one_layer(model, tokens, window=13, sinks=3)
    torch.testing.assert_close(streamed_logits(model, tokens, cache), expected, atol=TOLERANCE, rtol=0)
    assert cache.layers[0].keys.shape[2] == 13


@pytest.mark.parametrize("sinks", [0, 1, 4])
def test_several_layers_read_as_in_the_paper(sinks: int, seed: int) -> None:
    model = model_of(FAMILIES["default"], seed, num_layers=3)
    tokens = some_tokens(67, seed)
    expected = logits_of_the_paper(model, tokens, window=11, sinks=sinks)
    rotations = key_rotations(model)
    found = streamed_logits(model, tokens, StreamingCache(rotations, window=11, num_sinks=sinks))
    torch.testing.assert_close(found, expected, atol=TOLERANCE_OF_LAYERS, rtol=0)
    other = streamed_logits(model, tokens, StreamingCache(rotations, window=12, num_sinks=sinks))
    assert (other - expected).abs().max() > 100 * TOLERANCE_OF_LAYERS  # one token more in sight, and the test sees it


def test_counting_positions_anew_changes_nothing(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(FAMILIES["default"], seed, num_layers=2)
    tokens = some_tokens(60, seed)
    expected = logits_of_the_paper(model, tokens, window=11, sinks=2)
    rotations = key_rotations(model)
    untouched = StreamingCache(rotations, window=11, num_sinks=2)
    streamed_logits(model, tokens, untouched, rebase=True)
    assert untouched.get_seq_length() == 60  # small yet
    monkeypatch.setattr(longlora.inference.streaming_cache, "REBASE_AFTER", 17)
    cache = StreamingCache(rotations, window=11, num_sinks=2)
    found = streamed_logits(model, tokens, cache, rebase=True)
    torch.testing.assert_close(found, expected, atol=TOLERANCE_OF_LAYERS, rtol=0)
    assert cache.get_seq_length() <= 17


@pytest.mark.parametrize("family", ["default", "gpt-neox", "cohere"])
@pytest.mark.parametrize("pieces", [1, 5])
def test_a_window_that_holds_everything_is_the_ordinary_cache(family: str, pieces: int, seed: int) -> None:
    model = model_of(FAMILIES[family], seed, num_layers=2)
    tokens = some_tokens(23, seed)
    expected = streamed_logits(model, tokens, DynamicCache(), pieces)
    found = streamed_logits(model, tokens, StreamingCache(key_rotations(model), window=23), pieces)
    assert torch.equal(found, expected)


def test_pieces_see_the_sinks_and_as_much_as_fits_beside_them(seed: int) -> None:
    model = model_of(FAMILIES["default"], seed)
    tokens = some_tokens(30, seed)
    cache = StreamingCache(key_rotations(model), window=12, num_sinks=2)
    found = streamed_logits(model, tokens, cache, pieces=5)
    for end in range(13, 31):
        begin = (end - 1) // 5 * 5  # of the piece
        seen = tokens[:2] + tokens[begin - (12 - 5 - 2) : end]
        with torch.no_grad():
            expected = model(input_ids=torch.tensor([seen]), use_cache=False).logits[0, -1]
        torch.testing.assert_close(found[end - 1], expected, atol=TOLERANCE, rtol=0)


def test_generate_streams_rows_of_a_batch_as_if_each_were_alone(seed: int) -> None:
    model = model_of(FAMILIES["default"], seed, num_layers=2)
    rotations = key_rotations(model)
    rows = [some_tokens(19, seed + index) for index in range(3)]
    cache = StreamingCache(rotations, window=9, num_sinks=2)
    together = model.generate(
        torch.tensor(rows), past_key_values=cache, prefill_chunk_size=1, max_new_tokens=12, do_sample=False
    )
    for row, result in zip(rows, together, strict=True):
        expected = list(row)
        logits = logits_of_the_paper(model, expected, window=9, sinks=2)
        for _ in range(12):
            expected.append(int(logits[-1].argmax()))
            logits = logits_of_the_paper(model, expected, window=9, sinks=2)
        assert result.tolist() == expected


def test_generate_goes_on_from_a_cache_that_has_dropped_tokens(seed: int) -> None:
    model = model_of(FAMILIES["default"], seed, num_layers=2)
    rotations = key_rotations(model)
    tokens = torch.tensor([some_tokens(21, seed)])
    whole = StreamingCache(rotations, window=9, num_sinks=2)
    settings = {"do_sample": False, "prefill_chunk_size": 1}
    expected = model.generate(tokens, past_key_values=whole, max_new_tokens=14, **settings)
    cache = StreamingCache(rotations, window=9, num_sinks=2)
    first = model.generate(tokens, past_key_values=cache, max_new_tokens=6, **settings)
    for layer in cache.layers:
        layer.rebase()
    # From here on only the new token is given, and a mask of what has been counted.
    mask = torch.ones(1, cache.get_seq_length() + 1, dtype=torch.long)
    rest = model.generate(first[:, -1:], attention_mask=mask, past_key_values=cache, max_new_tokens=8, do_sample=False)
    assert torch.cat([first, rest[:, 1:]], dim=1).tolist() == expected.tolist()


def test_beams_take_their_rows_along(seed: int) -> None:
    model = model_of(FAMILIES["default"], seed, num_layers=2)
    tokens = torch.tensor([some_tokens(6, seed)])
    settings = {"num_beams": 3, "max_new_tokens": 8, "do_sample": False}
    cache = StreamingCache(key_rotations(model), window=40)
    assert torch.equal(model.generate(tokens, past_key_values=cache, **settings), model.generate(tokens, **settings))


def test_forgetting_everything_begins_anew(seed: int) -> None:
    model = model_of(FAMILIES["default"], seed)
    tokens = some_tokens(20, seed)
    cache = StreamingCache(key_rotations(model), window=7, num_sinks=1)
    first = streamed_logits(model, tokens, cache)
    cache.reset()
    assert cache.get_seq_length() == 0
    assert torch.equal(streamed_logits(model, tokens, cache), first)


def test_low_precision_keeps_its_own_rounding_and_no_more(seed: int) -> None:
    model = model_of(FAMILIES["default"], seed, num_layers=2).to(torch.bfloat16)
    rotations = key_rotations(model)
    tokens = some_tokens(300, seed)
    cache = StreamingCache(rotations, window=16, num_sinks=2)
    found = streamed_logits(model, tokens, cache)[-1]
    exact = StreamingCache(rotations, window=16, num_sinks=2)
    expected = streamed_logits(model.to(torch.float32), tokens, exact)[-1]
    # 0.017 on average of 20 seeds; the bound is 4 standard deviations of the logarithm above.
    assert (found.float() - expected).norm() / expected.norm() < 0.1


def test_layers_without_positions_are_left_alone(seed: int) -> None:
    config = SmolLM3Config(**COMMON, num_hidden_layers=2, num_key_value_heads=1, no_rope_layers=[1, 0])
    model = model_of(config, seed, num_layers=2)
    keys = torch.randn(1, 1, 2, 16)
    turning, resting = key_rotations(model)
    assert not torch.equal(turning(keys, 5), keys)
    assert torch.equal(resting(keys, 5), keys)


def test_turning_there_and_back_is_nothing_and_keeps_lengths(seed: int) -> None:
    torch.manual_seed(seed)
    rotate = KeyRotation(torch.rand(3), interleaved=True)
    keys = torch.randn(2, 3, 4, 9)
    turned = rotate(keys, 1000)
    torch.testing.assert_close(turned.norm(dim=-1), keys.norm(dim=-1))
    torch.testing.assert_close(rotate(turned, -1000), keys)
    assert torch.equal(turned[..., 6:], keys[..., 6:])
    assert (turned - keys).abs().amax(dim=(1, 2, 3)).min() > 0.1


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        (GPT2Config(vocab_size=VOCABULARY, n_embd=48, n_head=3, n_positions=32), "no rotary positions"),
        (FalconConfig(**COMMON, alibi=True), "no rotary positions"),
        (LlamaConfig(**COMMON, rope_parameters=rope("dynamic", factor=4.0)), "change with the length"),
        (
            LlamaConfig(
                **COMMON,
                rope_parameters=rope(
                    "longrope",
                    factor=4.0,
                    original_max_position_embeddings=8,
                    short_factor=[1.0] * 8,
                    long_factor=[2.0] * 8,
                ),
            ),
            "change with the length",
        ),
        (
            DeepseekV3Config(
                **COMMON,
                num_key_value_heads=3,
                kv_lora_rank=16,
                q_lora_rank=None,
                qk_nope_head_dim=12,
                qk_rope_head_dim=4,
                v_head_dim=16,
                first_k_dense_replace=9,
            ),
            "the values of layer 0 of deepseek_v3 do not stay",
        ),
        (MistralConfig(**COMMON, num_key_value_heads=1, sliding_window=16), "DynamicSlidingWindowLayer"),
    ],
    ids=["learned", "alibi", "dynamic", "longrope", "latent", "sliding"],
)
def test_models_that_it_cannot_work_for_are_refused(config: PreTrainedConfig, complaint: str, seed: int) -> None:
    with pytest.raises(ConfigError, match=complaint):
        key_rotations(model_of(config, seed))


def test_keys_that_turn_otherwise_are_refused(seed: int) -> None:
    model = model_of(FAMILIES["default"], seed)
    honest = model.model.rotary_emb.forward
    model.model.rotary_emb.forward = lambda hidden, position_ids: honest(hidden, position_ids=position_ids**2)
    with pytest.raises(ConfigError, match="do not turn"):
        key_rotations(model)


def test_impossible_sizes_are_refused(seed: int) -> None:
    with pytest.raises(ConfigError, match="window=5 with 4 sinks"):
        StreamingCache([], window=NUM_SINKS + 1)
    with pytest.raises(ConfigError, match="at least two tokens more"):
        StreamingCache([], window=9, num_sinks=-1)
    model = model_of(FAMILIES["default"], seed)
    rotations = key_rotations(model)
    cache = StreamingCache(rotations, window=8)
    with torch.no_grad(), pytest.raises(ConfigError, match=r"prefill_chunk_size.* at most 3"):
        model.generate(torch.tensor([some_tokens(9, seed)]), past_key_values=cache, max_new_tokens=1)
