"""Measure the tiny model's perplexity by length under each position scaling, before any training (docs/positions.md).

    python benchmarks/_positions.py --lengths 128,256,512,1024 --factor 4

Not part of `make bench`: it takes minutes. LongRoPE is left out, as its factors come from a search. Prints a line of
JSON for each scaling. `OMP_NUM_THREADS` sets torch's threads.
"""

import argparse
import json
import tempfile

import torch

from longlora.data.document_rows import tokenize_documents
from longlora.data.sources import read_documents
from longlora.evaluation.perplexity import perplexity_by_length
from longlora.models.load import load_config, load_tokenizer, load_weights, model_source
from longlora.models.positions import extend_positions, readable_context
from longlora.rope.methods import OPTIONS
from longlora.tiny import TINY_MODEL
from longlora.tiny.stdlib import standard_library_files


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", default="128,256,512,1024", help="in tokens, ascending")
    parser.add_argument("--factor", type=float, default=4.0, help="ratio of the new context to the old")
    parser.add_argument("--max-targets", type=int, default=4096)
    arguments = parser.parse_args()

    name = model_source(TINY_MODEL)
    source = read_documents([str(path) for path in standard_library_files("validation")])
    with tempfile.TemporaryDirectory() as cache:
        documents = list(tokenize_documents(source, load_tokenizer(name), cache_dir=cache)["input_ids"])
    for rope_type in (None, *(rope_type for rope_type in OPTIONS if rope_type != "longrope")):
        config = load_config(name)
        if rope_type:
            context_length = round(arguments.factor * readable_context(config))
            extend_positions(config, context_length=context_length, rope_type=rope_type)
        measured = perplexity_by_length(
            load_weights(name, config, dtype=torch.float32, attention="sdpa").eval(),
            documents,
            lengths=[int(length) for length in arguments.lengths.split(",")],
            stride=64,
            max_targets=arguments.max_targets,
            description=rope_type or "unscaled",
        )
        values = {length: round(value.perplexity, 2) for length, value in measured.items()}
        print(json.dumps({"rope_type": rope_type or "unscaled", "perplexity": values}), flush=True)


if __name__ == "__main__":
    main()
