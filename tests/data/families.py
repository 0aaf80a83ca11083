"""The chat templates that TRL ships, each with a small tokenizer of the family's own tokens, and conversations."""

import re
from functools import cache
from pathlib import Path
from typing import Any

import trl.chat_template_utils
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

FOLDER = Path(trl.chat_template_utils.__file__).parent / "chat_templates"
# Of models that see: their templates take lists of parts alone.
OF_IMAGES = ("idefics3", "llava_next", "smolvlm")
TEMPLATES = {
    path.stem: path.read_text(encoding="utf-8")
    for path in sorted(FOLDER.glob("*.jinja"))
    if not path.stem.endswith("_training") and path.stem not in OF_IMAGES
}

_LINES = [
    "Call me Ishmael. Some years ago, never mind how long precisely, I thought I would sail about a little.",
    "user assistant system model think tool call response function name arguments and the answer is yes.\n\n\n",
]
_TOKEN = re.compile(
    r"<\|[^|<>\s]{1,40}\|?>|<[^|<>\s]{1,40}\|>|<｜[^<>\s]{1,40}｜>|</?(?:think|tool_call|\w+_of_turn|sop)>"
)


@cache
def _byte_level() -> str:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(_LINES, trainer)
    return backend.to_str()


@cache
def _sentence_pieces() -> str:
    """As Llama 2 has it: a space is "▁", one is put before the text, unknown characters are bytes."""
    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    specials = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=specials, show_progress=False)
    lines = [line.replace(" ", "\N{LOWER ONE EIGHTH BLOCK}") for line in _LINES]
    backend.train_from_iterator(lines, trainer)
    return backend.to_str()


def tokenizer_for(template: str, *, build: str = "bytes") -> PreTrainedTokenizerFast:
    """Make a tokenizer that has every token in a template's words."""
    backend = Tokenizer.from_str(_byte_level() if build == "bytes" else _sentence_pieces())
    specials = sorted({*_TOKEN.findall(template), "<s>", "</s>"})
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", model_max_length=1 << 30
    )
    made.chat_template = template
    return made


@cache
def family(name: str, build: str = "bytes") -> PreTrainedTokenizerFast:
    """One of TRL's, by its file's name."""
    return tokenizer_for(TEMPLATES[name], build=build)


TOOLS = (
    {
        "type": "function",
        "function": {"name": "rate", "description": "d", "parameters": {"type": "object", "properties": {}}},
    },
)

_WORDS = st.sampled_from(
    [
        "yes",
        "No.",
        "a",
        "7",
        "Call me Ishmael.",
        "two\n\nlines",
        "שלום עולם",
        "مرحبا",
        "👩‍👩‍👧 🎉",
        "größer ∮",
        "x" * 30,
        "user",
        "model",
    ]
)
_AROUND = st.sampled_from(["", "", "", " ", "\n", "\n\n", "  "])


@st.composite
def _contents(draw: st.DrawFn, *, may_be_empty: bool = False) -> str:
    if may_be_empty and draw(st.integers(0, 9)) == 0:
        return ""
    words = draw(st.lists(_WORDS, min_size=1, max_size=3))
    return draw(_AROUND) + " ".join(words) + draw(_AROUND)


@st.composite
def conversations(
    draw: st.DrawFn, *, max_messages: int = 40, bare: bool = False
) -> tuple[list[dict[str, Any]], tuple[Any, ...]]:
    """Messages by turns, at least one of them an answer; unless `bare` with thoughts and calls of a tool too."""
    messages: list[dict[str, Any]] = []
    if draw(st.booleans()):
        messages.append({"role": "system", "content": draw(_contents())})
    uses_tools = not bare and draw(st.integers(0, 3)) == 0
    num_turns = draw(st.integers(1, draw(st.sampled_from([1, 2, 3, max_messages // 2]))))
    for _ in range(num_turns):
        messages.append({"role": "user", "content": draw(_contents())})
        if uses_tools and draw(st.booleans()):
            call = {"type": "function", "function": {"name": "rate", "arguments": {"city": draw(_contents())}}}
            messages.append({"role": "assistant", "content": "", "tool_calls": [call]})
            messages.append({"role": "tool", "name": "rate", "content": draw(_contents())})
        answer = {"role": "assistant", "content": draw(_contents(may_be_empty=True))}
        kind = "none" if bare else draw(st.sampled_from(["none", "none", "none", "field", "content"]))
        if kind == "field":
            answer["reasoning_content"] = draw(_contents())
        elif kind == "content":
            answer["content"] = f"<think>\n{draw(_contents())}\n</think>\n\n{answer['content']}"
        messages.append(answer)
    if draw(st.integers(0, 5)) == 0:
        messages.append({"role": "user", "content": draw(_contents())})
    return messages, TOOLS if uses_tools else ()
