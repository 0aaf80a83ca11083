"""A model to talk with, and how messages become the tokens that it reads."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from longlora.errors import ConfigError
from longlora.models.chat_template import ensure_chat_template
from longlora.models.positions import readable_context

Message = dict[str, str]


@dataclass(kw_only=True)
class Speaker:
    """A model and its tokenizer; several conversations may share it, one at a time.

    A tokenizer without a chat template is given the paper's prompt.
    """

    model: PreTrainedModel | PeftModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    context: int = field(init=False)
    """Tokens that the model reads."""
    without_template: bool = field(init=False)
    """Whether the tokenizer came without a chat template."""

    def __post_init__(self) -> None:
        self.without_template = ensure_chat_template(self.tokenizer)
        self.context = readable_context(self.model.config)

    def text(self, messages: Sequence[Message]) -> str:
        """Write messages out; after a question, up to where the answer begins.

        Raises:
            ConfigError: the template does not take them.
        """
        is_question = bool(messages) and messages[-1]["role"] == "user"
        try:
            return str(
                self.tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=is_question)
            )
        except Exception as error:  # jinja's, and whatever a template raises by itself
            raise ConfigError(f"the chat template of {self.name} does not take this conversation: {error}") from error

    def tokens(self, text: str) -> list[int]:
        """Tokens of a text that the template wrote, its special tokens included, or of a part of it."""
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Tokens of messages."""
        return self.tokens(self.text(messages))

    def count(self, text: str) -> int:
        """How many tokens a text is."""
        return len(self.tokens(text))

    def continuation(self, system: Sequence[Message], answer: str, question: str) -> list[int]:
        """What follows an answer up to the next one: the end of its turn, and the question.

        The conversation before it need not be known: a template shows from two turns how one follows the other.
        """
        asked = [*system, {"role": "user", "content": "?"}]
        so_far = self.text(asked) + answer
        whole = self.text(
            [*asked, {"role": "assistant", "content": answer}, {"role": "user", "content": question}],
        )
        if not whole.startswith(so_far):  # a template that rewrites what was said
            whole, so_far = self.text([{"role": "user", "content": question}]), ""
        return self.tokens(whole[len(so_far) :])
