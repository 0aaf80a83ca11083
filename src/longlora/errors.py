"""The errors that a user can cause or fix, one class per kind of remedy.

    LongLoRAError
    ├── ConfigError       the recipe or a command-line argument is invalid
    ├── DataError         a text, folder or data set is invalid
    ├── CheckpointError   a model or adapter directory is invalid
    ├── ResourceError     a disk is full, a location is not writable, memory ran out
    ├── DivergenceError   the loss became infinite or NaN
    └── LostProcessError  another process of the run is gone

The command line prints only the message and exits with status 2, or 1 for a lost process. Any other exception is a bug.
"""


class LongLoRAError(Exception):
    """Base class of user errors; the message states the requirement, what was found, and the remedy."""


class ConfigError(LongLoRAError):
    """A recipe or an argument is invalid as written."""


class DataError(LongLoRAError):
    """A data source is missing, empty or unreadable."""


class CheckpointError(LongLoRAError):
    """A model, adapter or checkpoint directory is missing, incomplete or of the wrong kind."""


class ResourceError(LongLoRAError):
    """The machine lacks a resource: disk space, write permission or memory."""


class DivergenceError(LongLoRAError):
    """The training loss became infinite or NaN; the last checkpoint is still good."""


class LostProcessError(LongLoRAError):
    """Another process of the run was killed, crashed or cannot be reached; the last checkpoint is still good."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, with the next if it ends in a colon; without one, the class."""
    first, *rest = (str(error).strip() or type(error).__name__).splitlines()
    return f"{first} {rest[0].strip()}" if first.endswith(":") and rest else first
