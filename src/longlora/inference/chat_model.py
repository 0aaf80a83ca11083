"""A chat model: loading, rendering messages to tokens, and the settings for its answers."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from longlora.errors import ConfigError
from longlora.inference.streaming_cache import KeyRotation, key_rotations
from longlora.models.chat_template import ensure_chat_template, render_chat
from longlora.models.load import load_for_inference
from longlora.models.positions import readable_context
from longlora.support.choices import DtypeName, Quantization

logger = logging.getLogger("longlora")

Message = dict[str, str]
_ANSWER_TOKENS = 512


@dataclass(frozen=True, kw_only=True)
class ChatSettings:
    """The user's settings.

    Raises:
        ConfigError: a value is out of range.
    """

    max_new_tokens: int | None = None  # maximum length of an answer, kept free; None: see `answer_length`
    temperature: float = 0.0  # 0 always takes the likeliest token; above 0, tokens are sampled
    top_p: float = 1.0  # sample only from the likeliest tokens that together have this probability
    system: str = ""  # message that starts every conversation; empty for none
    cut: bool = True  # whether to cut the middle of a document that does not fit, instead of refusing it
    stream_window: int | None = None  # tokens visible at a time: attention sinks and a recent window; None for all

    def __post_init__(self) -> None:
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens must be at least 1, got {self.max_new_tokens}")
        if self.temperature < 0:
            raise ConfigError(f"temperature must be 0 (the likeliest token) or above, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p must be above 0 and at most 1, got {self.top_p}")
        if self.top_p < 1 and self.temperature == 0:
            raise ConfigError("top_p has no effect without a temperature: set temperature, for example to 0.7")

    def answer_length(self, context: int) -> int:
        """Return the maximum length of an answer in a context of that many tokens: as set, or min(512, context / 4).

        Raises:
            ConfigError: the length that was set leaves no room for a question.
        """
        if self.max_new_tokens is None:
            return max(1, min(_ANSWER_TOKENS, context // 4))
        if self.max_new_tokens >= context:
            raise ConfigError(
                f"answers of {self.max_new_tokens:,} tokens leave no room for a question in a context of {context:,}; "
                "set max_new_tokens lower"
            )
        return self.max_new_tokens


@dataclass(kw_only=True)
class ChatModel:
    """A model and its tokenizer; several conversations may share it, one at a time.

    A tokenizer without a chat template is given the paper's prompt.
    """

    model: PreTrainedModel | PeftModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    context: int = field(init=False)  # tokens that the model reads

    def __post_init__(self) -> None:
        if ensure_chat_template(self.tokenizer):
            logger.info("the tokenizer has no chat template: using the paper's prompt, [INST]…[/INST]")
        self.context = readable_context(self.model.config)

    @cached_property
    def key_rotations(self) -> list[KeyRotation]:
        """Key rotations for streaming memories, shared by all conversations."""
        return key_rotations(self.model)

    def text(self, messages: Sequence[Message]) -> str:
        """Render messages; after a question, up to where the answer begins.

        Raises:
            ConfigError: the template refuses them.
        """
        is_question = bool(messages) and messages[-1]["role"] == "user"
        return render_chat(self.tokenizer, messages, ask=is_question, name=self.name)

    def tokens(self, text: str) -> list[int]:
        """Tokenize text from the template, including its special tokens, or a part of it."""
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Render and tokenize messages."""
        return self.tokens(self.text(messages))

    def continuation(self, system: Sequence[Message], answer: str, question: str) -> list[int]:
        """Return the tokens between an answer and the next one: the end of its turn, and the question.

        The conversation before it is not needed: two turns show how the template continues.
        """
        asked = [*system, {"role": "user", "content": "?"}]
        so_far = self.text(asked) + answer
        whole = self.text([*asked, {"role": "assistant", "content": answer}, {"role": "user", "content": question}])
        if not whole.startswith(so_far):  # the template rewrites earlier turns
            whole, so_far = self.text([{"role": "user", "content": question}]), ""
        return self.tokens(whole[len(so_far) :])


def load_chat_model(
    name: str, *, dtype: DtypeName = "auto", quantization: Quantization | None = None, trust_remote_code: bool = False
) -> ChatModel:
    """Load a model to chat with, merged or an adapter.

    Raises:
        CheckpointError: the model is missing, incomplete or damaged.
        ConfigError: the package for 4-bit weights is not installed.
    """
    model, tokenizer = load_for_inference(
        name, dtype=dtype, quantization=quantization, trust_remote_code=trust_remote_code
    )
    return ChatModel(model=model, tokenizer=tokenizer, name=name)
