"""Notebooks several at a time: a thread and a kernel each, which shares the machine's cores and stops on Ctrl-C.

On Linux kernels are forked from one process that has imported what they will (``kernel``).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import chain, repeat
from pathlib import Path
from threading import Lock, current_thread, main_thread
from typing import Any, ClassVar
from uuid import uuid4

import joblib
import papermill
from jupyter_client import AsyncKernelManager
from jupyter_client.provisioning import LocalProvisioner
from nbformat import NotebookNode
from papermill.engines import NBClientEngine, NotebookExecutionManager, papermill_engines

PRELOADED = [
    "ipykernel.kernelapp",
    "matplotlib.pyplot",
    "scipy.stats",
    "vlmad_lib.reporting.figures",
    "vlmad_lib.pipeline.run",
    "open_clip",
]
SOCKET_FOLDER = 80  # bytes of a folder's path that leave room for a socket's name: systems allow 104 or more for both
CORES = ("OMP_NUM_THREADS", "LOKY_MAX_CPU_COUNT")
"""What tells PyTorch and NumPy, and joblib, how many cores a process may use."""


def cores(at_once: int) -> dict[str, str]:
    """An even share of the cores for so many kernels, where nobody has said how many, as environment variables."""
    share = str(max(1, joblib.cpu_count() // max(1, at_once)))
    return {name: os.environ.get(name, share) for name in CORES}


class Server:
    """The process that kernels are forked from, started when the first is wanted or before."""

    def __init__(self) -> None:
        self.process, self.lock = None, Lock()

    def start(self, at_once: int) -> None:
        """Let it import what kernels need while something else is done; so many will run at once."""
        with self.lock, contextlib.suppress(OSError):
            self._start(os.environ | cores(at_once))

    def _start(self, environment: dict[str, str]) -> None:
        if self.process is None and hasattr(os, "pidfd_open"):
            command = [sys.executable, "-m", "vlmad_lib.reporting.kernel", *PRELOADED]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
            self.process = subprocess.Popen(command, **pipes, start_new_session=True, env=environment)

    def fork(self, cmd: list[str], place: Path, environment: dict[str, str]) -> int:
        """The process number of a new kernel, by a command line that ends in ``-f <file>`` and options; 0 for none."""
        environment = environment | {"JPY_PARENT_PID": str(os.getpid())}  # as a kernel that is not forked has it
        asked = {"arguments": cmd[cmd.index("-f") :], "place": str(place), "environment": environment}
        with self.lock:
            try:
                self._start(dict(os.environ))
                print(json.dumps(asked), file=self.process.stdin, flush=True)
                return int(self.process.stdout.readline() or 0)
            except OSError:
                return 0

    def stop(self) -> None:
        """Let it end."""
        with self.lock:
            if self.process:
                self.process.terminate()  # at once, though it may still be importing; kernels are on their own
                self.process.communicate()
                self.process = None


SERVER = Server()


class Forked(LocalProvisioner):
    """A kernel's process, forked where that can be done."""

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> dict[str, Any]:
        """Start a kernel."""
        place = kwargs.get("cwd") or Path.cwd()
        number = SERVER.fork(cmd, place, dict(kwargs["env"])) if hasattr(os, "pidfd_open") else 0
        if not number:
            return await super().launch_kernel(cmd, **kwargs)
        self.process, self.pid, self.pgid = Process(number), number, number
        return self.connection_info


class Process:
    """A process that is not our child, with the names of ``subprocess.Popen`` that ``LocalProvisioner`` uses."""

    stdin = stdout = stderr = None

    def __init__(self, number: int):
        self.pid, self.handle = number, os.pidfd_open(number)

    def poll(self) -> int | None:
        """None while it runs; how it ended is not known here."""
        return 0 if select.select([self.handle], [], [], 0)[0] else None

    def wait(self) -> int:
        """Wait for its end."""
        select.select([self.handle], [], [])
        os.close(self.handle)
        return 0

    def send_signal(self, number: int) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        """Ask it to end."""
        self.send_signal(signal.SIGTERM)


class Kernel(AsyncKernelManager):
    """A kernel that another thread than its notebook's can stop.

    It talks through files of a folder of its own where the system can do that: this needs no network, not even the
    loopback interface, and no two kernels can take the same port.
    """

    running: ClassVar[set[Kernel]] = set()
    place: str = ""

    async def start_kernel(self, **kwargs: Any) -> None:
        """Start the kernel and list it among those running."""
        self.running.add(self)
        self.place = self.place or tempfile.mkdtemp(prefix="vlmad-")
        self.connection_file = str(Path(self.place) / "kernel.json")
        if hasattr(socket, "AF_UNIX") and len(os.fsencode(self.place)) <= SOCKET_FOLDER:
            self.transport, self.ip = "ipc", str(Path(self.place) / "kernel")
        self.kernel_id = self.kernel_id or uuid4().hex
        self.provisioner = Forked(kernel_id=self.kernel_id, kernel_spec=self.kernel_spec, parent=self)
        await super().start_kernel(**kwargs)

    async def cleanup_resources(self, restart: bool = False) -> None:
        """Forget the kernel, which has ended."""
        await super().cleanup_resources(restart)
        if not restart:
            shutil.rmtree(self.place, ignore_errors=True)
        self.running.discard(self)


class Sparing(NotebookExecutionManager):
    """Writes a notebook every few seconds and when it ends, not before and after each cell.

    All its pictures are written each time, which took longer than most cells.
    """

    SECONDS = 10

    def save(self, **kwargs: Any) -> None:
        """Write the notebook if it has ended, or if some time has gone by."""
        if self.end_time or (self.now() - self.last_save_time).total_seconds() > self.SECONDS:
            super().save(**kwargs)


class Engine(NBClientEngine):
    """Papermill's own engine but for how often it writes."""

    @classmethod
    def execute_notebook(
        cls, nb: NotebookNode, kernel_name: str, output_path: str | None = None, progress_bar: bool = False,
        log_output: bool = False, autosave_cell_every: int = 30, **kwargs: Any,
    ) -> NotebookNode:  # fmt: skip
        """Run the notebook; it is written whatever becomes of it."""
        manager = Sparing(nb, output_path, log_output, progress_bar, autosave_cell_every)
        manager.notebook_start()
        try:
            cls.execute_managed_notebook(manager, kernel_name, log_output=log_output, **kwargs)
        finally:
            manager.notebook_complete()
        return manager.nb


papermill_engines.register("sparing", Engine)


def execute(notebook: Path, output: Path, parameters: dict[str, Any], folder: Path) -> None:
    """Run a notebook in ``folder`` by papermill and write it as it runs; raises what its kernel dies of."""
    paths = [str(path).replace("{", "{{").replace("}", "}}") for path in (notebook, output)]  # it formats
    named = {"kernel_name": "python3", "language": "python", "kernel_manager_class": Kernel}
    quiet = {"engine_name": "sparing", "progress_bar": False, "extra_arguments": ["--log-level=CRITICAL"]}
    # not papermill's cwd: it changes that of this process, which all threads share
    where = {"resources": {"metadata": {"path": str(folder)}}}
    papermill.execute_notebook(*paths, parameters, **named, **quiet, **where)


def run(jobs: Sequence[Callable[[], Any]], at_once: int, ended: Callable[[int, Any], None]) -> None:
    """Do the jobs, ``at_once`` at a time and in their order, and hand over each one's number and result as it ends.

    When anything is raised here, as by Ctrl-C, what has not begun is left out and the kernels of the rest are stopped.
    """
    at_once = max(1, min(at_once, len(jobs)))
    with _shared(at_once), _heeded() as interrupts, ThreadPoolExecutor(at_once) as pool:
        numbers = {pool.submit(job): number for number, job in enumerate(jobs)}
        left = set(numbers)
        try:
            while left:
                done, left = wait(left, 1, FIRST_COMPLETED)
                for job in done:
                    ended(numbers[job], job.result())
                if interrupts:
                    raise KeyboardInterrupt
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            _stop(numbers)
            raise
        finally:
            SERVER.stop()


@contextlib.contextmanager
def _heeded() -> Iterator[list[int]]:
    """What Ctrl-C is noted in: Python drops the exception where it meets it in a finaliser."""
    interrupts: list[int] = []

    def note(number: int, frame: Any) -> None:
        interrupts.append(number)
        raise KeyboardInterrupt

    usual = current_thread() is main_thread() and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if usual:
        signal.signal(signal.SIGINT, note)
    try:
        yield interrupts
    finally:
        if usual:
            signal.signal(signal.SIGINT, signal.default_int_handler)


@contextlib.contextmanager
def _shared(at_once: int) -> Iterator[None]:
    """Kernels started meanwhile take an even share of the cores, where nobody has said how many."""
    before = dict(os.environ)
    os.environ.update(cores(at_once))
    try:
        yield
    finally:
        for name in CORES:
            if name not in before:
                del os.environ[name]


def _stop(jobs: Iterable[Future]) -> None:
    """Interrupt the kernels until all jobs have ended; kill those that do not heed it."""
    for kill in chain([False] * 3, repeat(True)):
        left = [job for job in jobs if not job.done()]
        if not left:
            return
        for kernel in tuple(Kernel.running):
            if kernel.provisioner:  # none before its process exists
                with contextlib.suppress(ProcessLookupError):
                    asyncio.run(kernel.provisioner.send_signal(signal.SIGKILL if kill else signal.SIGINT))
        wait(left, timeout=1)
