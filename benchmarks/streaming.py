"""Can a window with attention sinks read indefinitely, in constant memory and as well as at the beginning?

    python benchmarks/streaming.py                        # the tiny model, with a window of its 256 tokens of context
    python benchmarks/streaming.py tiny MODEL             # and another one, with a window of its context
    python benchmarks/streaming.py --tokens 4000          # a short look

A long text (the held-out files of Python's standard library, concatenated) is read once, a few tokens at a time: with
sinks and a window (`longlora.inference.streaming_cache`), with a window of the same size but no sinks, and, for eight
times the context, with the ordinary cache that keeps everything. The report contains the perplexity of each stretch of
text and the memory of keys and values.
"""

import argparse
import itertools
import math
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import _report
import torch
from _streaming_report import Curve, Result, write_report
from transformers import Cache, DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from longlora.inference.streaming_cache import NUM_SINKS, KeyRotation, StreamingCache, key_rotations
from longlora.models.load import load_for_inference
from longlora.models.positions import readable_context
from longlora.tiny.stdlib import standard_library_files

NUM_STRETCHES = 40


def main() -> int:
    """Read and report; return the exit status."""
    arguments = parse_arguments()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    origin = _report.provenance(device, ["torch", "transformers"])
    results = [measure(name, arguments.tokens, arguments.piece) for name in arguments.models]
    write_report(results, arguments.output, device.type, _report.finished(origin))
    return 0


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "models", nargs="*", default=["tiny"], help="model or adapter directories, hub names, or `tiny`"
    )
    parser.add_argument("--tokens", type=int, default=100_000, help="length of the text")
    parser.add_argument("--piece", type=int, default=32, help="tokens per forward pass")
    parser.add_argument("--output", type=Path, default=_report.RESULTS, help="folder for the report")
    return parser.parse_args()


def measure(name: str, num_tokens: int, piece: int) -> Result:
    """Read the text with one model and each of the three caches."""
    model, tokenizer = load_for_inference(name)
    context = readable_context(model.config)
    tokens = text_tokens(tokenizer, num_tokens)
    result = Result(
        model=name,
        context=context,
        text="Python's standard library, held out",
        num_tokens=len(tokens),
        piece=piece,
    )
    rotations = key_rotations(model)
    for curve, cache, end in ways(rotations, context, len(tokens)):
        stretch = max(1, len(tokens) // NUM_STRETCHES)
        if curve.window is None:  # effects beyond the context appear soon
            stretch = min(stretch, context // 2)
        read(model, tokens[:end], cache, curve, piece=piece, stretch=stretch)
        result.curves.append(curve)
        first, last = curve.perplexity[0], curve.perplexity[-1]
        print(
            f"{result.model}, {curve.cache}: perplexity {first:.1f} at first, {last:.1f} at last, "
            f"{curve.cache_bytes[-1] / 2**20:.2f} MiB, {len(tokens[:end]) / curve.seconds[-1]:,.0f} tokens/s",
            flush=True,
        )
    return result


def ways(rotations: list[KeyRotation], context: int, num_tokens: int) -> Iterator[tuple[Curve, Cache, int]]:
    """Yield the three caches, and the number of tokens to read with each."""
    for name, num_sinks in (("streaming", NUM_SINKS), ("window without sinks", 0)):
        yield (
            Curve(cache=name, window=context, num_sinks=num_sinks),
            StreamingCache(rotations, window=context, num_sinks=num_sinks),
            num_tokens,
        )
    yield Curve(cache="all tokens", window=None, num_sinks=0), DynamicCache(), min(num_tokens, 8 * context)


def text_tokens(tokenizer: PreTrainedTokenizerBase, num_tokens: int) -> torch.Tensor:
    """Return the concatenated files, each with the tokenizer's initial tokens, repeated if necessary."""
    texts = (path.read_text(encoding="utf-8") for path in standard_library_files("validation"))
    files = (tokenizer(text)["input_ids"] for text in texts)
    tokens = list(itertools.islice(itertools.chain.from_iterable(itertools.cycle(files)), num_tokens))
    return torch.tensor(tokens)


@torch.inference_mode()
def read(model: PreTrainedModel, tokens: torch.Tensor, cache: Cache, curve: Curve, *, piece: int, stretch: int) -> None:
    """Read a text piece by piece, and record each stretch's perplexity and the cache's size."""
    began = time.perf_counter()
    nats: list[torch.Tensor] = []
    tokens = tokens.to(model.device)
    for begin in range(0, len(tokens) - 1, piece):
        now = tokens[begin : min(begin + piece, len(tokens) - 1)]
        logits = model(input_ids=now[None], past_key_values=cache, use_cache=True).logits[0]  # (T, vocabulary)
        targets = tokens[begin + 1 : begin + 1 + len(now)]
        nats.append(torch.nn.functional.cross_entropy(logits.float(), targets, reduction="none"))
        if isinstance(cache, StreamingCache):
            cache.rebase()
        end = begin + len(now)
        if end // stretch > begin // stretch or end == len(tokens) - 1:
            curve.tokens.append(end)
            curve.perplexity.append(math.exp(torch.cat(nats).double().mean().item()))
            curve.cache_bytes.append(sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers))
            curve.resident_bytes.append(resident_bytes())
            curve.seconds.append(round(time.perf_counter() - began, 3))
            nats = []


def resident_bytes() -> int:
    """Return the resident memory of this process, if there is a /proc."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if statm.is_file() else 0


if __name__ == "__main__":
    sys.exit(main())
