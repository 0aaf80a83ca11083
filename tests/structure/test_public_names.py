"""What the package says it offers is there."""

import pytest

import longlora


def test_every_public_name_resolves() -> None:
    if not hasattr(longlora, "__all__"):
        pytest.skip("longlora names nothing public yet")
    assert longlora.__all__
    assert [name for name in longlora.__all__ if not hasattr(longlora, name)] == []
