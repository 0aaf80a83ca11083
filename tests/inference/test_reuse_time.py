"""What reading a document once is worth: the time to the first word of the second question."""

import json
import shutil
import time
from pathlib import Path

import pytest

from longlora.inference.chat_model import ChatSettings, load_chat_model
from longlora.inference.conversation import Chat
from longlora.tiny import tiny_model_directory
from longlora.tiny.stdlib import standard_library_files


@pytest.fixture
def longer_tiny(tmp_path: Path) -> Path:
    """The tiny model with positions squeezed to 8,192 tokens: as much work as a trained one, if not as good."""
    directory = tmp_path / "tiny-8k"
    shutil.copytree(tiny_model_directory(), directory)
    config = json.loads((directory / "config.json").read_text())
    config["rope_parameters"] |= {"rope_type": "linear", "factor": 32.0}
    config["max_position_embeddings"] = 8192
    (directory / "config.json").write_text(json.dumps(config))
    return directory


@pytest.mark.slow  # reads four thousand tokens
def test_the_second_question_about_4096_tokens_is_answered_ten_times_as_soon(longer_tiny: Path) -> None:
    chat_model = load_chat_model(str(longer_tiny))
    text = "".join(path.read_text(encoding="utf-8") for path in standard_library_files("validation")[:6])
    document = chat_model.tokenizer.decode(chat_model.tokens(text)[:4096])
    conversation = Chat(chat_model, ChatSettings(max_new_tokens=8))
    conversation.set_document("library.py", document)
    seconds = []
    for question in ("What does it define?", "What does it import?"):
        began = time.perf_counter()
        answer, _ = conversation.ask(question)
        prepared = time.perf_counter() - began
        list(answer)
        assert answer.seconds_to_first_token is not None
        seconds.append(prepared + answer.seconds_to_first_token)
        conversation.clear()
    print(f"first question {seconds[0]:.2f} s, second {seconds[1]:.3f} s: {seconds[0] / seconds[1]:.0f} times as soon")
    assert answer.num_reused > 4000
    assert seconds[0] > 10 * seconds[1]
