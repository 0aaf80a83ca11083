"""Memory, arithmetic and time of a training run, before anything is loaded or rented; docs/plan.md says how it counts.

    source.py        a model's name  -> its configuration      (no network for the names that longlora knows)
    architecture.py  configuration   -> shapes and parameters
    run.py           the run in plain values
    activations.py   run -> what layers and loss hold, per token
    memory.py        run -> every item of one GPU's memory, and the host's
    compute.py       run, GPU -> operations and time
    plan.py          run, memory -> does it fit, the longest context, what would help
    report.py        plan -> a table, or JSON

Nothing here loads torch.
"""

from longlora.planner.architecture import Architecture, parse_architecture
from longlora.planner.hardware import GIB, GPUS, Gpu, find_gpu, recognise_gpu
from longlora.planner.job import PlannedRun
from longlora.planner.plan import Advice, Plan, make_plan
from longlora.planner.source import find_architecture, published_config

__all__ = [
    "GIB",
    "GPUS",
    "Advice",
    "Architecture",
    "Gpu",
    "Plan",
    "PlannedRun",
    "find_architecture",
    "find_gpu",
    "make_plan",
    "parse_architecture",
    "published_config",
    "recognise_gpu",
]
