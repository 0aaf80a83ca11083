"""Compare the demo's methods on any texts and settings: the tables of docs/log.md.

    python benchmarks/_methods.py OUTPUT --methods "recommended;full attention" learning_rate=2e-3 max_steps=60
    python benchmarks/_methods.py OUTPUT --validation BOOKS/validation data.source=BOOKS/train

Not part of `make bench`: each method takes minutes. The remaining arguments override the demo's recipe, as for
`longlora train`. `OMP_NUM_THREADS` sets torch's threads. Prints a line of JSON for each model.
"""

import argparse
import json
from pathlib import Path

from longlora.config import dump_recipe, load_recipe
from longlora.data.document_rows import tokenize_documents
from longlora.data.sources import read_documents
from longlora.demo import walkthrough as demo
from longlora.evaluation.perplexity import perplexity_by_length
from longlora.models.load import load_for_inference, load_tokenizer, model_source
from longlora.tiny import TINY_MODEL
from longlora.tiny.stdlib import standard_library_files
from longlora.training.run import train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--methods", default=";".join(demo.METHODS), help="names of the demo's methods, separated by ;")
    parser.add_argument("--validation", help="texts to evaluate on; by default the demo's")
    parser.add_argument("overrides", nargs="*", help="key=value, applied to every method")
    arguments = parser.parse_intermixed_args()

    arguments.output.mkdir(parents=True, exist_ok=True)
    texts = arguments.validation or [str(path) for path in standard_library_files("validation")]
    tokenizer = load_tokenizer(model_source(TINY_MODEL))
    documents = tokenize_documents(read_documents(texts), tokenizer, cache_dir=arguments.output / "cache")["input_ids"]

    def report(name: str, model: object) -> None:
        measured = perplexity_by_length(
            model,  # type: ignore[arg-type]
            documents,
            lengths=demo.LENGTHS,
            stride=demo.EVALUATION_STRIDE,
            max_targets=demo.EVALUATION_TARGETS,
            description=name,
        )
        values = {length: round(value.perplexity, 2) for length, value in measured.items()}
        print(json.dumps({"model": name, "overrides": arguments.overrides, "perplexity": values}), flush=True)

    report("base", load_for_inference(TINY_MODEL)[0])
    report("positions only", demo.base_with_positions(arguments.output))
    for name in arguments.methods.split(";"):
        recipe_file = arguments.output / f"{name.replace(', ', '-').replace(' ', '-')}.yaml"
        recipe_file.write_text(dump_recipe(demo.method_recipe(name, arguments.output)), encoding="utf-8")
        report(name, load_for_inference(train(load_recipe(recipe_file, arguments.overrides)))[0])


if __name__ == "__main__":
    main()
