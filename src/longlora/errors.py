"""What can go wrong for a user, one class per remedy.

    LongLoRAError
    ├── ConfigError       the recipe or a command-line argument is wrong
    ├── DataError         a text, a folder or a data set is wrong
    ├── CheckpointError   a model or adapter directory is wrong
    ├── ResourceError     a disk takes no more, a place cannot be written, memory ran out
    ├── DivergenceError   the loss stopped being a number
    └── LostProcessError  another process of the run is gone

The command line prints the message alone and exits with status 2, or 1 where a process was lost. Anything else that is
raised is a bug of ours.
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
    """The machine does not give what is needed: room on a disk, permission to write, memory."""


class DivergenceError(LongLoRAError):
    """The training loss became infinite or NaN; the last checkpoint is still good."""


class LostProcessError(LongLoRAError):
    """Another process of the run was killed, crashed or cannot be reached; the last checkpoint is still good."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or the error's class where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
