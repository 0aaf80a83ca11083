"""What the package says it offers is there."""

import longlora


def test_every_public_name_resolves() -> None:
    assert longlora.__all__
    assert [name for name in longlora.__all__ if not hasattr(longlora, name)] == []
