"""Checks the shapes in the signatures of floor 1 while the tests run (`--jaxtyping-packages` in pyproject.toml)."""

from collections.abc import Callable
from typing import TypeVar

from beartype import beartype

Function = TypeVar("Function", bound=Callable[..., object])


def check(function: Function) -> Function:
    """Check a function's arguments and result; one within another is left, for it would be compiled at every call."""
    return function if "<locals>" in function.__qualname__ else beartype(function)
