"""The optimizers that a recipe may name, by their names in transformers, and the package that each needs."""

import difflib

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
"""Name to package; None is torch itself. Left out of transformers' list are those that need settings which no recipe
has (GaLore, APOLLO, schedule-free), that take over the backward pass (LOMO), or that are for other hardware."""


def check_optimizer(name: str) -> str:
    """Return the name of an optimizer that runs can use.

    Raises:
        ValueError: there is none of that name; the message has the nearest ones.
    """
    if name in PACKAGES:
        return name
    near = difflib.get_close_matches(name, PACKAGES, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(PACKAGES)}"
    raise ValueError(f"optim={name}: no optimizer of this name; {hint}")
