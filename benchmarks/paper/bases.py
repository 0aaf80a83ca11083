"""Does a base have an attention sink? Measure attention to the first token, and the size of its hidden state.

    python benchmarks/paper/bases.py                                    # the model that ships with the package
    python benchmarks/paper/bases.py tiny MODEL --tokens 256 1024       # and another, each with its own row length

Rows are the beginnings of held-out documents, with BOS if the tokenizer has one, all within the base's own context. The
share is the attention that tokens after the 64th pay to the first one, averaged over rows, heads and layers. The size
is the norm of the first token's hidden state relative to the row's median, in the layer where it is largest. Each row
of results/bases.jsonl is a base.
"""

import argparse
import json
import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when the libraries are imported
HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parents[1] / "src")]

import _report  # noqa: E402
import torch  # noqa: E402

from longlora.models.load import load_config, load_tokenizer, load_weights, model_source  # noqa: E402
from longlora.tiny import TINY_MODEL  # noqa: E402
from longlora.tiny.stdlib import standard_library_files  # noqa: E402

AFTER = 64
"""Number of initial tokens whose own attention is not counted: they see little else."""


def main() -> int:
    """Measure each base, printing a line and writing a row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bases", nargs="*", default=[TINY_MODEL])
    parser.add_argument("--tokens", type=int, nargs="+", default=[256], help="of a row, for each base")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "bases.jsonl")
    arguments = parser.parse_args()
    for base, tokens in zip(arguments.bases, arguments.tokens, strict=True):
        row = {"base": Path(base).name, "tokens": tokens, **measure(base, tokens, arguments.rows)}
        row |= {"device": _report.device_name(torch.device("cpu")), "torch": torch.__version__}
        row |= {"commit": _report.commit(), "date": datetime.now(UTC).isoformat(timespec="seconds")}
        with arguments.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)
    return 0


@torch.no_grad()
def measure(base: str, tokens: int, num_rows: int) -> dict[str, Any]:
    """Measure a base on rows of held-out documents, with an attention that returns its weights."""
    name = model_source(base)
    config, tokenizer = load_config(name), load_tokenizer(name)
    model = load_weights(name, config, dtype=torch.float32, attention="eager").eval()
    shares, sizes = list[torch.Tensor](), list[torch.Tensor]()
    for path in standard_library_files("validation"):
        ids = tokenizer(path.read_text(encoding="utf-8", errors="replace"), verbose=False)["input_ids"]
        if len(shares) == num_rows:
            break
        if len(ids) < tokens:
            continue
        seen = model(torch.tensor([ids[:tokens]]), output_attentions=True, output_hidden_states=True, use_cache=False)
        shares.append(torch.stack([weights[0, :, AFTER:, 0].mean() for weights in seen.attentions]))  # (layers,)
        norms = torch.stack([states[0].norm(dim=-1) for states in seen.hidden_states])  # (layers + 1, tokens)
        sizes.append(norms[:, 0] / norms.median(dim=1).values)
    by_layer = torch.stack(shares).mean(dim=0)
    return {
        "rows": len(shares),
        "share": round(float(by_layer.mean()), 4),
        "largest_share": round(float(by_layer.max()), 4),
        "size": round(float(torch.stack(sizes).mean(dim=0).max()), 2),
    }


if __name__ == "__main__":
    sys.exit(main())
