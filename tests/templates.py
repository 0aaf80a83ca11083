"""Chat templates in the forms that published models have, and their tokens."""

from transformers import PreTrainedTokenizerBase

CHATML = (
    "{%- for m in messages -%}{{- '<|im_start|>' ~ m.role ~ '\\n' ~ m.content ~ '<|im_end|>\\n' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)
"""Qwen's; the tokenizers of its base models name another EOS."""

PHI_3 = (
    "{%- for m in messages -%}{{- '<|' ~ m.role ~ '|>\\n' ~ m.content ~ '<|end|>\\n' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>\\n' -}}{%- else -%}{{- eos_token -}}{%- endif -%}"
)
"""Every turn ends with a token of its own, and the text with EOS besides."""

GLM = (
    "{{- '[gMASK]<sop>' -}}{%- for m in messages -%}{{- '<|' ~ m.role ~ '|>\\n' ~ m.content -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>\\n' -}}{%- endif -%}"
)
"""Nothing ends a turn but the beginning of the next."""

LLAMA_2 = (
    "{%- for m in messages -%}{%- if m.role == 'assistant' -%}{{- ' ' ~ m.content.strip() ~ ' ' ~ eos_token -}}"
    "{%- else -%}{{- bos_token ~ '[INST] ' ~ m.content.strip() ~ ' [/INST]' -}}{%- endif -%}{%- endfor -%}"
)

_TOKENS = ["<|im_start|>", "<|im_end|>", "<|user|>", "<|assistant|>", "<|end|>", "[gMASK]", "<sop>"]


def with_template(tokenizer: PreTrainedTokenizerBase, template: str | None) -> None:
    """Give a tokenizer a template, and the tokens of all templates, in place."""
    tokenizer.chat_template = template
    tokenizer.add_special_tokens({"extra_special_tokens": _TOKENS})
