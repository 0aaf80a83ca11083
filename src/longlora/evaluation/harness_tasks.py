"""Which calls of the harness a user's list of tasks means: groups taken apart, lengths passed as each task wants.

RULER and BABILong come in lengths of their prompts, and are told them; LongProc in lengths of its answers, for which
there must be room; LongBench, InfiniteBench and SCROLLS have texts as long as they are, cut where they do not fit.
"""

import difflib
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from longlora.errors import ConfigError, DataError

logger = logging.getLogger("longlora")

# A standard suite of short tasks, for what an extension cost; each is a few megabytes of data.
SHORT_TASKS = ("arc_easy", "hellaswag", "piqa", "winogrande")
_RULER_LENGTHS = tuple(2**power for power in range(12, 18))  # those that lm-eval's RULER reports
# What lm-eval[ruler] brings, by the names of the tasks that import it.
_RULER_NEEDS = (("niah_", ("wonderwords", "nltk")), ("ruler_cwe", ("wonderwords",)), ("ruler_fwe", ("scipy",)))
_BABILONG_KILOTOKENS = (1, 2, 4, 8, 16, 32, 64, 128)
_LONGPROC_ANSWERS = {"_0.5k": 1024, "_2k": 3072, "_8k": 9216}  # tokens that lm-eval reserves for them


@dataclass(frozen=True, kw_only=True)
class Call:
    """One task for the harness."""

    name: str  # what its result is called
    spec: str  # its name, or its file, for the harness
    manager: Any  # the harness's own manager of tasks, which knows lengths and tokenizer
    lengths: list[int] | None = None  # tokens of its texts, where it comes in lengths
    single: bool = True  # whether it is one task, so that `name` is its


def plan_calls(
    tasks: Sequence[str],
    task_files: Sequence[str | Path],
    *,
    lengths: Sequence[int] | None,
    context: int,
    tokenizer_path: str,
) -> list[Call]:
    """Turn names and files into calls: groups into their tasks, RULER and BABILong into a call for each length.

    Raises:
        ConfigError: a name or a file is not known, or a task does not come in a length.
    """
    calls = []
    for path in (Path(path).expanduser() for path in task_files):
        if not path.is_file() or path.suffix not in (".yaml", ".yml"):
            raise ConfigError(f"--task-file must be an lm-eval YAML file, and {path} is not one")
        calls.append(Call(name=path.stem, spec=str(path), manager=_manager({}), single=False))
    if not tasks and not calls:
        raise ConfigError("name tasks with --tasks, or your own file with --task-file")
    if not tasks:
        return calls
    known = _manager({}, defaults=True)
    names = list(dict.fromkeys(leaf for task in tasks for leaf in _leaves(task, known.task_index)))
    names = [name for name in names if _has_room_for_answers(name, context)]
    ruler = [name for name in names if _is_ruler(name)]
    babilong = [name for name in names if name.startswith("babilong")]

    def at_length(family: list[str], size: str, wanted: Any, length: int) -> list[Call]:
        # A manager of a task's folder alone is there at once, one of all 14,000 tasks is not.
        folder = Path(known.task_index[family[0]].yaml_path).parent
        manager = _manager({"max_seq_lengths": wanted, "tokenizer": tokenizer_path}, folder=folder)
        return [Call(name=f"{name}@{size}", spec=name, manager=manager, lengths=[length]) for name in family]

    # A call for each length: RULER puts its lengths one after another, and the first so many would all be short.
    for length in _ruler_lengths(lengths, context) if ruler else []:
        calls += at_length(ruler, str(length), [length], length)
    for size in _babilong_sizes(lengths, context) if babilong else []:
        calls += at_length(babilong, f"{size}k", f"{size}k", 1024 * size)
    return calls + [Call(name=name, spec=name, manager=known) for name in names if name not in (*ruler, *babilong)]


def _manager(metadata: dict[str, Any], *, defaults: bool = False, folder: Path | None = None) -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager(include_defaults=defaults, include_path=folder, metadata=metadata)


def _has_room_for_answers(name: str, context: int) -> bool:
    """Whether answers of LongProc leave room for a prompt; a task whose do not is left out with a warning."""
    answer = next((size for end, size in _LONGPROC_ANSWERS.items() if name.endswith(end)), 0)
    if not name.startswith("longproc") or answer < context:
        return True
    logger.warning("%s is left out: its answers take %s of %s tokens", name, f"{answer:,}", f"{context:,}")
    return False


def _is_ruler(name: str) -> bool:
    return name.startswith(("ruler", "niah_"))


def _leaves(task: str, index: dict[str, Any]) -> list[str]:
    """Take a group or a tag apart, down to tasks that can be run and finished one by one."""
    if task == "short":
        return list(SHORT_TASKS)
    if task == "scrolls" and task not in index:  # lm-eval 0.4.13 has its tasks, and no group of them
        return sorted(name for name in index if name.startswith("scrolls_"))
    task = "babilong_longctx" if task == "babilong" else task
    if task not in index:
        close = difflib.get_close_matches(task, index, n=3)
        hint = f"; did you mean {', '.join(close)}?" if close else ""
        raise ConfigError(f"lm-eval knows no task {task!r}{hint}")
    kind, members = index[task].kind.name, list[Any]()
    if kind == "TAG":
        members = sorted(index[task].tags)
    elif kind == "GROUP":
        members = list((index[task].cfg or {}).get("task") or [])
    if not members or not all(isinstance(member, str) and member in index for member in members):
        return [task]
    return [leaf for member in members for leaf in _leaves(member, index)]


def _ruler_lengths(lengths: Sequence[int] | None, context: int) -> list[int]:
    """Lengths for RULER: those asked for, else the usual ones up to the context.

    Raises:
        ConfigError: one is below RULER's shortest, for which lm-eval's tasks divide by zero or look for room for ever.
    """
    shortest = _RULER_LENGTHS[0]
    if not lengths and context < shortest:
        raise ConfigError(f"RULER begins at {shortest:,} tokens, and this model reads {context:,}: leave it out")
    if lengths and min(lengths) < shortest:
        raise ConfigError(f"RULER begins at {shortest:,} tokens: leave {min(lengths):,} out of --lengths, or RULER")
    return sorted(set(lengths or (length for length in _RULER_LENGTHS if length <= context)))


def check_ruler(tasks: Sequence[str], lengths: Sequence[int] | None, context: int) -> None:
    """Refuse what RULER cannot do here before anything is loaded; lm-eval finds out task by task.

    Raises:
        ConfigError: a package is missing, or a length is too short.
        DataError: nltk's data to tell sentences apart are neither here nor to be had.
    """
    ruler = [task for task in tasks if _is_ruler(task)]
    if not ruler:
        return
    _ruler_lengths(lengths, context)
    # `ruler` itself stands for all of them.
    families = [names for prefix, names in _RULER_NEEDS if any(t == "ruler" or t.startswith(prefix) for t in ruler)]
    needed = {name for names in families for name in names}
    if missing := sorted(name for name in needed if find_spec(name) is None):
        raise ConfigError(f"{', '.join(ruler)} needs {', '.join(missing)}: pip install 'lm_eval[ruler]'")
    if "nltk" in needed and not _has_sentences():
        raise DataError(
            f"{', '.join(ruler)} needs nltk's data punkt_tab, which are not here and cannot be fetched now: run "
            "`python -m nltk.downloader punkt_tab` where there is a network, and name its folder in NLTK_DATA"
        )


def _has_sentences() -> bool:
    """Whether nltk's punkt_tab is there, after fetching it if that is allowed, as lm-eval would later."""
    nltk = import_module("nltk")  # comes with lm-eval's extra
    try:
        nltk.data.find("tokenizers/punkt_tab")
    except LookupError:
        return os.environ.get("HF_HUB_OFFLINE") != "1" and bool(nltk.download("punkt_tab", quiet=True))
    return True


def _babilong_sizes(lengths: Sequence[int] | None, context: int) -> list[int]:
    """Sizes of BABILong's texts in kilotokens; 0 is the bare questions.

    Raises:
        ConfigError: there are no texts of a length that was asked for.
    """
    if not lengths:
        return [size for size in _BABILONG_KILOTOKENS if 1024 * size <= context] or [0]
    sizes = [length // 1024 for length in sorted(set(lengths))]
    wrong = [length for length in lengths if length % 1024 or length // 1024 not in (0, *_BABILONG_KILOTOKENS)]
    if wrong:
        offered = ", ".join(str(1024 * size) for size in _BABILONG_KILOTOKENS)
        raise ConfigError(f"BABILong comes in lengths of {offered} tokens, not of {wrong[0]}")
    return sizes
