from pathlib import Path

import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM

from longlora.inference.chat_model import ChatModel, ChatSettings, load_chat_model
from longlora.inference.conversation import Chat
from longlora.inference.reading import Memory, SavedReadings, fingerprint

DOCUMENT = "The ship lay still upon the sea. " * 3


def open_document(chat_model: ChatModel, folder: Path) -> tuple[Chat, Memory, list[str], int]:
    """A conversation about the document, what was told, and how many pieces were read."""
    saved = SavedReadings(folder, "some/where/random model")
    conversation = Chat(chat_model, ChatSettings(max_new_tokens=10), saved)
    conversation.set_document("sea.txt", DOCUMENT)
    pieces: list[int] = []
    notes = conversation.read_document(lambda done, total: pieces.append(done))
    return conversation, conversation.memory, notes, len(pieces)


def test_a_reading_is_kept_and_fetched_bit_for_bit(chat_model: ChatModel, tmp_path: Path) -> None:
    _, first, (note,), read = open_document(chat_model, tmp_path / "new" / "folder")
    (path,) = (tmp_path / "new" / "folder").iterdir()  # nothing half-written beside it
    assert path.name.startswith("random-model-float32-")
    assert f"saved to {path}" in note and read == 1
    conversation, second, (note,), read = open_document(chat_model, tmp_path / "new" / "folder")
    assert "tokens loaded from" in note and read == 0
    assert second.tokens == first.tokens
    for fetched, made in zip(second.cache.layers, first.cache.layers, strict=True):
        assert torch.equal(fetched.keys, made.keys) and torch.equal(fetched.values, made.values)
    answer, _ = conversation.ask("Where?")
    list(answer)
    assert answer.num_reused == len(second.tokens) - answer.num_written - answer.num_read


def test_another_dtype_has_a_file_of_its_own(chat_model: ChatModel, tmp_path: Path) -> None:
    open_document(chat_model, tmp_path)
    chat_model.model.to(torch.bfloat16)
    *_, read = open_document(chat_model, tmp_path)
    *_, again = open_document(chat_model, tmp_path)
    assert (read, again) == (1, 0)
    assert len(list(tmp_path.iterdir())) == 2


def test_what_another_model_read_is_read_again_and_replaced(chat_model: ChatModel, tmp_path: Path) -> None:
    open_document(chat_model, tmp_path)
    with torch.no_grad():
        chat_model.model.model.layers[1].mlp.up_proj.weight.mul_(1.01)
    _, _, notes, read = open_document(chat_model, tmp_path)
    assert "is from another model or version: reading the document again" in notes[0] and read == 1
    assert "loaded from" in open_document(chat_model, tmp_path)[2][0]


@pytest.mark.parametrize("damage", ["cut short", "a bit", "not safetensors"])
def test_a_damaged_file_is_read_again_and_replaced(chat_model: ChatModel, tmp_path: Path, damage: str) -> None:
    open_document(chat_model, tmp_path)
    (path,) = tmp_path.iterdir()
    content = bytearray(path.read_bytes())
    if damage == "cut short":
        content = content[:-100]
    elif damage == "a bit":
        content[-50] ^= 1
    else:
        content = bytearray(b"nothing")
    path.write_bytes(content)
    _, _, notes, read = open_document(chat_model, tmp_path)
    assert "is damaged" in notes[0] and "reading the document again" in notes[0] and read == 1
    assert "loaded from" in open_document(chat_model, tmp_path)[2][0]


def test_a_model_with_windows_of_its_own_is_not_kept(chat_model: ChatModel, seed: int, tmp_path: Path) -> None:
    torch.manual_seed(seed)
    config = MistralConfig(**chat_model.model.config.to_dict() | {"model_type": "mistral", "sliding_window": 16})
    chat_model.model = MistralForCausalLM(config).eval()
    assert "cannot be saved to disk" in open_document(chat_model, tmp_path)[2][0]
    assert list(tmp_path.iterdir()) == []


def test_a_fingerprint_tells_models_apart_wherever_they_are(chat_model: ChatModel) -> None:
    before = fingerprint(chat_model.model)
    assert fingerprint(chat_model.model) == before
    chat_model.model.config.rope_parameters["rope_theta"] *= 2
    assert fingerprint(chat_model.model) != before


def test_a_reading_is_found_however_the_models_path_is_written(
    chat_model: ChatModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat_model.model.save_pretrained(tmp_path / "runs" / "mine")
    chat_model.tokenizer.save_pretrained(tmp_path / "runs" / "mine")
    monkeypatch.chdir(tmp_path / "runs" / "mine")
    read = []
    for name in (str(tmp_path / "runs" / "mine"), ".", "../mine/", "../../runs/mine"):
        loaded = load_chat_model(name)
        saved = SavedReadings(tmp_path / "kept", name)
        conversation = Chat(loaded, ChatSettings(max_new_tokens=10), saved)
        conversation.set_document("sea.txt", DOCUMENT)
        pieces: list[int] = []
        conversation.read_document(lambda done, total, pieces=pieces: pieces.append(done))  # type: ignore[misc]
        read.append(len(pieces))
    assert read == [1, 0, 0, 0]
    assert [path.name.partition("-")[0] for path in (tmp_path / "kept").iterdir()] == ["mine"]
