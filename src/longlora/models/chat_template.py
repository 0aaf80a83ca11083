"""Chat templates: the paper's prompt for tokenizers without a template, and a time limit for those that have one.

The paper fine-tunes Llama 2 base models, which have no template, with `[INST]question[/INST]answer` (its supervised
fine-tuning code). Set as the tokenizer's template and saved with it, this prompt is the same in training, chat and
every server that reads the tokenizer.
"""

import ctypes
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from transformers import PreTrainedTokenizerBase

from longlora.errors import CheckpointError, ConfigError, first_line

_TEMPLATE_SECONDS = 10.0  # for three short messages; the largest known template takes a few milliseconds

_TURNS = """\
{%- set opening = namespace(system='') -%}
{%- for message in messages -%}
{%- if message['role'] == 'system' -%}
{%- set opening.system = '<<SYS>>\\n' + message['content'] + '\\n<</SYS>>\\n\\n' -%}
{%- elif message['role'] == 'user' -%}
{{ '[INST]' + opening.system + message['content'] + '[/INST]' }}{%- set opening.system = '' -%}
{%- elif message['role'] == 'assistant' -%}
{{ message['content'] + eos_token }}
{%- else -%}
{{ raise_exception('a message has the role ' + message['role'] + '; system, user and assistant are known') }}
{%- endif -%}
{%- endfor -%}"""


def ensure_chat_template(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Set the paper's prompt on a tokenizer that has no chat template, in place; return whether it had none.

    A system message becomes part of the first question, as in Llama 2. The text begins with BOS if the tokenizer adds
    it to texts, and each answer ends with EOS.
    """
    if tokenizer.chat_template:
        return False
    begins_with_bos = tokenizer.bos_token_id is not None and tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
    tokenizer.chat_template = ("{{- bos_token -}}" if begins_with_bos else "") + _TURNS
    return True


def render_chat(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, Any]], *, ask: bool, name: str = "the model"
) -> str:
    """Write messages by a tokenizer's chat template, up to where an answer begins if `ask`.

    Raises:
        ConfigError: the template refuses them.
    """
    try:
        return str(tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=ask))
    except Exception as error:  # jinja's, and whatever a template raises itself
        raise ConfigError(f"the chat template of {name} refuses this conversation: {first_line(error)}") from error


def check_template_ends(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Check that a tokenizer's chat template terminates, on three messages; its other errors are reported on use.

    A template is a program. jinja's sandbox restricts what it can access, but not how long it runs.

    Raises:
        CheckpointError: the template takes too long.
    """
    if not tokenizer.chat_template:
        return
    messages = [{"role": role, "content": "Hello."} for role in ("user", "assistant", "user")]
    try:
        with _limited(_TEMPLATE_SECONDS), suppress(Exception):
            tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except _TooLong:
        raise CheckpointError(
            f"the chat template of {name} does not end within {_TEMPLATE_SECONDS:g} s on three short messages: fix "
            "it, or remove it (chat_template in tokenizer_config.json, chat_template.jinja)"
        ) from None


class _TooLong(BaseException):
    """Interrupts a template that takes too long; not an `Exception`, so that no handler in jinja catches it."""


@contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """Raise `_TooLong` in the block after a time limit, on any thread; works because jinja runs Python code."""
    thread, lock, ended = threading.get_ident(), threading.Lock(), False

    def stop() -> None:
        with lock:
            if not ended:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(_TooLong))

    timer = threading.Timer(seconds, stop)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        with lock:
            ended = True
        timer.cancel()
