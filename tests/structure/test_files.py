"""What must not occur in the repository's files, and what must not be missing."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]

# Absolute paths are valid on one machine only. The pattern is written so it does not match itself.
MACHINE_PATH = re.compile(r"(?<![\w.~/$}-])/(?:work|root|home|Users)/\w")
# pip, apt and npm know where their registries are; a host name here would override the user's choice.
REGISTRY = re.compile(r"\b(?:py[p]i\.org|python[h]osted\.org|download\.py[t]orch\.org|np[m]js\.org|anacond[a]\.)")


def git(*arguments: str) -> list[str]:
    """Run git in the repository, and return its output lines."""
    if shutil.which("git") is None or not (REPOSITORY / ".git").exists():
        pytest.skip("this is not a git repository")
    done = subprocess.run(["git", *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr
    return done.stdout.splitlines()


def text_files() -> Iterator[tuple[str, str]]:
    """Yield the name and text of every text file that is, or could be, under version control."""
    for name in git("ls-files", "--cached", "--others", "--exclude-standard"):
        path = REPOSITORY / name
        if path.is_file():
            try:
                yield name, path.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                continue


def lines_matching(pattern: re.Pattern[str], text: str) -> list[int]:
    """Return the numbers of the lines in which a pattern occurs."""
    return [number for number, line in enumerate(text.splitlines(), start=1) if pattern.search(line)]


@pytest.mark.parametrize("pattern", [MACHINE_PATH, REGISTRY], ids=["machine path", "registry"])
def test_files_are_true_on_every_machine(pattern: re.Pattern[str]) -> None:
    found = [f"{name}:{line}" for name, text in text_files() for line in lines_matching(pattern, text)]
    assert found == []


def test_a_machine_path_or_a_registry_would_be_noticed() -> None:
    root = "/"
    assert lines_matching(MACHINE_PATH, f"a\ncd {root}home/me\nsee example.org/home/me") == [2]
    assert lines_matching(REGISTRY, "a\nhttps://py" + "pi.org/simple") == [2]


def test_nothing_of_the_package_is_ignored() -> None:
    # Files that git ignores are missing from a clone, and from the wheel too.
    kept_out = git("ls-files", "--others", "--ignored", "--exclude-standard", "src")
    assert [name for name in kept_out if "__pycache__" not in name and "_cache/" not in name] == []
