"""The tokens that end an answer are those that training teaches."""

from collections.abc import Callable

import pytest
from transformers import PreTrainedTokenizerFast

from longlora.conversation import ensure_chat_template
from longlora.data import end_of_turn

_TURNS = "{%- for m in messages -%}{{- '<|' ~ m.role ~ '|>\n' ~ m.content ~ '<|end|>\n' -}}{%- endfor -%}"
_ASK = "{%- if add_generation_prompt -%}{{- '<|assistant|>\n' -}}"
PHI3 = _TURNS + _ASK + "{%- else -%}{{- eos_token -}}{%- endif -%}"
CHATML_LIKE = _TURNS + _ASK + "{%- endif -%}"


@pytest.mark.parametrize(
    ("template", "specials", "ends"),
    [
        (None, (), ("</s>",)),
        (CHATML_LIKE, ("<|end|>",), ("<|end|>",)),
        (CHATML_LIKE, (), ()),
        (PHI3, ("<|end|>",), ("<|end|>", "</s>")),
    ],
    ids=["paper", "a token of its own", "ordinary text", "two tokens"],
)
def test_the_end_of_a_turn_is_what_is_learned_last(
    make_tokenizer: Callable[..., PreTrainedTokenizerFast],
    template: str | None,
    specials: tuple[str, ...],
    ends: tuple[str, ...],
) -> None:
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": list(specials)})
    tokenizer.chat_template = template
    ensure_chat_template(tokenizer)
    assert tuple(tokenizer.convert_ids_to_tokens(list(end_of_turn(tokenizer)))) == ends
