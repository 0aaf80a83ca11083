"""The token at which generation stops is the first that training teaches after an answer."""

from collections.abc import Callable

import pytest
from transformers import PreTrainedTokenizerFast

from longlora.data.encode import IGNORED, encode_conversation
from longlora.models.chat_template import ensure_chat_template
from longlora.models.generation import turn_end

_TURNS = "{%- for m in messages -%}{{- '<|' ~ m.role ~ '|>\n' ~ m.content ~ '<|end|>\n' -}}{%- endfor -%}"
_ASK = "{%- if add_generation_prompt -%}{{- '<|assistant|>\n' -}}"
PHI3 = _TURNS + _ASK + "{%- else -%}{{- eos_token -}}{%- endif -%}"
CHATML_LIKE = _TURNS + _ASK + "{%- endif -%}"


@pytest.mark.parametrize(
    ("template", "specials", "end"),
    [
        (None, (), "</s>"),
        (CHATML_LIKE, ("<|end|>",), "<|end|>"),
        (CHATML_LIKE, (), None),
        (PHI3, ("<|end|>",), "<|end|>"),
    ],
    ids=["paper", "a token of its own", "ordinary text", "two tokens"],
)
def test_the_end_of_a_turn_is_learned(
    make_tokenizer: Callable[..., PreTrainedTokenizerFast],
    template: str | None,
    specials: tuple[str, ...],
    end: str | None,
) -> None:
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": list(specials)})
    tokenizer.chat_template = template
    ensure_chat_template(tokenizer)
    found = turn_end(tokenizer)
    assert (None if found is None else tokenizer.convert_ids_to_tokens(found)) == end
    messages = [{"role": "user", "content": "Who is it?"}, {"role": "assistant", "content": "It is I."}]
    learned = [
        label
        for label in encode_conversation(tokenizer, messages, context_length=1000).labels
        if label in tokenizer.all_special_ids
    ]
    assert IGNORED not in learned and (learned[:1] or [None])[0] == found
