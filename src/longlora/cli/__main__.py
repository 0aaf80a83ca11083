"""Entry point of `python -m longlora.cli`, for launchers that start a module."""

from longlora.cli.main import main

main()
