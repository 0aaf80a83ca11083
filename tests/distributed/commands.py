"""Commands of longlora, each in several ranks, one after another: `[[PROCESSES, LOG, ARGUMENT, …], …]` as JSON.

They are forks of one process, which has imported everything, and so start in a tenth of the time of launched ones. To a
rank it is the same: what a launcher tells it by the environment is there.
"""

import json
import os
import socket
import sys
import traceback

from longlora.cli.main import main
from longlora.training import run as imports_everything  # noqa: F401


def start(arguments: list[str], environment: dict[str, str], log: str) -> int:
    """Run a command in a fork, and return the number of its process."""
    if (child := os.fork()) != 0:
        return child
    status = 1
    try:
        file = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        os.dup2(file, 1)
        os.dup2(file, 2)
        os.environ |= environment
        sys.argv = ["longlora", *arguments]
        main()
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def run(processes: int, log: str, arguments: list[str]) -> list[int]:
    """Run a command in so many ranks, and return the status of each."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1])}
    counts = {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes), "OMP_NUM_THREADS": "1"}
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]
    environments = [{**meeting, **counts, **rank} if processes > 1 else {} for rank in ranks]
    children = [start(arguments, environment, log) for environment in environments]
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


if __name__ == "__main__":
    print(json.dumps([run(count, log, arguments) for count, log, *arguments in json.loads(sys.argv[1])]))
