"""Memory, arithmetic and time of a training run, before anything is loaded or rented; docs/plan.md says how it counts.

    known_models.py  configurations that ship with longlora
    architecture.py  a model's name -> its configuration -> shapes and parameters
    job.py           the run in plain values
    activations.py   run -> what layers and loss hold, per token
    memory.py        run -> every item of one GPU's memory, and the host's
    exchange.py      run -> what GPUs that share a row send one another
    compute.py       run, GPU -> operations and time
    savings.py       run, memory -> what to switch on so that it fits
    plan.py          run, memory -> does it fit, the longest context, what would help
    plan_report.py   plan -> a table, or JSON

Nothing here loads torch.
"""

from longlora.planner.architecture import Architecture, find_architecture, parse_architecture
from longlora.planner.compute import GIB, GPUS, Gpu, find_gpu, recognise_gpu
from longlora.planner.job import PlannedRun
from longlora.planner.known_models import KnownModel, find_known_model, known_models
from longlora.planner.plan import Advice, Plan, make_plan
from longlora.planner.savings import Change, needed_changes

__all__ = [
    "GIB",
    "GPUS",
    "Advice",
    "Architecture",
    "Change",
    "Gpu",
    "KnownModel",
    "Plan",
    "PlannedRun",
    "find_architecture",
    "find_gpu",
    "find_known_model",
    "known_models",
    "make_plan",
    "needed_changes",
    "parse_architecture",
    "recognise_gpu",
]
