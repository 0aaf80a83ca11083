"""Pack longlora, install it into environments of their own, and do a small run in each: `make versions`.

    python tests/versions.py FOLDER [oldest] [newest] [3.11] [3.12] [3.13]

`oldest` takes the lower bounds of pyproject.toml and `newest` what pip finds, both with the Python that runs this. A
number takes that Python, with the versions of constraints.txt: the wheel, and then the source distribution in its
place. A Python that is not here is told and left out. Ends with status 1 if a run failed.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from oldest import oldest

REPOSITORY = Path(__file__).resolve().parent.parent
SETS = ("oldest", "newest", "3.11", "3.12", "3.13")


def run(*command: object) -> None:
    """Run a command; an error of it is one of ours."""
    subprocess.run([str(part) for part in command], check=True)


def find_python(version: str) -> str | None:
    """A Python of a version that starts: a name on the path may stand for one that is not installed."""
    path = shutil.which(f"python{version}")
    for candidate in (path, *map(str, Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))):
        if candidate and subprocess.run([candidate, "-c", ""], capture_output=True, check=False).returncode == 0:
            return candidate
    return None


def try_out(python: Path) -> None:
    """Train, merge, measure and ask, a little, from a folder that is not the project's."""
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "text.txt"
        text.write_text((REPOSITORY / "README.md").read_text(encoding="utf-8") * 5, encoding="utf-8")
        longlora = python.with_name("longlora")
        small = [
            "max_steps=2",
            "per_device_train_batch_size=1",
            f"output_dir={folder}/run",
            f"data.source={text}",
            f"data.cache_dir={folder}/cache",
        ]
        run(longlora, "--version")
        run(longlora, "train", "tiny-1k", *small)
        run(longlora, "merge", f"{folder}/run/adapter", f"{folder}/model")
        measured = ["--data", text, "--lengths", 512, "--max-documents", 1, "--out", f"{folder}/measured"]
        run(longlora, "eval", "perplexity", f"{folder}/model", *measured)
        run(longlora, "chat", f"{folder}/model", "--ask", "why", "--max-new-tokens", 4)


def try_set(name: str, folder: Path, wheel: Path, source: Path) -> str:
    """Make the environment of a set and try it; what came of it, in a few words."""
    python = sys.executable if name in ("oldest", "newest") else find_python(name)
    if python is None:
        return "left out: there is no such Python here"
    environment = folder / name
    constraints = folder / f"{name}.txt"
    pins = {"oldest": "\n".join(oldest()), "newest": ""}
    constraints.write_text(pins.get(name, (REPOSITORY / "constraints.txt").read_text(encoding="utf-8")))
    run(python, "-m", "venv", "--clear", environment)
    inside = environment / "bin" / "python"
    install = [inside, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--constraint", constraints]
    if name not in pins:  # first and by its pin, so that it is the build this machine's pip is set up for
        run(*install, next(line for line in constraints.read_text().splitlines() if line.startswith("torch==")))
    run(*install, wheel)
    try_out(inside)
    if name not in pins:
        run(*install, "--force-reinstall", "--no-deps", source)
        try_out(inside)
    return "passed"


def main(folder: Path, names: list[str]) -> int:
    """Try sets one after the other, and say what came of each."""
    folder.mkdir(parents=True, exist_ok=True)
    run(sys.executable, "-m", "build", "--outdir", folder / "dist", REPOSITORY)
    (wheel,), (source,) = (folder / "dist").glob("*.whl"), (folder / "dist").glob("*.tar.gz")
    results = {}
    for name in names:
        try:
            results[name] = try_set(name, folder, wheel, source)
        except subprocess.CalledProcessError as error:
            results[name] = f"failed: {' '.join(error.cmd)} ended with {error.returncode}"
        print(f"{name}: {results[name]}", flush=True)
    print("\n".join(f"{name:8} {result}" for name, result in results.items()))
    return int(any(result.startswith("failed") for result in results.values()))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve(), sys.argv[2:] or list(SETS)))
