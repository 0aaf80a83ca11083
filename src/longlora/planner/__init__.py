"""Plan the memory and time of a training run before anything is loaded or rented; docs/plan.md explains the formulas.

    known_models.py  configurations bundled with longlora
    architecture.py  model name -> configuration -> shapes and parameters
    job.py           the run in plain values
    activations.py   run -> activations of layers and loss, per token
    memory.py        run -> itemized memory of one GPU and of the host
    compute.py       run, GPU -> operations, exchanges between GPUs, and time
    savings.py       run, memory -> changes that make it fit
    plan.py          run, memory -> whether it fits, the longest context, advice
    plan_report.py   plan -> a table, or JSON

Nothing here loads torch.
"""

from longlora.planner.architecture import Architecture, find_architecture, parse_architecture
from longlora.planner.compute import GIB, GPUS, Gpu, find_gpu, recognise_gpu
from longlora.planner.job import PlannedRun
from longlora.planner.known_models import KnownModel, find_known_model, known_models
from longlora.planner.plan import Advice, Plan, make_plan
from longlora.planner.savings import RunChange, needed_changes

__all__ = [
    "GIB",
    "GPUS",
    "Advice",
    "Architecture",
    "Gpu",
    "KnownModel",
    "Plan",
    "PlannedRun",
    "RunChange",
    "find_architecture",
    "find_gpu",
    "find_known_model",
    "known_models",
    "make_plan",
    "needed_changes",
    "parse_architecture",
    "recognise_gpu",
]
