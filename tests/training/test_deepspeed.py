"""What accelerate makes of our ZeRO strategies is what DeepSpeed itself takes."""

import pytest
import torch
import yaml
from accelerate.utils import DeepSpeedPlugin
from tests.conftest import REPOSITORY
from tests.training.conftest import MakeRecipe

from longlora.errors import ConfigError
from longlora.training import trainer as trainer_module
from longlora.training.trainer import training_arguments

STRATEGIES = REPOSITORY / "src" / "longlora" / "training" / "strategies"


@pytest.mark.filterwarnings("ignore")  # DeepSpeed's own, of the GPU that is not there
@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeeds_own_parser_takes_the_strategy(stage: int) -> None:
    config = pytest.importorskip("deepspeed.runtime.config", reason="DeepSpeed is not installed")
    values = yaml.safe_load((STRATEGIES / f"zero{stage}.yaml").read_text(encoding="utf-8"))["deepspeed_config"]
    plugin = DeepSpeedPlugin(
        zero_stage=values["zero_stage"],
        offload_optimizer_device=values["offload_optimizer_device"],
        offload_param_device=values["offload_param_device"],
        zero3_init_flag=values["zero3_init_flag"],
    )
    # What transformers fills in for "auto" from the recipe.
    filled = {"train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 8, "train_batch_size": 8}
    parsed = config.DeepSpeedConfig({**plugin.deepspeed_config, **filled, "gradient_clipping": 1.0})
    assert parsed.zero_config.stage == stage
    assert (parsed.train_batch_size, parsed.gradient_clipping) == (8, 1.0)


def test_without_a_gpu_it_is_refused(make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer_module, "current_strategy", lambda: "zero2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    recipe = make_recipe()
    with pytest.raises(ConfigError, match="--strategy zero2 needs GPUs, and torch sees none"):
        training_arguments(recipe)
