"""Causal language models whose ability is known: each reads its last N tokens as text and finds the fact in them.

They answer by what they know (`knows`), by a sentence that shares words with the question (`matches`), or by drawing
one of the answers that the text offers (`guesses`).

They fit where a causal language model fits: a forward pass with logits and transformers' own cache, and transformers'
own generation on top. The cache holds token ids where other models keep keys, so what a model sees is what was cached.
"""

import random
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import Cache, DynamicCache
from transformers.modeling_outputs import CausalLMOutputWithPast

from longlora.evaluation.word_lists import ASSOCIATIONS

EVERYTHING = 10**9
CERTAIN = 30.0  # the logit of a token that the model is sure of, all others being 0


class ScriptedConfig(PreTrainedConfig):
    model_type = "scripted"

    def __init__(
        self,
        vocab_size: int = 300,
        visible: int = EVERYTHING,
        max_position_embeddings: int = 1 << 20,
        answers: str = "knows",
        **kwargs: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.visible = visible
        self.answers = answers
        self.max_position_embeddings = max_position_embeddings
        self.num_hidden_layers = 1
        super().__init__(**kwargs)


class ScriptedModel(PreTrainedModel, GenerationMixin):
    """Sees its last `config.visible` tokens; none of them if that is 0."""

    config_class = ScriptedConfig

    def __init__(self, config: ScriptedConfig, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__(config)
        self.tokenizer = tokenizer
        tokens = range(config.vocab_size) if tokenizer is not None else ()
        self.pieces = [tokenizer.decode([token], skip_special_tokens=True) for token in tokens]
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.num_tokens_read = 0
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        **_: Any,
    ) -> CausalLMOutputWithPast:
        assert attention_mask is None or bool(attention_mask.all()), "there is no padding"
        assert len(input_ids) == 1, "one prompt at a time"
        self.num_tokens_read += input_ids.shape[1]
        states = input_ids[:, None, :, None].float()  # (1, 1, T, 1); whole numbers are exact up to 2**24
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache()
        if past_key_values is not None:
            states, _ = past_key_values.update(states, states, 0)
        seen = states[0, 0, :, 0].long()
        num_rows = logits_to_keep or input_ids.shape[1]
        rows = [self.row(seen[:end]) for end in range(len(seen) - num_rows + 1, len(seen) + 1)]
        logits = self.scale * torch.stack(rows)[None]
        return CausalLMOutputWithPast(logits=logits, past_key_values=past_key_values)

    def row(self, seen: Tensor) -> Tensor:
        """Logits of the next token, (V,); all equal where the model cannot tell."""
        visible = seen[max(0, len(seen) - self.config.visible) :] if self.config.visible else seen[:0]
        token = self.next_token(visible.tolist())
        logits = torch.zeros(self.config.vocab_size)
        if token is not None:
            logits[token] = CERTAIN
        return logits

    def next_token(self, visible: list[int]) -> int | None:
        text = "".join(self.pieces[token] for token in visible)  # many times as fast as decoding
        for question, knows, offered in ABILITIES:
            match = re.search(question, text, re.DOTALL)
            answer = {"knows": knows, "matches": _by_words(offered) or knows, "guesses": _by_lot(offered)}
            told = text[: match.start()] if match else ""
            if match and (right := answer[self.config.answers](told, match.groupdict().get("what", ""))):
                target, typed = f" {right}.", match["typed"]
                if target == typed:
                    return self.tokenizer.eos_token_id
                if target.startswith(typed):
                    return self.tokenizer(target[len(typed) :], add_special_tokens=False)["input_ids"][0]
        return None


def _passkey(text: str, _: str) -> str | None:
    match = re.search(r"The pass key is (\d+)\. Remember", text)
    return match and match[1]


def _numbers(text: str, things: str) -> str | None:
    found = [re.search(rf"magic number of {thing} is (\d+)\.", text) for thing in things.split(", ")]
    return ", ".join(match[1] for match in found if match) if all(found) else None


def _code(text: str, thing: str) -> str | None:
    match = re.search(rf"The code of {thing} is (\d+)\.", text)
    return match and match[1]


def _first_topic(text: str, _: str) -> str | None:
    match = re.search(r"I would like to discuss ([^.]+)\.", text)
    return match and match[1]


def _person(text: str, description: str) -> str | None:
    fact = next(fact for fact, asked in ASSOCIATIONS if asked == description)
    match = re.search(rf"(\w+) {fact}\.", text)
    return match and match[1]


def _value(text: str, variable: str) -> str | None:
    match = re.search(rf"VAR {variable} = (?:VAR (\w+)|(\d+))\.", text)
    return match and (match[2] or _value(text, match[1]))


def _most_often(text: str, _: str) -> str | None:
    seen = Counter(re.findall(r"Report \d+: the ([a-z ]+) was seen\.", text)).most_common(2)
    return seen[0][0] if seen and (len(seen) == 1 or seen[0][1] > seen[1][1]) else None


def _by_words(offered: str) -> Callable[[str, str], str | None] | None:
    """Name the person of the sentence that shares the most words of four letters and more with the question."""
    if offered != NAME:
        return None  # in the other tests question and fact share words

    def answer(text: str, description: str) -> str | None:
        words = set(re.findall(r"\w{4,}", description.lower()))
        sentences = {sentence: words & set(re.findall(r"\w{4,}", sentence.lower())) for sentence in text.split(". ")}
        best = max(sentences, key=lambda sentence: len(sentences[sentence]), default="")
        match = re.match(NAME, f"{best}.")
        return match[1] if match and sentences[best] else None

    return answer


def _by_lot(offered: str) -> Callable[[str, str], str | None]:
    def answer(text: str, _: str) -> str | None:
        found = sorted(set(re.findall(offered, text)))
        return random.Random(text).choice(found) if found else None

    return answer


NAME = r"\b([A-Z][a-z]+) (?:[a-z]+s|[a-z]+ed|took|grew|came) [^.]*\."
# What ends the visible text, with the words typed so far, how the answer is found in what stands before it, and what
# a guess may be.
ABILITIES = [
    (r"The pass key is(?P<typed>( \d*\.?)?)$", _passkey, r"\b(\d)"),
    (r"The magic numbers? of (?P<what>[a-z ,]+?) (is|are)(?P<typed>( [\d ,]*\.?)?)$", _numbers, r"\b(\d)"),
    (r"The code of (?P<what>the [a-z]+ [a-z]+) is(?P<typed>( \d*\.?)?)$", _code, r"is (\d+)\."),
    (r"The first topic that we discussed is(?P<typed>( [a-z ]*\.?)?)$", _first_topic, r"discuss ([^.]+)\."),
    (r"in this text (?P<what>[^?]+)\? Give only the name\..{0,20}The name is(?P<typed>( \w*\.?)?)$", _person, NAME),
    (r"value of VAR (?P<what>[A-Z]+) is the number(?P<typed>( \d*\.?)?)$", _value, r"= (\d+)\."),
    (r"seen most often is the(?P<typed>( [a-z ]*\.?)?)$", _most_often, r"\d: the ([a-z ]+) was seen"),
]


def scripted(
    tokenizer: PreTrainedTokenizerBase,
    *,
    visible: int = EVERYTHING,
    positions: int = 1 << 20,
    answers: str = "knows",
) -> ScriptedModel:
    """Build a model that sees so many tokens, and answers in one of the three ways."""
    config = ScriptedConfig(
        vocab_size=len(tokenizer),
        visible=visible,
        max_position_embeddings=positions,
        answers=answers,
        eos_token_id=1,
    )
    return ScriptedModel(config, tokenizer).eval()
