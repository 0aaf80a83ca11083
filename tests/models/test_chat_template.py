"""The paper's prompt as a chat template."""

import pytest
from jinja2.exceptions import TemplateError
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from longlora.data.answers import check_tokenizer
from longlora.errors import ConfigError
from longlora.evaluation.questions import render
from longlora.models.chat_template import ensure_chat_template, render_chat
from longlora.tiny import tiny_model_directory

TURNS = [
    {"role": "user", "content": " What is it?\n"},
    {"role": "assistant", "content": "A whale. "},
    {"role": "user", "content": "Whose?"},
]


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(tiny_model_directory())


def write(tokenizer: PreTrainedTokenizerBase, turns: list[dict[str, str]]) -> str:
    return tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)


def test_a_tokenizer_without_a_template_gets_the_papers_prompt(tokenizer: PreTrainedTokenizerBase) -> None:
    assert ensure_chat_template(tokenizer)
    assert write(tokenizer, TURNS) == "<s>[INST] What is it?\n[/INST]A whale. </s>[INST]Whose?[/INST]"


def test_a_system_message_stands_in_the_first_question(tokenizer: PreTrainedTokenizerBase) -> None:
    ensure_chat_template(tokenizer)
    written = write(tokenizer, [{"role": "system", "content": "Be brief."}, *TURNS])
    assert written.startswith("<s>[INST]<<SYS>>\nBe brief.\n<</SYS>>\n\n What is it?\n[/INST]A whale. </s>[INST]Whose")


def test_no_bos_where_the_tokenizer_writes_none(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.add_bos_token = False
    assert tokenizer("a")["input_ids"][0] != tokenizer.bos_token_id
    ensure_chat_template(tokenizer)
    assert write(tokenizer, TURNS).startswith("[INST] What")


def test_a_models_own_template_is_kept(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    assert not ensure_chat_template(tokenizer)
    assert write(tokenizer, TURNS) == " What is it?\n"


def test_an_unknown_role_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    ensure_chat_template(tokenizer)
    with pytest.raises(TemplateError, match="role tool"):
        write(tokenizer, [{"role": "tool", "content": "4"}])


@pytest.mark.parametrize("template", ["{{ raise_exception('no') }}", "{{" + "[" * 5000, "{% for %}"])
def test_a_template_that_refuses_is_named_wherever_it_is_used(
    tokenizer: PreTrainedTokenizerBase, template: str
) -> None:
    tokenizer.chat_template = template
    with pytest.raises(ConfigError, match="the chat template of the model refuses this conversation"):
        render_chat(tokenizer, TURNS, ask=True)
    with pytest.raises(ConfigError, match="the chat template of the model refuses this conversation"):
        render(tokenizer, "What?", "It is", chat=True)
    with pytest.raises(ConfigError, match="cannot render two plain questions and answers"):
        check_tokenizer(tokenizer)
