"""Other people's trainers: the share of query-key pairs that attention computes is that of S²-Attn, in every batch.

Each trains one pass over documents of known lengths. The pairs that were computed are counted from the cut points that
attention got; those that should be, from the documents alone and the definition of the groups.
"""

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    DataCollatorWithFlattening,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
)

from longlora.attention import CutPoints
from longlora.models import registration as register
from longlora.models.registration import set_group_size

CONTEXT = 256
GROUP_SIZE = CONTEXT // 4
LENGTHS = (200, 17, 130, 65, 64, 33, 32, 250)  # of documents, around half a group, a group, and all of the context
EXAMPLE = Path(__file__).parents[2] / "examples" / "trl_sft.py"

pytestmark = [
    pytest.mark.filterwarnings("ignore:'pin_memory' argument is set:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*Please also pass your `args.data_collator`"),
]


@pytest.fixture
def cuts_of_training(monkeypatch: pytest.MonkeyPatch) -> list[CutPoints]:
    """Keep the cut points of every batch once, whatever the number of layers and recomputations."""
    seen: list[CutPoints] = []

    def watching(query, key, value, cuts, **named):
        if not query.is_meta and all(cuts is not other for other in seen):
            seen.append(cuts)
        return attend_in_segments(query, key, value, cuts, **named)

    attend_in_segments = register.attend_in_segments
    monkeypatch.setattr(register, "attend_in_segments", watching)
    return seen


def computed_pairs(batches: list[CutPoints]) -> int:
    """Count query-key pairs, for a head of each half."""
    segments = [n for cuts in batches for shifted in (False, True) for n in cuts.lengths(shifted=shifted)]
    return sum(n * (n + 1) // 2 for n in segments)


def pairs_by_definition(length: int, group_size: int) -> int:
    """Count the same in a document by which group each token is in: t // g, and (t - g // 2) // g where shifted."""
    time = torch.arange(length)
    groups = [(time - shift).div(group_size, rounding_mode="floor") for shift in (0, group_size // 2)]
    return sum(int((group[:, None] == group).tril().sum()) for group in groups)


def assert_share(batches: list[CutPoints], lengths: tuple[int, ...], *, padding: tuple[int, ...] = ()) -> None:
    """Stretches of padding are attended to as documents are, apart from them."""
    expected = sum(pairs_by_definition(length, GROUP_SIZE) for length in (*lengths, *padding))
    full = sum(length * (length + 1) for length in (*lengths, *padding))
    assert computed_pairs(batches) / full == expected / full < 0.6


def documents(lengths: tuple[int, ...] = LENGTHS) -> Dataset:
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(3, 250, (length,), generator=generator).tolist() for length in lengths]
    return Dataset.from_list([{"input_ids": row} for row in rows])


@pytest.fixture
def extended(base_model: Path, tmp_path: Path) -> Path:
    """The base model with a configuration for `CONTEXT` tokens."""
    directory = tmp_path / "extended"
    model = AutoModelForCausalLM.from_pretrained(base_model)
    model.config.max_position_embeddings = CONTEXT
    model.save_pretrained(directory)
    AutoTokenizer.from_pretrained(base_model).save_pretrained(directory)
    return directory


@pytest.fixture
def model(base_model: Path) -> PreTrainedModel:
    model = AutoModelForCausalLM.from_pretrained(base_model, attn_implementation="s2")
    set_group_size(model, GROUP_SIZE)
    return model


COMMON = {"num_train_epochs": 1, "save_strategy": "no", "report_to": "none", "use_cpu": True}
PADDED = {"max_length": CONTEXT}
PACKED = {"max_length": CONTEXT, "packing": True}
PADDING_FREE = {"max_length": None, "padding_free": True}


@pytest.mark.parametrize("batch_size", [1, 8])
@pytest.mark.parametrize("settings", [PADDED, PACKED, PADDING_FREE], ids=["padded", "packed", "padding-free"])
def test_trl_with_its_defaults(extended, tmp_path, settings, batch_size, cuts_of_training):
    """Nobody sets a group size: it is a quarter of the context, not of the row that TRL flattens a batch to."""
    from trl import SFTConfig, SFTTrainer

    SFTTrainer(
        model=str(extended),
        args=SFTConfig(
            output_dir=str(tmp_path / "out"),
            model_init_kwargs={"attn_implementation": "s2"},
            per_device_train_batch_size=batch_size,
            **settings,
            **COMMON,
        ),
        train_dataset=documents(),
    ).train()
    is_padded = settings is PADDED and batch_size > 1
    padding = tuple(max(LENGTHS) - length for length in LENGTHS if length < max(LENGTHS)) if is_padded else ()
    assert_share(cuts_of_training, LENGTHS, padding=padding)


def test_trl_with_documents_wrapped_around_rows(extended, tmp_path, cuts_of_training):
    """There documents have no boundaries: each row is one."""
    from trl import SFTConfig, SFTTrainer

    SFTTrainer(
        model=str(extended),
        args=SFTConfig(
            output_dir=str(tmp_path / "out"),
            model_init_kwargs={"attn_implementation": "s2"},
            packing=True,
            packing_strategy="wrapped",
            max_length=CONTEXT,
            per_device_train_batch_size=1,
            **COMMON,
        ),
        train_dataset=documents(),
    ).train()
    num_rows, rest = divmod(sum(LENGTHS), CONTEXT)
    assert_share(cuts_of_training, (CONTEXT,) * num_rows + (rest,))


@pytest.mark.parametrize("variable", [None, GROUP_SIZE])
def test_the_script_of_trl_sft(base_model, extended, tmp_path, monkeypatch, variable, cuts_of_training):
    """By the command line alone; the variable counts where the model is not extended."""
    if variable is not None:
        monkeypatch.setenv("LONGLORA_GROUP_SIZE", str(variable))
    data = tmp_path / "data"
    data.mkdir()
    (data / "train.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in documents().to_list()), encoding="utf-8"
    )
    options = {
        "model_name_or_path": extended if variable is None else base_model,
        "dataset_name": data,
        "attn_implementation": "s2",
        "packing": True,
        "max_length": CONTEXT,
        "output_dir": tmp_path / "out",
        **COMMON,
    }
    arguments = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), *arguments])
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    assert_share(cuts_of_training, LENGTHS)
    assert "s2_grouping" not in (tmp_path / "out" / "config.json").read_text()


@pytest.mark.parametrize("collator", ["padded", "flattened"])
def test_the_trainer_of_transformers(model, base_model, tmp_path, collator, cuts_of_training):
    tokenizer = AutoTokenizer.from_pretrained(base_model)
    collators = {
        "padded": DataCollatorForLanguageModeling(tokenizer, mlm=False),
        "flattened": DataCollatorWithFlattening(),
    }
    Trainer(
        model=model,
        args=TrainingArguments(output_dir=str(tmp_path / "out"), per_device_train_batch_size=8, **COMMON),
        train_dataset=documents(),
        data_collator=collators[collator],
    ).train()
    padding = tuple(max(LENGTHS) - length for length in LENGTHS if length < max(LENGTHS))
    assert_share(cuts_of_training, LENGTHS, padding=padding if collator == "padded" else ())


def test_a_loop_with_accelerate(model, cuts_of_training):
    from accelerate import Accelerator
    from torch.utils.data import DataLoader

    accelerator = Accelerator(cpu=True)
    rows = [torch.tensor(row) for row in documents()["input_ids"]]
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    model, optimizer, loader = accelerator.prepare(model.train(), optimizer, DataLoader(rows, batch_size=1))
    for row in loader:
        accelerator.backward(model(input_ids=row, labels=row).loss)
        optimizer.step()
        optimizer.zero_grad()
    assert_share(cuts_of_training, LENGTHS)


@pytest.mark.parametrize("group_size", [GROUP_SIZE - 1, GROUP_SIZE + 1, sum(LENGTHS) // 4])
def test_another_group_size_would_be_noticed(model, group_size, cuts_of_training):
    set_group_size(model, group_size)
    for row in documents()["input_ids"]:
        model.train()(torch.tensor([row]))
    with pytest.raises(AssertionError):
        assert_share(cuts_of_training, LENGTHS)
