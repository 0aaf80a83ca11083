"""Places that a user names, looked at while the command line is read: a mistake is told before torch is loaded."""


def existing_model(name: str) -> str:
    """Make sure that a model is there, unless its name is one of the hub's.

    Raises:
        CheckpointError: it looks like a path, and there is no model there.
    """
    from longlora.models.checkpoint import model_source

    model_source(name)
    return name


def existing_models(names: list[str]) -> list[str]:
    """Make sure of several, as `existing_model` does."""
    return [existing_model(name) for name in names]


def existing_texts(names: list[str] | None) -> list[str] | None:
    """Make sure that texts are there, unless a name is that of a data set on the hub.

    Raises:
        DataError: there is no such thing, or no file in it.
    """
    from longlora.support.locate import locate

    for name in names or ():
        if not name.endswith(".bin"):  # tokens, which are read in another way and say themselves what is wrong
            locate(name)
    return names
