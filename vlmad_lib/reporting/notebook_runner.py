"""Runs notebooks by papermill, several at a time: each has a thread and a kernel, a share of the cores, and an end.

On Linux a kernel is a fork of Python's fork server, which has imported what notebooks import: starting one by a command
line takes five to eight CPU seconds, more than many notebooks need. Elsewhere kernels start as Jupyter starts them.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import chain, repeat
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from threading import Lock, current_thread, main_thread
from types import ModuleType
from typing import Any, ClassVar
from uuid import uuid4

import joblib
import papermill
from jupyter_client import AsyncKernelManager
from jupyter_client.provisioning import LocalProvisioner
from papermill.engines import NBClientEngine, NotebookExecutionManager, papermill_engines

# what the fork server imports before the first kernel is wanted
PRELOADED = [
    "ipykernel.kernelapp",
    "vlmad_lib.reporting.notebook_runner",
    "matplotlib.pyplot",
    "scipy.stats",
    "vlmad_lib.reporting.figures",
    "vlmad_lib.pipeline.run",
    "open_clip",
]
MAIN = Lock()  # held while another module stands in the place of the main one
FORKS = sys.platform == "linux"  # elsewhere loaded libraries may not survive a fork
SOCKET_FOLDER = 80  # bytes of a folder's path that leave room for a socket's name: systems allow 104 or more for both
# environment variables that tell PyTorch and NumPy, and joblib, how many cores a process may use
CORES = ("OMP_NUM_THREADS", "LOKY_MAX_CPU_COUNT")


def start_server(at_once: int) -> None:
    """Start the fork server, which imports what notebooks need while something else is done; ``at_once`` will run."""
    if FORKS:
        forkserver.set_forkserver_preload(PRELOADED)
        resource_tracker.ensure_running()  # it unblocks the signal
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # inherited: Ctrl-C does not end the server
        try:
            with _share_cores(at_once):
                forkserver.ensure_running()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


class ForkedKernel(multiprocessing.get_context("forkserver").Process if FORKS else object):
    """A kernel's process with the names of ``subprocess.Popen`` that ``LocalProvisioner`` uses."""

    stdin = stdout = stderr = None

    def poll(self) -> int | None:
        """The exit code; None while the process runs."""
        return self.exitcode

    def wait(self) -> int | None:
        """Wait for the end; the exit code."""
        self.join()
        return self.exitcode

    def send_signal(self, number: int) -> None:
        """Send the process a signal."""
        os.kill(self.pid, number)


def _run_kernel(arguments: list[str], folder: str, environment: dict[str, str]) -> None:
    """Be a kernel to the end: in a group of processes of its own, as if started by a command line."""
    os.setsid()
    multiprocessing.set_start_method(None, force=True)  # the usual one: a child of a fork server has that of its parent
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    from ipykernel.kernelapp import IPKernelApp

    if (cores := environment.get("OMP_NUM_THREADS", "")) and (torch := sys.modules.get("torch")):
        torch.set_num_threads(int(cores))  # OpenMP read the variable when it was loaded
    sys.path.insert(0, "")
    sys.argv = ["ipykernel", *arguments]
    try:  # a kernel ends when the process with this number, the fork server, is its parent no more
        IPKernelApp.launch_instance([*arguments, f"--IPKernelApp.parent_handle={os.getppid()}"])
    finally:
        os._exit(0)  # whatever else the server has open is not this process's to close


class ForkProvisioner(LocalProvisioner):
    """Starts a kernel as a fork of the fork server."""

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> dict[str, Any]:
        """Start a kernel by its command line, which ends in ``-f <file>`` and options."""
        environment = dict(kwargs["env"]) | {"JPY_PARENT_PID": str(os.getpid())}  # as kernels not forked have it
        folder = str(kwargs.get("cwd") or Path.cwd())
        start_server(1)  # where it runs already this does nothing
        process = ForkedKernel(target=_run_kernel, args=(cmd[cmd.index("-f") :], folder, environment))
        with MAIN:  # a child of a fork server would run the script of this process up to its ``if __name__`` again
            main, sys.modules["__main__"] = sys.modules["__main__"], ModuleType("__main__")
            try:
                process.start()  # waits until the server has imported everything
            finally:
                sys.modules["__main__"] = main
        self.process, self.pid, self.pgid = process, process.pid, process.pid
        return self.connection_info


class Kernel(AsyncKernelManager):
    """A kernel that another thread than its notebook's can stop.

    It talks through files of a folder of its own where the system can do that: this needs no network, not even the
    loopback interface, and no two kernels can take the same port.
    """

    running: ClassVar[set[Kernel]] = set()
    folder: str = ""

    async def start_kernel(self, **kwargs: Any) -> None:
        """Start the kernel and list it among those running."""
        self.running.add(self)
        self.folder = self.folder or tempfile.mkdtemp(prefix="vlmad-")
        self.connection_file = str(Path(self.folder) / "kernel.json")
        if hasattr(socket, "AF_UNIX") and len(os.fsencode(self.folder)) <= SOCKET_FOLDER:
            self.transport, self.ip = "ipc", str(Path(self.folder) / "kernel")
        if FORKS:
            self.kernel_id = self.kernel_id or uuid4().hex
            self.provisioner = ForkProvisioner(kernel_id=self.kernel_id, kernel_spec=self.kernel_spec, parent=self)
        await super().start_kernel(**kwargs)

    async def cleanup_resources(self, restart: bool = False) -> None:
        """Forget the kernel, which has ended."""
        await super().cleanup_resources(restart)
        if not restart:
            shutil.rmtree(self.folder, ignore_errors=True)
        self.running.discard(self)


class QuietEngine(NBClientEngine):
    """Papermill's own engine; it writes the notebook once, at its end, however it ends.

    Writing all pictures before and after each cell, as papermill does, takes longer than most cells.
    """

    @classmethod
    def execute_managed_notebook(cls, nb_man: NotebookExecutionManager, kernel_name: str, **kwargs: Any) -> None:
        """Run the notebook's cells."""
        output, nb_man.output_path = nb_man.output_path, None
        try:
            super().execute_managed_notebook(nb_man, kernel_name, **kwargs)
        finally:
            nb_man.output_path = output


papermill_engines.register("quiet", QuietEngine)


def execute_notebook(notebook: Path, output: Path, parameters: dict[str, Any], folder: Path) -> None:
    """Run a notebook in ``folder`` by papermill and write it with its outputs; raises what its kernel dies of."""
    paths = [str(path).replace("{", "{{").replace("}", "}}") for path in (notebook, output)]  # papermill formats them
    papermill.execute_notebook(
        *paths, parameters, engine_name="quiet", kernel_name="python3", language="python", progress_bar=False,
        kernel_manager_class=Kernel, extra_arguments=["--log-level=CRITICAL"],
        # not papermill's cwd: it changes that of this process, which all threads share
        resources={"metadata": {"path": str(folder)}},
    )  # fmt: skip


def run_jobs(jobs: Sequence[Callable[[], Any]], at_once: int, on_end: Callable[[int, Any], None]) -> None:
    """Do the jobs, ``at_once`` at a time and in their order, and hand over each one's number and result as it ends.

    When anything is raised here, as by Ctrl-C, what has not begun is left out and the kernels of the rest are stopped.
    """
    at_once = max(1, min(at_once, len(jobs)))
    with _share_cores(at_once), _note_interrupts() as interrupts, ThreadPoolExecutor(at_once) as pool:
        numbers = {pool.submit(job): number for number, job in enumerate(jobs)}
        left = set(numbers)
        try:
            while left:
                done, left = wait(left, 1, FIRST_COMPLETED)
                for job in done:
                    on_end(numbers[job], job.result())
                if interrupts:
                    raise KeyboardInterrupt
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            _stop_kernels(numbers)
            raise


@contextlib.contextmanager
def _note_interrupts() -> Iterator[list[int]]:
    """A list in which Ctrl-C is noted as well: Python drops an exception that it raises in a finaliser."""
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
def _share_cores(at_once: int) -> Iterator[None]:
    """Processes started meanwhile take an even share of the cores, where nobody has said how many."""
    unset = [name for name in CORES if name not in os.environ]
    os.environ.update(dict.fromkeys(unset, str(max(1, joblib.cpu_count() // max(1, at_once)))))
    try:
        yield
    finally:
        for name in unset:
            del os.environ[name]


def _stop_kernels(jobs: Iterable[Future]) -> None:
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
