"""Why a file gives no text: said beside its name, while the work goes on with the next one."""


class UnreadableFileError(Exception):
    """One file gives no text, for the reason given; whether that ends the run is for the caller to say."""
