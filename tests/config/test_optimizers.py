"""The optimizers that a recipe may name are transformers', with the packages that transformers asks for."""

import pytest
from transformers.trainer_optimizer import _BITSANDBYTES_OPTIMIZERS, _TORCHAO_OPTIMIZERS
from transformers.training_args import OptimizerNames, TrainingArguments

from longlora.config.optimizers import DEFAULT, PACKAGES, check_optimizer


def test_names_are_transformers_own() -> None:
    assert set(PACKAGES) <= {name.value for name in OptimizerNames}
    assert TrainingArguments.default_optim == DEFAULT


def test_packages_are_those_that_transformers_imports() -> None:
    needing = {package: {name for name, needs in PACKAGES.items() if needs == package} for package in PACKAGES.values()}
    assert needing["bitsandbytes"] == {name.value for name in _BITSANDBYTES_OPTIMIZERS}
    assert needing["torchao"] == {name.value for name in _TORCHAO_OPTIMIZERS}


@pytest.mark.parametrize("name", PACKAGES)
def test_a_known_name_is_returned(name: str) -> None:
    assert check_optimizer(name) == name


def test_an_unknown_name_has_near_ones() -> None:
    with pytest.raises(ValueError, match=r"optim=page_adamw_8bit: .* did you mean paged_adamw_8bit"):
        check_optimizer("page_adamw_8bit")
