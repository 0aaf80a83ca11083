"""The lowest floors and the command line's help load neither torch nor the Hugging Face libraries."""

import json
import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "peft", "trl", "datasets", "accelerate")

REPORT = f"""
import json
print()
print(json.dumps([name for name in {HEAVY} if name in sys.modules]))
"""
HELP = """
import runpy
sys.argv = ["longlora", "--help"]
try:
    runpy.run_module("longlora.cli", run_name="__main__")
except SystemExit as stop:
    assert not stop.code, stop.code
"""


MISTAKES = """
import pathlib, tempfile
from longlora.cli.main import main
finished = tempfile.TemporaryDirectory()
pathlib.Path(finished.name, "report.json").touch()
for command in '''
    plan nowhere; plan qwen3-8b; plan ./nowhere --context 9; plan tiny-1k lerning_rate=1; train nowhere
    init tiny --context 512 --memory 4 --data ./nowhere; recipes nowhere; merge ./nowhere ./out; import ./nowhere out
    eval needle ./nowhere; eval perplexity ./nowhere --data x --out y; chat ./nowhere; web ./nowhere; serve ./nowhere
    corpus from-pdf ./nowhere --out x; report ./nowhere --out x; demo --nothing; mrege a b
    eval harness tiny --out x --task-file nowhere.yaml; eval suite tiny --out x --task-file nowhere.yaml
    eval suite tiny --out x --base ./nowhere; eval suite tiny --out x --evaluator ./nowhere
    eval short tiny --data README.md --out x --base ./nowhere
    eval longppl tiny --data README.md --out x --evaluator ./nowhere
    demo --out FINISHED
'''.replace("\\n", ";").split(";"):
    if not command.split():
        continue
    sys.argv = ["longlora", *command.replace("FINISHED", finished.name).split()]
    try:
        main()
    except SystemExit as stop:
        assert stop.code == 2, (command, stop.code)
"""


def heavy_modules_after(statements: str) -> list[str]:
    """Run statements in a fresh Python, and return the heavy modules they loaded."""
    program = "import sys\n" + statements + REPORT
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    "name", ["longlora", "longlora.errors", "longlora.config", "longlora.planner", "longlora.distributed"]
)
def test_import_is_light(name: str) -> None:
    assert heavy_modules_after(f"import {name}") == []


def test_help_of_the_command_line_is_light() -> None:
    assert heavy_modules_after(HELP) == []


def test_a_mistake_is_told_before_anything_heavy_is_loaded() -> None:
    assert heavy_modules_after(MISTAKES) == []


def test_a_heavy_import_would_be_noticed() -> None:
    assert heavy_modules_after("import longlora.attention") == ["torch"]
