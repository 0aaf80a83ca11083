"""Every name in `__all__` exists."""

import longlora


def test_every_public_name_resolves() -> None:
    assert longlora.__all__
    assert [name for name in longlora.__all__ if not hasattr(longlora, name)] == []
