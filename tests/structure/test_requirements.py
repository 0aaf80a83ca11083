"""constraints.txt pins pyproject.toml's requirements, within the allowed ranges, and all their dependencies."""

import ast
import importlib.metadata
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from tests.conftest import NEEDED_PACKAGES

REPOSITORY = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]

# The environment brings its own installers; torch's CUDA builds pin the libraries they were built with.
ITSELF = {"longlora"}  # `dev` requires the extras by this name
INSTALLERS = {"pip", "setuptools", "wheel"}
FROM_TORCH = ("nvidia-", "cuda-", "triton")


def pins() -> dict[str, Version]:
    """Read constraints.txt: every line that is not a comment is NAME==VERSION."""
    lines = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.split("==") for line in lines if not line.startswith("#")]
    return {name: Version(version) for name, version in pairs}


def installed_closure(requirements: list[str]) -> set[str]:
    """Return every installed distribution that the requirements need, directly or indirectly."""
    found: set[str] = set()
    waiting = [(Requirement(text), "") for text in requirements]
    seen: set[tuple[str, str]] = set()
    while waiting:
        requirement, extra = waiting.pop()
        name = canonicalize_name(requirement.name)
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        for wanted_extra in ("", *requirement.extras):
            if (name, wanted_extra) in seen:
                continue
            seen.add((name, wanted_extra))
            try:
                needs = importlib.metadata.requires(name) or []
            except importlib.metadata.PackageNotFoundError:
                continue
            found.add(name)
            waiting.extend((Requirement(text), wanted_extra) for text in needs)
    return found


def imported_packages() -> set[str]:
    """Return the third-party packages that the source imports anywhere."""
    names: set[str] = set()
    for path in (REPOSITORY / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module)
    return {name.partition(".")[0] for name in names} - sys.stdlib_module_names - {"longlora"}


def test_every_imported_package_is_asked_for() -> None:
    distributions = importlib.metadata.packages_distributions()
    everything = PROJECT["dependencies"] + [text for name, extra in EXTRAS.items() if name != "dev" for text in extra]
    asked_for = {canonicalize_name(Requirement(text).name) for text in everything}
    undeclared = {
        package
        for package in imported_packages()
        if asked_for.isdisjoint(map(canonicalize_name, distributions.get(package, [package])))
    }
    assert undeclared == set()


def test_pins_are_canonical_with_torch_first_and_the_rest_sorted() -> None:
    names = list(pins())
    assert names[0] == "torch"
    assert names[1:] == sorted(map(canonicalize_name, names[1:]))


def test_pins_name_no_build_of_one_machine() -> None:
    assert [name for name, version in pins().items() if version.local] == []


def test_every_requirement_is_pinned() -> None:
    wanted = {canonicalize_name(Requirement(text).name) for text in PROJECT["dependencies"] + EXTRAS["dev"]}
    assert wanted - pins().keys() - ITSELF == set()


def test_pins_lie_in_the_promised_ranges() -> None:
    pinned = pins()
    everything = PROJECT["dependencies"] + [text for extra in EXTRAS.values() for text in extra]
    outside = [
        f"{requirement} but {pinned[name]} is pinned"
        for requirement in map(Requirement, everything)
        if (name := canonicalize_name(requirement.name)) in pinned and pinned[name] not in requirement.specifier
    ]
    assert outside == []


def test_dev_installs_what_single_tests_need() -> None:
    """With all of `dev` installed, as by `make`, no test is skipped for lack of a package."""
    installed = installed_closure(EXTRAS["dev"])
    direct = {canonicalize_name(Requirement(text).name) for text in EXTRAS["dev"]} - ITSELF
    if absent := direct - installed:
        pytest.skip(f"not all of dev is installed: {', '.join(sorted(absent))}")
    assert {package for packages in NEEDED_PACKAGES.values() for package in packages} <= installed
    paths = {REPOSITORY / place.partition("::")[0] for place in NEEDED_PACKAGES}
    assert {path for path in paths if not path.is_file()} == set()


def test_everything_installed_along_is_pinned() -> None:
    if Version(importlib.metadata.version("transformers")) != pins()["transformers"]:
        pytest.skip("other versions than the pinned ones are installed, and may need others in turn")
    installed = installed_closure(PROJECT["dependencies"] + EXTRAS["dev"])
    assert {"torch", "sympy", "pluggy"} <= installed  # indirect dependencies are included
    unpinned = installed - pins().keys() - INSTALLERS - ITSELF
    assert {name for name in unpinned if not name.startswith(FROM_TORCH)} == set()
