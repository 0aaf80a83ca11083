"""What can go wrong for a user, one class per remedy.

    LongLoRAError
    ├── ConfigError       the recipe or a command-line argument is wrong
    ├── DataError         a text, a folder or a data set is wrong
    ├── CheckpointError   a model or adapter directory is wrong
    └── DivergenceError   the loss stopped being a number

The command line prints the message alone and exits with status 2. Anything else that is raised is a bug of ours.
"""


class LongLoRAError(Exception):
    """A user's mistake; the message says what must hold, what was found, and the remedy."""


class ConfigError(LongLoRAError):
    """A recipe or an argument cannot be followed as written."""


class DataError(LongLoRAError):
    """A data source is missing, empty or unreadable."""


class CheckpointError(LongLoRAError):
    """A model, adapter or checkpoint directory is missing, incomplete or of the wrong kind."""


class DivergenceError(LongLoRAError):
    """Training produced a loss that is not a finite number; the last checkpoint is still good."""


def first_line(error: BaseException) -> str:
    """What an error says, in one line; its class where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
