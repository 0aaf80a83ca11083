"""Run published benchmarks with lm-evaluation-harness, set up for long-context models.

The harness gets a loaded model with extended positions. An adapter is merged in memory, because lm-eval 0.4.13 ties the
weights again, which breaks an adapter that has its own embeddings. Each task is one call, and its result is on disk
before the next task begins.
"""

import json
import logging
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import PeftModel

from longlora.errors import ConfigError, DataError, LongLoRAError, first_line
from longlora.evaluation.harness_tasks import HarnessCall, check_ruler, plan_calls
from longlora.evaluation.questions import count_tokens, render, uses_chat
from longlora.evaluation.results import Harness, TaskResult, finished, harness_metrics
from longlora.evaluation.subject import AS_IT_IS, Loading, Subject, base_of, folder_name, load_subject, named_context
from longlora.models.generation import transformers_model
from longlora.support.files import write_atomically

logger = logging.getLogger("longlora")


@dataclass(frozen=True, kw_only=True)
class HarnessOptions:
    """Options of a harness run, all of which affect the results. None leaves a value to the task."""

    lengths: Sequence[int] | None = None  # of RULER and BABILong, in tokens; by default all of theirs up to the context
    limit: int | None = None  # samples per task
    num_fewshot: int | None = None  # examples before each question
    max_new_tokens: int | None = None
    batch_size: int = 1
    chat: bool = True  # use the tokenizer's chat template, if it has one
    seed: int = 1234
    run_code: bool = False  # allow tasks that execute model-written code, such as LongProc's


def run_harness(
    model_name: str,
    tasks: Sequence[str],
    *,
    output: str | Path,
    task_files: Sequence[str | Path] = (),
    options: HarnessOptions | None = None,
    loading: Loading = AS_IT_IS,
) -> Harness:
    """Run harness tasks by name, and the user's own tasks by file.

    A repeated call resumes after the last finished task. A failing task does not stop the others; its error is raised
    at the end.

    Raises:
        ConfigError: lm-eval or a package for a task is missing, a task or file is unknown, the model is partly
            offloaded, or the folder holds other results.
        DataError: a task's data is neither cached nor downloadable, or a task failed within lm-eval.
        CheckpointError: the model cannot be loaded.
    """
    try:
        import lm_eval  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"lm-evaluation-harness is not installed ({error}): pip install 'longlora[eval]'") from error
    options = options or HarnessOptions()
    context = named_context(model_name)
    check_ruler(tasks, options.lengths, context)
    if not options.run_code and (runs := [task for task in tasks if task.startswith("longproc")]):
        raise ConfigError(f"{', '.join(runs)} runs model-written code on this machine: allow it with --run-code")
    folder, failures = Path(output), []
    with tempfile.TemporaryDirectory(prefix="longlora-tokenizer-") as tokenizer_path:
        # Before the model is loaded, for wrong names end here.
        calls = plan_calls(tasks, task_files, lengths=options.lengths, context=context, tokenizer_path=tokenizer_path)
        subject = load_subject(model_name, loading)
        if any(parameter.is_meta for parameter in subject.model.parameters()):
            raise ConfigError("lm-eval cannot run a partly offloaded model: use devices with more memory")
        # Tasks that size their prompts take the path of a tokenizer, not a loaded one.
        subject.tokenizer.save_pretrained(tokenizer_path)
        # Tasks and lengths may be added later; any other change would invalidate the existing results.
        settings = {name: value for name, value in vars(options).items() if name not in ("lengths", "run_code")}
        settings["chat"] = uses_chat(subject.tokenizer, options.chat)
        before = finished(Harness, folder, settings, subject.weights)
        result = Harness(**subject.about(), settings=settings, tasks=before.tasks if before else {})
        model = _harness_model(subject, calls, options)
        for call in calls:
            if not _is_done(call, call.name, result):
                try:
                    _run(call, model, options, result, folder)
                except Exception as error:  # a task's own code may raise anything
                    failures.append(_failure(call, error))
    for failure in failures[:-1]:
        logger.error("%s", failure)
    if failures:
        raise failures[-1]
    return result


def benchmark(
    models: Sequence[str],
    tasks: Sequence[str],
    *,
    output: str | Path,
    task_files: Sequence[str | Path] = (),
    base: str | None = None,
    loading: Loading = AS_IT_IS,
) -> None:
    """Run tasks of the harness on each model and on the models' bases, each into its own folder.

    Raises:
        ConfigError, DataError, CheckpointError: as `run_harness`.
    """
    bases = [base or base_of(name) for name in models]
    for name in dict.fromkeys([*models, *(known for known in bases if known)]):
        folder = Path(output) / folder_name(name) / "harness"
        run_harness(name, tasks, output=folder, task_files=task_files, loading=loading)


def _failure(call: HarnessCall, error: Exception) -> LongLoRAError:
    """Turn an error into one that names the task, logging the traceback unless the error is ours."""
    if isinstance(error, LongLoRAError):
        return error
    logger.error("%s failed; continuing with the other tasks", call.name, exc_info=error)
    return DataError(
        f"{call.name} failed within lm-eval ({type(error).__name__}: {first_line(error)}) and has no result; the "
        "results of the other tasks are written"
    )


def _is_done(call: HarnessCall, name: str, result: Harness) -> bool:
    return name in result.tasks and result.tasks[name].lengths == call.lengths


def _harness_model(subject: Subject, calls: Sequence[HarnessCall], options: HarnessOptions) -> Any:
    from lm_eval.models.huggingface import HFLM

    model, tokenizer = subject.model, subject.tokenizer
    merged = model.merge_and_unload() if isinstance(model, PeftModel) else model
    transformers_model(merged).eval()
    # Task lengths do not count the chat template: leave room for it, or the harness would truncate the text's start.
    longest = max([subject.context, *(length for call in calls for length in call.lengths or [])])
    turns = render(tokenizer, "", "", chat=True) if uses_chat(tokenizer, options.chat) else ""
    return HFLM(
        pretrained=merged,
        tokenizer=tokenizer,
        max_length=longest + count_tokens(tokenizer, turns),
        batch_size=options.batch_size,
    )


def _run(call: HarnessCall, model: Any, options: HarnessOptions, result: Harness, folder: Path) -> None:
    from lm_eval import simple_evaluate

    for task in _load(call):
        name = call.name if call.single else task.task_name
        if _is_done(call, name, result):
            continue
        limits_answer = options.max_new_tokens and task.get_config("output_type") == "generate_until"
        measured = simple_evaluate(
            model=model,
            tasks=[task],
            task_manager=call.manager,
            num_fewshot=options.num_fewshot,
            batch_size=options.batch_size,
            limit=options.limit,
            bootstrap_iters=1000,  # for metrics whose error has no formula
            apply_chat_template=result.settings["chat"],
            gen_kwargs={"max_gen_toks": options.max_new_tokens} if limits_answer else None,
            random_seed=options.seed,
            numpy_random_seed=options.seed,
            torch_random_seed=options.seed,
            fewshot_random_seed=options.seed,
            confirm_run_unsafe_code=options.run_code,
        )
        samples = measured["samples"][task.task_name]
        lines = [json.dumps(sample, default=str, ensure_ascii=False) + "\n" for sample in samples]
        (folder / "samples").mkdir(parents=True, exist_ok=True)
        write_atomically(folder / "samples" / f"{name}.jsonl", "".join(lines))
        num_cut = sum(any(_is_cut(*arguments[:2], model=model) for arguments in s["arguments"]) for s in samples)
        if num_cut:
            logger.warning(
                "%s: %d of %d prompts did not fit into %s tokens with their answer and lost their beginning",
                name, num_cut, len(samples), f"{model.max_length:,}",
            )  # fmt: skip
        result.tasks[name] = TaskResult.model_validate(
            {
                "metrics": harness_metrics(measured["results"][task.task_name]),
                "num_samples": measured["n-samples"][task.task_name]["effective"],
                "num_cut": num_cut,
                "lengths": call.lengths,
            }
        )
        result.write(folder)


def _is_cut(prompt: str, second: str | dict[str, Any] = "", *, model: Any) -> bool:
    """Return whether a prompt exceeds the room beside its answer, so that the harness cuts its beginning."""
    if isinstance(second, dict):
        answer = int(second.get("max_gen_toks", model.max_gen_toks))
        return len(model.tok_encode(prompt)) > model.max_length - answer
    return len(model.tok_encode(f"{prompt}{second}")) > model.max_length


def _load(call: HarnessCall) -> list[Any]:
    """Load a task's data.

    Raises:
        ConfigError: a package is missing, or the task's file is invalid.
        DataError: the data is neither cached nor downloadable.
    """
    try:
        loaded = call.manager.load([call.spec])
    except ImportError as error:
        raise ConfigError(
            f"{call.name} needs a package that is not installed ({error}); RULER's come with pip install "
            "'lm_eval[ruler]', LongBench's with 'lm_eval[longbench]', SCROLLS' with rouge-score"
        ) from error
    except (OSError, LookupError) as error:  # a missing file, no network, or a data set that is not cached
        offline = ", and HF_HUB_OFFLINE forbids downloading it" if os.environ.get("HF_HUB_OFFLINE") == "1" else ""
        raise DataError(
            f"{call.name} needs data that cannot be read or downloaded{offline}: {first_line(error)}; download it on a "
            "machine with a network, or use your own task with --task-file"
        ) from error
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{call.name} cannot be loaded: {first_line(error)}") from error
    return list(loaded["tasks"].values())
