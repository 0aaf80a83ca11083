"""Memory, arithmetic and time of a training run, before anything is loaded or rented; docs/plan.md says how it counts.

    architecture.py  a model's name -> its configuration -> shapes and parameters
    job.py           the run in plain values
    activations.py   run -> what layers and loss hold, per token
    memory.py        run -> every item of one GPU's memory, and the host's
    exchange.py      run -> what GPUs that share a row send one another
    compute.py       run, GPU -> operations and time
    plan.py          run, memory -> does it fit, the longest context, what would help
    plan_report.py   plan -> a table, or JSON

Nothing here loads torch.
"""

from longlora.planner.architecture import Architecture, find_architecture, parse_architecture, published_config
from longlora.planner.compute import GIB, GPUS, Gpu, find_gpu, recognise_gpu
from longlora.planner.job import PlannedRun
from longlora.planner.plan import Advice, Plan, make_plan

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
