"""A recipe is checked before anything heavy is imported, and every mistake is named with its remedy."""

from pathlib import Path

import pytest
import torch
import yaml
from transformers import get_scheduler

from longlora.config import Recipe, dump_recipe, load_recipe, parse_recipe
from longlora.config.optimizers import SCHEDULES
from longlora.errors import ConfigError

MINIMAL = {"model_name_or_path": "m", "output_dir": "o", "context_length": 8192, "data": {"source": "texts"}}


def test_defaults_are_the_paper_s() -> None:
    recipe = parse_recipe(MINIMAL)
    assert (recipe.learning_rate, recipe.weight_decay, recipe.warmup_steps) == (2e-5, 0.0, 20)
    assert (recipe.adam_beta1, recipe.adam_beta2) == (0.9, 0.95)
    assert (recipe.lr_scheduler_type, recipe.max_steps) == ("constant_with_warmup", 1000)
    assert (recipe.attention.pattern, recipe.group_size, recipe.attention.dense_finish) == ("s2", 2048, 0.0)
    assert (recipe.tuning, recipe.lora.r, recipe.lora.lora_alpha) == ("lora+", 8, 16)


def test_a_dumped_recipe_reads_back_as_the_same(tmp_path: Path) -> None:
    recipe = parse_recipe({**MINIMAL, "data": {"source": ["a", "b"]}, "attention": {"dense_finish": 0.2}})
    (tmp_path / "r.yaml").write_text(dump_recipe(recipe), encoding="utf-8")
    assert load_recipe(tmp_path / "r.yaml") == recipe


def test_overrides_reach_sections_and_create_them(tmp_path: Path) -> None:
    path = _write(tmp_path, MINIMAL)
    recipe = load_recipe(path, ["attention.dense_finish=0.25", "learning_rate=1e-4", "data.source=[x, y]"])
    assert recipe.attention.dense_finish == 0.25
    assert recipe.learning_rate == 1e-4
    assert recipe.data.source == ("x", "y")


@pytest.mark.parametrize("written", ["max_steps", "num_train_epochs"])
def test_an_override_replaces_the_other_length_of_a_run(tmp_path: Path, written: str) -> None:
    override = "max_steps" if written == "num_train_epochs" else "num_train_epochs"
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump({**MINIMAL, written: 3}))
    recipe = load_recipe(path, [f"{override}=2"])
    assert recipe.model_dump(include={"max_steps", "num_train_epochs"}, exclude_unset=True) == {override: 2}
    with pytest.raises(ConfigError, match="max_steps=4 and num_train_epochs=2: give one"):
        load_recipe(path, ["num_train_epochs=2", "max_steps=4"])


def test_an_override_with_null_replaces_nothing(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump({**MINIMAL, "max_steps": 3}))
    assert load_recipe(path, ["num_train_epochs=null"]).max_steps == 3


def test_group_size_and_the_first_dense_step() -> None:
    recipe = parse_recipe({**MINIMAL, "max_steps": 10, "attention": {"group_size": 100, "dense_finish": 0.3}})
    assert (recipe.group_size, recipe.first_dense_step) == (100, 7)
    assert parse_recipe({**MINIMAL, "max_steps": 10}).first_dense_step == 10


def test_what_is_trained_whole_follows_from_the_tuning_or_is_said() -> None:
    assert parse_recipe(MINIMAL).trainable == ("embed", "norm")
    assert parse_recipe({**MINIMAL, "tuning": "lora"}).trainable == ()
    assert parse_recipe({**MINIMAL, "lora": {"trainable": ["norm"]}}).trainable == ("norm",)


def test_only_rope_options_that_are_set_are_passed_on() -> None:
    assert parse_recipe(MINIMAL).rope.options == {}
    recipe = parse_recipe({**MINIMAL, "rope": {"rope_type": "yarn", "beta_fast": 16, "truncate": False}})
    assert recipe.rope.options == {"beta_fast": 16.0, "truncate": False}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"context_lenght": 1}, "did you mean 'context_length'?"),
        ({"cutoff_len": 1}, "did you mean 'context_length'?"),
        ({"lora": {"rank": 4}}, "unknown key 'lora.rank'"),
        ({"context_length": "long"}, "context_length='long'"),
        ({"context_length": 0}, "context_length=0"),
        ({"per_device_train_batch_size": 0}, "per_device_train_batch_size=0"),
        ({"attention": {"dense_finish": 2}}, "attention.dense_finish=2"),
        ({"attention": {"pattern": "full", "dense_finish": 0.5}}, "needs attention.pattern=s2"),
        ({"attention": {"pattern": "full", "full_attention_interval": 3}}, "needs attention.pattern=s2"),
        ({"attention": {"pattern": "full", "shift": False}}, "attention.shift=False needs attention.pattern=s2"),
        ({"attention": {"pattern": "full", "sink_tokens": 1}}, "attention.sink_tokens=1 needs attention.pattern=s2"),
        ({"attention": {"pattern": "full", "group_size": 64}}, "without groups; leave it out"),
        ({"attention": {"pattern": "full", "group_ratio": 0.5}}, "without groups; leave it out"),
        ({"attention": {"shift": "maybe"}}, "attention.shift='maybe': input should be a valid boolean"),
        ({"attention": {"full_attention_interval": 1}}, "attention.full_attention_interval=1"),
        ({"attention": {"group_size": 9000}}, "must not exceed context_length=8192"),
        ({"tuning": "qlora"}, "tuning='qlora'"),
        ({"save_total_limit": 1}, "save_total_limit=1"),
        ({"rope": {"rope_type": "cubic"}}, "rope.rope_type='cubic'"),
        ({"rope": {"beta_fast": 16}}, "rope.beta_fast belongs to rope_type yarn, not to rope.rope_type=linear"),
        (
            {"rope": {"rope_type": "llama3", "attention_factor": 1.1}},
            "rope.attention_factor belongs to rope_type yarn or longrope, not to rope.rope_type=llama3",
        ),
        ({"rope": {"rope_type": "longrope"}}, "rope.rope_type=longrope needs rope.long_factor"),
        ({"rope": {"rope_type": "longrope", "long_factor": [1, -2]}}, "rope.long_factor.1=-2"),
        ({"rope_theta": 1e6}, "did you mean 'rope.rope_theta'?"),
        ({"modules_to_save": ["embed_tokens"]}, "did you mean 'lora.trainable'?"),
        ({"lora": {"trainable": ["head"]}}, "lora.trainable.0='head'"),
        ({"tuning": "lora", "lora": {"trainable": ["norm"]}}, "lora.trainable=['norm'] needs tuning=lora+"),
        ({"lora": {"trainable": []}}, "with tuning=lora+ leaves plain LoRA"),
        ({"tuning": "lora", "embedding_learning_rate": 1e-5}, "embedding_learning_rate=1e-05: this run trains no"),
        ({"lora": {"trainable": ["norm"]}, "new_tokens": ["<a>"]}, "new_tokens=['<a>']: this run trains no embeddings"),
        ({"new_tokens": ["<a>", "<a>"]}, "must be different and not blank"),
        ({"new_tokens": [" "]}, "must be different and not blank"),
        ({"optim": "adamw_8bits"}, "optim=adamw_8bits: no optimizer of this name; did you mean adamw_8bit or"),
        ({"optim": "x"}, "no optimizer of this name; known are adamw_torch, "),
        ({"optimizer": "adamw_torch"}, "did you mean 'optim'?"),
        ({"load_in_4bit": True}, "did you mean 'quantization'?"),
        ({"quantization": "int8"}, "quantization='int8'"),
        ({"quantization": "nf4", "tuning": "full"}, "quantization=nf4 freezes the base"),
        ({"tiled_mlp": 0}, "tiled_mlp=0"),
        ({"lr_scheduler_type": "cosin"}, "lr_scheduler_type=cosin: no schedule of this name; did you mean cosine"),
        ({"lr_scheduler_type": "x"}, "no schedule of this name; known are constant_with_warmup, constant, linear"),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "no schedule of this name"),
        ({"hardware": {"gpu": 8}}, "unknown key 'hardware.gpu'; did you mean 'gpus'?"),
        ({"hardware": {"gpus": 0}}, "hardware.gpus=0"),
        ({"hardware": {"memory_gib": 0}}, "hardware.memory_gib=0"),
        ({"hardware": {"strategy": "zero4"}}, "hardware.strategy='zero4'"),
        ({"hardware": {"strategy": "zero2"}}, "hardware.strategy=zero2 does not fit hardware.gpus=1"),
        ({"hardware": {"strategy": "single", "gpus": 2}}, "hardware.strategy=single does not fit hardware.gpus=2"),
    ],
)
def test_a_wrong_recipe_is_explained(change: dict[str, object], expected: str) -> None:
    with pytest.raises(ConfigError, match=_escaped(expected)):
        parse_recipe({**MINIMAL, **change})


def test_every_problem_is_named_at_once() -> None:
    with pytest.raises(ConfigError) as raised:
        parse_recipe({"output_dir": "o", "learning_rate": -1, "data": {"source": "t"}, "colour": 1})
    for expected in ("'model_name_or_path' is required", "learning_rate=-1", "unknown key 'colour'"):
        assert expected in str(raised.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("a: [", "not valid YAML"), ("- a", "must contain a mapping"), (None, "cannot read the recipe")],
)
def test_a_file_that_is_no_recipe(tmp_path: Path, text: str | None, expected: str) -> None:
    path = tmp_path / "r.yaml"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=expected):
        load_recipe(path)


@pytest.mark.parametrize(
    ("override", "expected"),
    [("max_steps", "key=value"), ("max_steps.x=1", "is a value, not a section"), ("max_steps=[", "not valid YAML")],
)
def test_a_wrong_override(tmp_path: Path, override: str, expected: str) -> None:
    path = _write(tmp_path, {**MINIMAL, "max_steps": 3})
    with pytest.raises(ConfigError, match=expected):
        load_recipe(path, [override])


def test_every_field_has_a_sentence() -> None:
    def fields(model: type, prefix: str = "") -> list[tuple[str, str | None]]:
        found = []
        for name, info in model.model_fields.items():
            found.append((prefix + name, info.description))
            if hasattr(info.annotation, "model_fields"):
                found += fields(info.annotation, f"{prefix}{name}.")
        return found

    assert [name for name, description in fields(Recipe) if not description] == []


def _write(folder: Path, values: dict[str, object]) -> Path:
    import yaml

    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def _escaped(text: str) -> str:
    import re

    return re.escape(text)


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_runs_without_further_settings(name: str) -> None:
    weight = torch.nn.Parameter(torch.zeros(1))
    schedule = get_scheduler(name, torch.optim.SGD([weight], lr=1.0), num_warmup_steps=2, num_training_steps=9)
    for _ in range(9):
        schedule.optimizer.step()
        schedule.step()


def test_a_directory_is_no_recipe_and_where_to_put_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a directory, but a recipe is a YAML file or one of the names"):
        load_recipe(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match=rf"`longlora init {tmp_path}` writes a recipe"):
        load_recipe(tmp_path)
    (tmp_path / "recipe.yaml").write_text("")
    with pytest.raises(ConfigError, match=rf"it contains a recipe: {tmp_path}/recipe.yaml"):
        load_recipe(tmp_path)
