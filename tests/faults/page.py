"""Writes docs/reliability.md out of tests/faults/counts.json: `python -m tests.faults.page`."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from tests.faults.campaign import BAD, COUNTS, OUTCOMES, REPOSITORY
from tests.faults.injected import SHARES as FAULTS
from tests.faults.inputs import SHARES as INPUTS

PAGE = REPOSITORY / "docs" / "reliability.md"

HEAD = """\
# Reliability

<!-- Written by `python -m tests.faults.page` from tests/faults/counts.json; the tests compare it with them. -->

What longlora promises when something breaks, and how often that was tried.

## What is promised

- **A result appears whole or not at all.** Adapters, models, caches and reports are written under a hidden name
  beside their place and renamed at the end, after their bytes have reached the disk.
- **Damage is noticed.** `digests.json` in every checkpoint, adapter, merged or imported model and token cache holds
  the size and SHA-256 of its files. It is written last: a folder without it was cut short. Loading, merging, serving
  and resuming compare; a difference in one byte is refused, or said and healed. The model card (`README.md`) may be
  edited, and files may be added. `generation_config.json`, `chat_template.jinja`, `tokenizer_config.json` and
  `special_tokens_map.json` of an adapter or a model may be edited too: a warning says so, and they are followed.
  Whoever changes another file on purpose deletes `digests.json`, and nothing is compared then.
- **A run resumes from its newest whole checkpoint.** A damaged one is set aside as `damaged-checkpoint-N` with a
  warning, and the one before is taken; where none is whole the run ends with status 2 and touches nothing.
- **A run keeps to its data.** `data.json` holds a digest of the rows that it trains on. Texts that were moved or
  touched are the same; texts that were changed are refused before the first step.
- **Damaged records heal or are named.** `environment.json` and `metrics.jsonl` are set aside and begun anew from what
  can be read of them; a damaged `recipe.yaml` is named, since nothing else says what the run is. A damaged token
  cache is made anew.
- **A full, read-only or closed disk ends in one line** with the path and the remedy, status 2; the same command
  resumes.
- **What comes from strangers is bounded.** A page of HTML may have 16 MiB, an e-book 64 MiB unpacked, a plain text
  256 MiB, a PDF 20,000 pages and 5 million words, a line of JSON 256 MiB. Columns and figures are looked for on pages
  of up to 10,000 words in 500 lines that lie within 14,400 points; others are read in the file's order, and the record
  says so. Each file is read in a process of its own, which `longlora web` ends after 120 s, at 4 GiB, or when the
  visitor leaves, and `longlora corpus from-pdf` after an hour or at 8 GiB. A chat template that does not end within
  10 s is refused.
- **Nothing is left running.** What `longlora serve` starts ends with it, even when it is killed (on Linux).
- **Nothing is executed.** Pickles are read as tables of tensors alone, templates run in jinja's sandbox, a model's
  own code only with `trust_remote_code`; an index that names a file outside of its folder is not followed.
- **Messages are bounded**, and what a server says is kept without the credentials that it repeats.

Comparing costs a reading of all bytes, once: files of 256 MiB and more that had their digest are noted in
`longlora/verified.json` in the user's cache, by size, times and place on the disk, and are not read again while these
are the same; `LONGLORA_VERIFY=1` reads them all the same. Checkpoints and token caches are always read. Up to 8 files
are read at once. `python benchmarks/digests.py` measured on one core, the file being in memory: 1 GiB is sealed in
1.32 s, compared in 0.87 s, and known in 0.002 s (AMD EPYC, Python 3.11.7, 2026-11-27).

## How it is tested

`make test` holds one test for each promise (`tests/faults`), with random bytes under a new seed each time. Two
campaigns go further; both are made again by their commands, the number of an attack and the seed bring each one back,
and whatever is not a message lands in `build/faults/findings.txt`:

```bash
make fuzz    # bad inputs: each is refused by a message, or read as what it now says
make faults  # a command in a process of its own, disturbed, and then started again without the fault
```

`make fuzz` ends with a minute of inputs for each of five kinds that coverage of longlora's lines guides
(`tests/faults/guided.py`, by atheris). Those that reach new lines are kept in `build/faults/corpus` and begin the next
run; they are not counted here.

Counts are written as they come. A campaign that was cut short resumes where it stopped; `SEED=2` makes other attacks.

An attack counts as *refused* where it ended in a message, *accepted* where what was left of the input was good,
*healed* where the second start arrived at the bytes that an undisturbed run leaves. *Traceback*, *silent* (another
result without a word), *lost*, *executed* (a process started, or a file opened that is not the input's own; noticed in
inputs since seed 1) and *hang* (over 60 s; for a disturbed command longer in proportion where the machine has more work
than cores) are failures. *Crash* is a library's that ends its process, as
PDFium may: the shelf and the page read each file in a process of its own and continue.
"""

LIMITS = """
## What was found

- PDF number 128 of seed 0, with a word 700,000 points off its page, kept the search for columns busy for 47 s and
  longer. Such pages are read in the file's order since; that file takes half a second, and tests hold it.
- `longlora serve` that was killed left transformers' server running. The kernel ends it now.
- Threads that cannot be started, for want of memory, ended import, merge and corpus in a traceback. They end in a
  message.
- Five tracebacks that the campaigns met were mended, and tests hold them: Parquet texts that are no UTF-8, request
  bodies nested deeply, half a surrogate pair in a run's record, weights for a tied base, a command without stdout.
  Their kinds were attacked again since, and those counts stand above.
- Two `longlora corpus from-pdf` on one folder wrote every text twice (corpus 8 of seed 2). The second is refused now.
- Under a limit of memory just above what they used, make-qa and merge waited forever for a thread that had died before
  it ran (make_qa 1 and 17, merge 41 of seed 2). Threads start only where memory suffices now, and the three attacks
  were made again. Two errors that Python or a library raises in place of a `MemoryError` ended in tracebacks (make_qa 1
  of seed 2, corpus 18 of seed 3); they end in the message of a lack of memory.
- A chat template nested too deeply ended in a traceback in training (template 9 of seed 1). It is named now.
- A Ctrl-C that met a finalizer was dropped by Python (import 4 of seed 3). It is delivered again.
- The soak showed gradio keeping 70 kB of every visitor who had left, for up to 10,000 visitors. `longlora web` keeps
  those of 100.
- A text of a gigabyte was accepted, though tokenizing it would take many times its size. Texts longer than 256 MiB are
  skipped with a word.

## What is open

- Faults of seeds 0 and 1 that stand for Ctrl-C may have met processes that ignore it, as a shell's background jobs do;
  those of seed 2 after number 10 of each kind, and those of seed 3, did not.

## In long use

`pytest -m slow tests/faults/test_soak.py -s` asks 500 times, and compares memory and open files after 500 with those
after 100 (two cores of an AMD EPYC, 2026-11-27):

| server | a request is | memory after 100 | until 500 | files after 100 | until 500 |
|---|---|---|---|---|---|
| `longlora web` | a visitor who uploads a document, asks and leaves | 652 MiB | +6.8 MiB | 35 | -8 |
| `longlora serve` | a chat completion | 1006 MiB | +0.4 MiB | 16 | +0 |

A line of a gigabyte is refused: in 1 s and 513 MiB of memory as plain text, in 6 s and 510 MiB as JSON lines; one value
of JSON, which is read as a whole, in 13 s and 2.8 GiB.

## Versions

`make versions` packs longlora, installs it into environments of its own, trains, merges, measures and asks. All passed
on 2026-11-27 (Linux, x86-64): the oldest versions that are allowed (torch 2.11.0, transformers 5.17.0, peft 0.20.0, trl
1.16.0, datasets 4.7.0, pydantic 2.11.0), the newest (torch 2.14.1, transformers 5.24.0, peft 0.21.2, trl 1.16.0,
datasets 5.2.0, pydantic 2.14.4), and those of `constraints.txt` as wheel and as source distribution on Python 3.11.7,
3.12.1 and 3.13.0.

## What is not promised

- The base model is compared where longlora wrote it (a merged or imported one); a model of the hub has no
  `digests.json`.
- Nodes without a common disk: the main process seals and compares what it sees.
- A chat template that ends on three short messages and loops on others holds up the process that uses it, as does one
  that builds an enormous string in one step.
- Clean memory, a right clock and a working `fsync` are taken for granted.
"""


def by_kind(section: dict[str, Any]) -> dict[str, Counter[str]]:
    """The counts of all seeds together, by kind."""
    together: dict[str, Counter[str]] = {}
    for counts in section["counts"].values():
        for kind, outcomes in counts.items():
            together.setdefault(kind, Counter()).update(outcomes)
    return dict(sorted(together.items()))


def table(section: dict[str, Any], attacks: dict[Any, int]) -> str:
    """The counts of a campaign, a line for each kind."""
    describe = {attack.__name__: (attack.__doc__ or "").splitlines()[0].rstrip(".") for attack in attacks}
    shown = [outcome for outcome in OUTCOMES if outcome in BAD or any(outcome in c for c in by_kind(section).values())]
    lines = [f"| kind | tried | {' | '.join(shown)} |", "|---" * (len(shown) + 2) + "|"]
    total: Counter[str] = Counter()
    for kind, counts in by_kind(section).items():
        total.update(counts)
        numbers = " | ".join(str(counts.get(outcome, 0)) for outcome in shown)
        lines.append(f"| {describe[kind]} | {sum(counts.values())} | {numbers} |")
    numbers = " | ".join(f"**{total[outcome]}**" for outcome in shown)
    return "\n".join([*lines, f"| **all** | **{total.total()}** | {numbers} |"]) + "\n"


def page(counts: dict[str, Any]) -> str:
    """The page that belongs to counts."""
    text = HEAD
    for name, title, attacks in (("inputs", "Bad inputs", INPUTS), ("faults", "Injected faults", FAULTS)):
        section = counts[name]
        versions = ", ".join(f"{package} {version}" for package, version in section["packages"].items())
        text += f"\n## {title}\n\n{table(section, attacks)}\n"
        text += f"Seeds {', '.join(section['counts'])}; {section['date']}, Python {section['python']}, {versions}; "
        text += f"the largest process took {section['most_memory_gib']} GiB. "
        text += f"A whole campaign makes {sum(attacks.values()):,}.\n"
    return text + LIMITS


def read_counts(path: Path = COUNTS) -> dict[str, Any]:
    """The counts as they are kept."""
    return json.loads(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    PAGE.write_text(page(read_counts()), encoding="utf-8")
