"""The optimizers and learning-rate schedules available in recipes, by their names in transformers."""

import difflib
from collections.abc import Collection
from functools import partial

DEFAULT = "adamw_torch_fused"

_OF_BITSANDBYTES = (
    "adamw_8bit adamw_bnb_8bit paged_adamw_8bit paged_adamw_32bit ademamix ademamix_8bit paged_ademamix_8bit "
    "paged_ademamix_32bit lion_8bit lion_32bit paged_lion_8bit paged_lion_32bit rmsprop_bnb rmsprop_bnb_8bit "
    "rmsprop_bnb_32bit"
).split()

PACKAGES: dict[str, str | None] = {
    **dict.fromkeys(("adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop")),
    **dict.fromkeys(_OF_BITSANDBYTES, "bitsandbytes"),
    **dict.fromkeys(("adamw_torch_8bit", "adamw_torch_4bit"), "torchao"),
}
"""Optimizers and the package that each needs; None is torch itself. Not included from transformers' list are those that
need settings not in recipes (GaLore, APOLLO, schedule-free), replace the backward pass (LOMO), or need other
hardware."""

SCHEDULES = "constant_with_warmup constant linear cosine cosine_with_restarts polynomial inverse_sqrt".split()
"""Schedules. Not included from transformers' list are those that need a metric, or settings not in recipes."""


def _check(key: str, kind: str, known: Collection[str], name: str) -> str:
    if name in known:
        return name
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(known)}"
    raise ValueError(f"{key}={name}: no {kind} of this name; {hint}")


check_optimizer = partial(_check, "optim", "optimizer", PACKAGES)
"""Return the name if it is a supported optimizer; otherwise raise a ValueError that suggests similar ones."""

check_schedule = partial(_check, "lr_scheduler_type", "schedule", SCHEDULES)
"""Return the name if it is a supported schedule; otherwise raise a ValueError that suggests similar ones."""
