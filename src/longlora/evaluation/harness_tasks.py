"""Expand a user's list of tasks into harness calls: groups into tasks, and tasks with lengths into a call per length.

RULER and BABILong generate prompts of a requested length. LongProc's variants differ in the length of the answers,
which must fit into the context. LongBench, InfiniteBench and SCROLLS have fixed texts, truncated if they do not fit.
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

# Standard short-context tasks that show what an extension cost; each downloads a few megabytes.
SHORT_TASKS = ("arc_easy", "hellaswag", "piqa", "winogrande")
_RULER_LENGTHS = tuple(2**power for power in range(12, 18))  # the lengths that lm-eval's RULER reports
# The packages that lm-eval[ruler] installs, by the prefix of the tasks that import them.
_RULER_NEEDS = (("niah_", ("wonderwords", "nltk")), ("ruler_cwe", ("wonderwords",)), ("ruler_fwe", ("scipy",)))
_BABILONG_KILOTOKENS = (1, 2, 4, 8, 16, 32, 64, 128)
_LONGPROC_ANSWERS = {"_0.5k": 1024, "_2k": 3072, "_8k": 9216}  # tokens that lm-eval reserves for the answers


@dataclass(frozen=True, kw_only=True)
class HarnessCall:
    """One call of the harness."""

    name: str  # in the results
    spec: str  # the task's name or file, as the harness expects it
    manager: Any  # the harness's task manager, configured with lengths and tokenizer
    lengths: list[int] | None = None  # prompt lengths in tokens, if the task has lengths
    single: bool = True  # whether this is a single task, whose result is called `name`


def plan_calls(
    tasks: Sequence[str],
    task_files: Sequence[str | Path],
    *,
    lengths: Sequence[int] | None,
    context: int,
    tokenizer_path: str,
) -> list[HarnessCall]:
    """Turn task names and files into calls: groups into their tasks, RULER and BABILong into a call per length.

    Raises:
        ConfigError: a task or file is unknown, or a task does not offer a requested length.
    """
    files = check_task_files(task_files)
    calls = [HarnessCall(name=path.stem, spec=str(path), manager=_manager({}), single=False) for path in files]
    if not tasks and not calls:
        raise ConfigError("name tasks with --tasks, or your own file with --task-file")
    if not tasks:
        return calls
    known = _manager({}, defaults=True)
    names = list(dict.fromkeys(leaf for task in tasks for leaf in _leaves(task, known.task_index)))
    names = [name for name in names if _has_room_for_answers(name, context)]
    ruler = [name for name in names if _is_ruler(name)]
    babilong = [name for name in names if name.startswith("babilong")]

    def at_length(family: list[str], size: str, wanted: Any, length: int) -> list[HarnessCall]:
        # A manager for the task's own folder is instant; one that indexes all 14,000 tasks is slow.
        folder = Path(known.task_index[family[0]].yaml_path).parent
        manager = _manager({"max_seq_lengths": wanted, "tokenizer": tokenizer_path}, folder=folder)
        return [HarnessCall(name=f"{name}@{size}", spec=name, manager=manager, lengths=[length]) for name in family]

    # One call per length: RULER concatenates its lengths, so a `limit` would keep only the shortest prompts.
    for length in _ruler_lengths(lengths, context) if ruler else []:
        calls += at_length(ruler, str(length), [length], length)
    for size in _babilong_sizes(lengths, context) if babilong else []:
        calls += at_length(babilong, f"{size}k", f"{size}k", 1024 * size)
    return calls + [
        HarnessCall(name=name, spec=name, manager=known) for name in names if name not in (*ruler, *babilong)
    ]


def check_task_files(paths: Sequence[str | Path]) -> list[Path]:
    """Return the paths of a user's own tasks.

    Raises:
        ConfigError: one is not a YAML file.
    """
    files = [Path(path).expanduser() for path in paths]
    for path in files:
        if not path.is_file() or path.suffix not in (".yaml", ".yml"):
            raise ConfigError(f"--task-file must be an lm-eval YAML file, and {path} is not one")
    return files


def _manager(metadata: dict[str, Any], *, defaults: bool = False, folder: Path | None = None) -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager(include_defaults=defaults, include_path=folder, metadata=metadata)


def _has_room_for_answers(name: str, context: int) -> bool:
    """Return whether a LongProc task's answers leave room for a prompt; warn if they do not."""
    answer = next((size for end, size in _LONGPROC_ANSWERS.items() if name.endswith(end)), 0)
    if not name.startswith("longproc") or answer < context:
        return True
    logger.warning("%s is left out: its answers take %s of the %s tokens", name, f"{answer:,}", f"{context:,}")
    return False


def _is_ruler(name: str) -> bool:
    return name.startswith(("ruler", "niah_"))


def _leaves(task: str, index: dict[str, Any]) -> list[str]:
    """Expand a group or tag into the tasks that can be run one by one."""
    if task == "short":
        return list(SHORT_TASKS)
    if task == "scrolls" and task not in index:  # lm-eval 0.4.13 has the tasks but no group for them
        return sorted(name for name in index if name.startswith("scrolls_"))
    task = "babilong_longctx" if task == "babilong" else task
    if task not in index:
        close = difflib.get_close_matches(task, index, n=3)
        hint = f"; did you mean {', '.join(close)}?" if close else ""
        raise ConfigError(f"lm-eval has no task {task!r}{hint}")
    kind, members = index[task].kind.name, list[Any]()
    if kind == "TAG":
        members = sorted(index[task].tags)
    elif kind == "GROUP":
        members = list((index[task].cfg or {}).get("task") or [])
    if not members or not all(isinstance(member, str) and member in index for member in members):
        return [task]
    return [leaf for member in members for leaf in _leaves(member, index)]


def _ruler_lengths(lengths: Sequence[int] | None, context: int) -> list[int]:
    """Return the lengths for RULER: those requested, else its standard ones up to the context.

    Raises:
        ConfigError: a length is below RULER's minimum, where lm-eval's tasks divide by zero or loop forever.
    """
    shortest = _RULER_LENGTHS[0]
    if not lengths and context < shortest:
        raise ConfigError(f"RULER begins at {shortest:,} tokens, but this model reads {context:,}: leave it out")
    if lengths and min(lengths) < shortest:
        raise ConfigError(f"RULER begins at {shortest:,} tokens: leave {min(lengths):,} out of --lengths, or RULER")
    return sorted(set(lengths or (length for length in _RULER_LENGTHS if length <= context)))


def check_ruler(tasks: Sequence[str], lengths: Sequence[int] | None, context: int) -> None:
    """Check RULER's requirements before anything is loaded; lm-eval would fail task by task.

    Raises:
        ConfigError: a package is missing, or a length is too short.
        DataError: nltk's sentence tokenizer data is missing and cannot be downloaded.
    """
    ruler = [task for task in tasks if _is_ruler(task)]
    if not ruler:
        return
    _ruler_lengths(lengths, context)
    # `ruler` is the group of all of them.
    families = [names for prefix, names in _RULER_NEEDS if any(t == "ruler" or t.startswith(prefix) for t in ruler)]
    needed = {name for names in families for name in names}
    if missing := sorted(name for name in needed if find_spec(name) is None):
        raise ConfigError(f"{', '.join(ruler)} needs {', '.join(missing)}: pip install 'lm_eval[ruler]'")
    if "nltk" in needed and not _has_sentences():
        raise DataError(
            f"{', '.join(ruler)} needs nltk's data punkt_tab, which is missing and cannot be downloaded now: run "
            "`python -m nltk.downloader punkt_tab` on a machine with a network, and set NLTK_DATA to its folder"
        )


def _has_sentences() -> bool:
    """Return whether nltk's punkt_tab is available, downloading it if allowed, as lm-eval would later."""
    nltk = import_module("nltk")  # installed by lm-eval[ruler]
    try:
        nltk.data.find("tokenizers/punkt_tab")
    except LookupError:
        return os.environ.get("HF_HUB_OFFLINE") != "1" and bool(nltk.download("punkt_tab", quiet=True))
    return True


def _babilong_sizes(lengths: Sequence[int] | None, context: int) -> list[int]:
    """Return the sizes of BABILong's texts in kilotokens; 0 means the questions without filler.

    Raises:
        ConfigError: BABILong does not offer a requested length.
    """
    if not lengths:
        return [size for size in _BABILONG_KILOTOKENS if 1024 * size <= context] or [0]
    sizes = [length // 1024 for length in sorted(set(lengths))]
    wrong = [length for length in lengths if length % 1024 or length // 1024 not in (0, *_BABILONG_KILOTOKENS)]
    if wrong:
        offered = ", ".join(str(1024 * size) for size in _BABILONG_KILOTOKENS)
        raise ConfigError(f"BABILong comes in lengths of {offered} tokens, not of {wrong[0]}")
    return sizes
