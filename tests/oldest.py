"""Print constraints for the oldest versions of what longlora needs; an argument is the torch to take instead of it."""

import sys
import tomllib
from pathlib import Path

PROJECT = tomllib.loads((Path(__file__).resolve().parent.parent / "pyproject.toml").read_text(encoding="utf-8"))


def oldest(torch: str | None = None) -> list[str]:
    """Pin each library that the project always needs to its lower bound."""
    pins = [requirement.replace(">=", "==") for requirement in PROJECT["project"]["dependencies"]]
    return [f"torch=={torch}" if torch and pin.startswith("torch==") else pin for pin in pins]


if __name__ == "__main__":
    print("\n".join(oldest(*sys.argv[1:])))
