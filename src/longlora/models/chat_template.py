"""How a conversation is written out for a model: by its own chat template, or by the paper's prompt where it has none.

The paper fine-tunes base models of Llama 2, which have no template, with `[INST]question[/INST]answer` (its supervised
fine-tuning code). That prompt is a template too: given to the tokenizer, and saved with it, training, chat and every
server that reads tokenizers write the same prompt.
"""

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from transformers import PreTrainedTokenizerBase

from longlora.errors import CheckpointError

_TEMPLATE_SECONDS = 10.0  # for three short messages, where the largest template takes some milliseconds

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
    """Give a tokenizer without a chat template the paper's prompt, in place; whether that was needed.

    A system message goes into the first question as Llama 2 has it. The text begins with BOS where the tokenizer
    itself begins texts so, and each answer ends with EOS.
    """
    if tokenizer.chat_template:
        return False
    begins_with_bos = tokenizer.bos_token_id is not None and tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
    tokenizer.chat_template = ("{{- bos_token -}}" if begins_with_bos else "") + _TURNS
    return True


def check_template_ends(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Write three messages by a tokenizer's chat template; what else may be wrong with it is said where it is used.

    A template is a program, which jinja keeps from all but the messages; how long it takes is for us to bound.

    Raises:
        CheckpointError: it takes too long.
    """
    if not tokenizer.chat_template:
        return
    messages = [{"role": role, "content": "Hello."} for role in ("user", "assistant", "user")]
    try:
        with _limited(_TEMPLATE_SECONDS), suppress(Exception):
            tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except _TooLong:
        raise CheckpointError(
            f"the chat template of {name} does not end within {_TEMPLATE_SECONDS:g} s on three short messages: mend "
            "it, or remove it (chat_template in tokenizer_config.json, chat_template.jinja)"
        ) from None


class _TooLong(BaseException):
    """Raised in the midst of a template that takes too long; no `except Exception` of the template's stops it."""


@contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """End the block by `_TooLong` after some time, in whatever thread; jinja runs in Python, which looks for it."""
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
