"""Kernels by fork: a process that has imported what notebooks need, and becomes a kernel for each line it reads.

Imports take longer than many notebooks; a fork takes none. ``python -m vlmad_lib.reporting.kernel MODULE...`` imports
these, reads a JSON object a line (``arguments`` of the kernel, ``place``, ``environment``) and answers with the number
of its process. Linux only.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from importlib import import_module


def main() -> None:
    """Serve until standard input ends."""
    for name in sys.argv[1:]:
        import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the kernels: the system clears them away
    for line in sys.stdin:
        number = os.fork()
        if not number:
            _become(**json.loads(line))
        print(number, flush=True)


def _become(arguments: list[str], place: str, environment: dict[str, str]) -> None:
    """Be a kernel to the end: in a group of processes of its own, as if started by a command line."""
    parent = os.getppid()
    os.setsid()
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)  # what is written there would be taken for an answer
    for one in (signal.SIGCHLD, signal.SIGINT):
        signal.signal(one, signal.SIG_DFL if one == signal.SIGCHLD else signal.default_int_handler)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(place)
    from ipykernel.kernelapp import IPKernelApp

    if (cores := environment.get("OMP_NUM_THREADS", "")) and (torch := sys.modules.get("torch")):
        torch.set_num_threads(int(cores))  # OpenMP read the variable when it was loaded
    sys.path.insert(0, "")
    sys.argv = ["ipykernel", *arguments]
    try:
        IPKernelApp.launch_instance([*arguments, f"--IPKernelApp.parent_handle={parent}"])
    finally:
        os._exit(0)  # whatever else the server has open is not this process's to close


if __name__ == "__main__":
    main()
