"""How a conversation is written out for a model: by its own chat template, or by the paper's prompt where it has none.

The paper fine-tunes base models of Llama 2, which have no template, with `[INST]question[/INST]answer` (its supervised
fine-tuning code). That prompt is a template too: given to the tokenizer, and saved with it, training, chat and every
server that reads tokenizers write the same prompt.
"""

from transformers import PreTrainedTokenizerBase

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
    if tokenizer.chat_template is not None:
        return False
    begins_with_bos = tokenizer.bos_token_id is not None and tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
    tokenizer.chat_template = ("{{- bos_token -}}" if begins_with_bos else "") + _TURNS
    return True
