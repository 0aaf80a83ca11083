"""Four processes over gloo that divide rows by sequence parallelism, and how far they are from one process, as JSON.

Run as a module; `--families` takes a tiny model of each family, else there are Llamas with all kinds of heads, which
with `--deepspeed` are divided by its engine and not by ours. Started once for many cases, for the imports take longer
than all of them.
"""

import copy
import json
import os
import random
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from unittest import mock

import torch
import torch.distributed as dist
from tests.families.families import FAMILIES
from torch import Tensor
from transformers import AttentionInterface, AutoModelForCausalLM, LlamaConfig, PreTrainedConfig, PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from longlora.attention import HeadShard
from longlora.errors import ConfigError
from longlora.models.grouping import Grouping, set_grouping
from longlora.planner.architecture import parse_architecture
from longlora.planner.compute import ulysses_bytes
from longlora.planner.job import PlannedRun
from longlora.training.sequence_parallel import IGNORED, SequenceParallel

RANKS, VOCABULARY = 4, 61
WRONG = "halves counted among the heads that are here"
KINDS_OF_HEADS = ((4, 4), (4, 1), (12, 4))


def llama(num_heads: int, num_kv_heads: int) -> PreTrainedConfig:
    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=8 * num_heads,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=num_heads,
        num_key_value_heads=num_kv_heads,
        initializer_range=0.2,
    )


def random_row(source: random.Random) -> dict[str, Tensor]:
    """A packed row of one to five documents of 1 to 40 tokens, of which some are learned: (1, T) each."""
    return row_of(source, (source.randint(1, 40) for _ in range(source.randint(1, 5))))


def row_of(source: random.Random, lengths: Iterable[int]) -> dict[str, Tensor]:
    """A packed row of documents of these lengths."""
    positions = [place for length in lengths for place in range(length)]
    tokens = [source.randrange(3, VOCABULARY) for _ in positions]
    is_learned = [place > 0 and source.random() < 0.8 for place in positions]
    return {
        "input_ids": torch.tensor([tokens]),
        "labels": torch.where(torch.tensor([is_learned]), torch.tensor([tokens]), IGNORED),
        "position_ids": torch.tensor([positions]),
    }


def padded(row: dict[str, Tensor], size: int) -> dict[str, Tensor]:
    """Make the length of a row a multiple of `size`, as TRL does."""
    missing = -row["input_ids"].shape[1] % size
    values = {"input_ids": 0, "labels": IGNORED, "position_ids": 0}
    return {name: torch.nn.functional.pad(row[name], (0, missing), value=value) for name, value in values.items()}


def next_labels(row: dict[str, Tensor]) -> Tensor:
    return torch.nn.functional.pad(row["labels"], (0, 1), value=IGNORED)[:, 1:]  # (1, T)


def measured(model: PreTrainedModel, batch: dict[str, Tensor], labels: Tensor) -> dict[str, Tensor]:
    """Logits, the gradients of the embedded tokens and those of all parameters, of the sum of the tokens' losses."""
    model.zero_grad()
    embedded = model.get_input_embeddings()(batch["input_ids"]).detach().requires_grad_()  # (1, T, hidden)
    logits = model(inputs_embeds=embedded, position_ids=batch["position_ids"], use_cache=False).logits
    torch.nn.functional.cross_entropy(logits[0], labels[0], ignore_index=IGNORED, reduction="sum").backward()
    parameters = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"logits": logits.detach(), "embedded": embedded.grad, **parameters}


def difference(model: PreTrainedModel, rows: list[dict[str, Tensor]], size: int) -> float:
    """The largest difference between processes that share each row and one process, over the largest number."""
    alone = [measured(model, row, next_labels(row)) for row in rows]

    together = SequenceParallel(size)
    group, place = divmod(dist.get_rank(), size)
    divided = copy.deepcopy(model)
    attention = ALL_ATTENTION_FUNCTIONS["s2"]
    together.attach(divided)
    part = together.part_of(padded(rows[group], size))
    found = measured(divided, part, part["shift_labels"])
    AttentionInterface.register("s2", attention)

    differences = []
    for name in alone[0]:
        if name in ("logits", "embedded"):
            first = place * part["input_ids"].shape[1]
            wanted = alone[group][name][:, first : first + found[name].shape[1]]
            seen = found[name][:, : wanted.shape[1]]  # what was padded means nothing
        else:
            wanted = torch.stack([one[name] for one in alone]).sum(dim=0)
            seen = found.get(name, torch.zeros_like(wanted))  # an expert that no token here has chosen
            dist.all_reduce(seen)
        if wanted.numel():
            differences.append(((seen - wanted).abs().max() / wanted.abs().max().clamp(min=1)).item())
    worst = torch.tensor(max(differences))
    dist.all_reduce(worst, op=dist.ReduceOp.MAX)
    return worst.item()


def bytes_on_the_wire(size: int) -> dict[str, float | str]:
    """What one forward pass receives from others, over what the planner says, less 1."""
    config = llama(8, 2)
    model = make(config, Grouping(group_size=7)).float()
    together, attention = SequenceParallel(size), ALL_ATTENTION_FUNCTIONS["s2"]
    together.attach(model)
    part = together.part_of(padded(random_row(random.Random(0)), size))
    with mock.patch.object(dist, "all_to_all_single", wraps=dist.all_to_all_single) as exchange:
        model(part["input_ids"], position_ids=part["position_ids"], use_cache=False)
    AttentionInterface.register("s2", attention)
    received = sum(call.args[0].nbytes * (size - 1) / size for call in exchange.call_args_list)
    run = PlannedRun(
        architecture=parse_architecture(config.to_dict(), "llama"),
        context_length=part["input_ids"].shape[1] * size,
        dtype="float32",
        strategy="ddp",
        num_gpus=size,
        sequence_parallel_size=size,
    )
    return {f"bytes of {size} processes": abs(received / (ulysses_bytes(run) * config.num_hidden_layers) - 1)}


def make(config: PreTrainedConfig, grouping: Grouping) -> PreTrainedModel:
    # torch's grouped product of experts knows no float64.
    kernels = {"attn_implementation": "s2", "experts_implementation": "eager"}
    model = AutoModelForCausalLM.from_config(config, **kernels).double().train()
    set_grouping(model, grouping)
    return model


def of_heads(seed: int) -> Iterator[tuple[str, float | str]]:
    source = random.Random(seed)
    for heads in KINDS_OF_HEADS:
        for sink_tokens, size in ((0, 2), (1, 4), (4, 2), (0, 4)):
            group_size = source.choice([None, *[source.randint(1, 30)] * 5])
            model = make(llama(*heads), Grouping(group_size=group_size, sink_tokens=sink_tokens))
            rows = [random_row(source) for _ in range(RANKS // size)]
            lengths = [row["input_ids"].shape[1] for row in rows]
            groups = f"groups of {group_size} and {sink_tokens} sink tokens"
            yield f"{heads} heads, {groups}, {size} processes, {lengths} tokens", difference(model, rows, size)
    for size in (2, 4):
        yield from bytes_on_the_wire(size).items()
    model = make(llama(4, 2), Grouping(group_size=7))
    yield "evaluation", difference(model.eval(), [random_row(source)], 4)
    with mock.patch.object(HeadShard, "num_unshifted", lambda self, num_heads: (num_heads + 1) // 2):
        # One long document: in short ones, groups may cut no tokens apart.
        yield WRONG, difference(model.train(), [row_of(source, [40])], 4)


def of_families(seed: int) -> Iterator[tuple[str, float | str]]:
    source = random.Random(seed)
    for family in FAMILIES:
        config = family.config(num_attention_heads=4, vocab_size=VOCABULARY)
        model = make(config, Grouping(group_size=6, sink_tokens=1))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1:
                    parameter.add_(0.1 * torch.randn_like(parameter))
        try:
            yield family.model_type, difference(model, [random_row(source) for _ in range(2)], 2)
        except ConfigError as error:
            yield family.model_type, str(error)


def of_deepspeed(seed: int) -> Iterator[tuple[str, float | str]]:
    from deepspeed import comm
    from deepspeed.runtime.sequence_parallel import parallel_state_sp as groups
    from deepspeed.runtime.sequence_parallel.ulysses_sp import UlyssesSPAttentionHF

    def attach(ours: SequenceParallel, model: PreTrainedModel) -> None:
        UlyssesSPAttentionHF.register_with_transformers(
            model, core_attn_implementation="s2", sequence_parallel_size=ours.size, micro_batch_size=1
        )

    comm.init_distributed("gloo", auto_mpi_discovery=False)
    source = random.Random(seed)
    for heads in KINDS_OF_HEADS:
        for sink_tokens in (0, 1, 4):
            group_size = source.randint(1, 30)
            model = make(llama(*heads), Grouping(group_size=group_size, sink_tokens=sink_tokens))
            rows = [random_row(source) for _ in range(RANKS // 2)]
            groups._SEQUENCE_PARALLEL_GROUP = groups._SEQUENCE_DATA_PARALLEL_GROUP = None  # made for one model
            with mock.patch.object(SequenceParallel, "attach", attach):
                found = difference(model, rows, 2)
            del ALL_ATTENTION_FUNCTIONS["s2"]  # theirs; below it is ours
            yield f"{heads} heads, groups of {group_size} and {sink_tokens} sink tokens", found


CASES = {"--families": of_families, "--deepspeed": of_deepspeed}


def run(rank: int, store: str, seed: int, cases: Callable[[int], Iterator[tuple[str, float | str]]]) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=RANKS)
    torch.manual_seed(seed)  # the same model everywhere
    results = dict(cases(seed))
    if rank == 0:
        print(json.dumps(results))
    dist.destroy_process_group()


def main(seed: int, *options: str) -> int:
    torch.set_num_threads(1)
    cases = CASES[options[0]] if options else of_heads
    with tempfile.TemporaryDirectory() as folder:
        children = []
        for rank in range(RANKS):
            if (child := os.fork()) == 0:
                try:
                    run(rank, f"{folder}/store", seed, cases)
                    status = 0
                except BaseException:
                    sys.excepthook(*sys.exc_info())
                    status = 1
                sys.stdout.flush()
                os._exit(status)
            children.append(child)
        return max(os.waitpid(child, 0)[1] for child in children) and 1


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), *sys.argv[2:]))
