"""How a command line ends: with an exit code, after one sentence where the input or the system refuses."""

from __future__ import annotations

import errno
import socket
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path

from vlmad_lib import InputError, files

# Exit codes: wrong input or a system that refuses, a fault of this program, Ctrl-C.
WRONG, FAULTY, INTERRUPTED = 2, 3, 130
MOST = 200  # characters of what the system says
DEPTH = 8  # errors that led to one another
_REMEDIES = {
    errno.EACCES: "give yourself the right to use it",
    errno.EPERM: "give yourself the right to use it",
    errno.ENOENT: "restore it, or correct its path",
    errno.EMFILE: "raise the number of files a process may open (ulimit -n), or lower 'workers'",
    errno.ENFILE: "close other programs, or lower 'workers'",
}
_NETWORK = {errno.ENETUNREACH, errno.ENETDOWN, errno.EHOSTUNREACH, errno.EHOSTDOWN, errno.EADDRNOTAVAIL}
_CLIENTS = ("requests", "urllib3", "urllib", "httpx", "httpcore", "huggingface_hub", "aiohttp", "ssl")
_ENDED = {"OutOfMemoryError", "TerminatedWorkerError", "BrokenProcessPool"}  # PyTorch's and joblib's


def explain(error: Exception) -> str:
    """One sentence on an error of the system: the file, the network or the disk that it is of, and the remedy."""
    reason = _one_line(getattr(error, "strerror", None) or str(error) or type(error).__name__)
    number, file = (getattr(error, name, None) for name in ("errno", "filename"))
    again = "then start again: what was finished is kept"
    if _is_network(error):
        return f"The network does not answer ({reason}); connect this machine, or do without it: 'download: false'."
    if number in files.FULL:
        return files.explain_unwritable(file or "A file", reason)
    if not isinstance(file, str):
        return f"The system refuses ({reason}); {_REMEDIES.get(number, 'correct that')}, {again}."
    return f"{file} cannot be used ({reason}); {_REMEDIES.get(number, 'check that disk and its connection')}, {again}."


def _one_line(text: str) -> str:
    text = " ".join(text.split()).lower()
    return text.rstrip(".") if len(text) <= MOST else f"{text[:MOST]} ..."


def _is_network(error: BaseException | None) -> bool:
    """Whether an error is of the network; one that names no file may have arisen from such a one."""
    for _ in range(DEPTH):
        if error is None or isinstance(error, BrokenPipeError):  # of a process, or of a terminal
            return False
        if isinstance(error, ConnectionError | TimeoutError | socket.gaierror):
            return True
        if getattr(error, "errno", None) in _NETWORK or type(error).__module__.partition(".")[0] in _CLIENTS:
            return True
        if getattr(error, "filename", None):
            return False
        error = error.__cause__ or error.__context__
    return False


def _is_memory(error: BaseException) -> bool:
    """Whether memory ran out here, or the system ended a worker, which it does for memory most often."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ in _ENDED
        or (isinstance(error, RuntimeError) and "allocate memory" in str(error))
    )


def run_command(work: Callable[[], int], interrupted: str = "Interrupted; what was finished is kept.") -> int:
    """The exit code of a command line's work.

    Wrong input, an error of the system, lack of memory and Ctrl-C end in one sentence on stderr. So does a fault of
    this program, whose traceback goes to a file that the sentence names.
    """
    try:
        return work()
    except InputError as error:
        sentence, code = str(error), WRONG
    except KeyboardInterrupt:
        sentence, code = interrupted, INTERRUPTED
    except Exception as error:
        if _is_memory(error):
            sentence, code = f"This machine's memory does not suffice ({_one_line(str(error))})", WRONG
            sentence += (
                "; lower 'workers', 'batch' or the number of images, then start again: what was finished is kept."
            )
        elif isinstance(error, OSError) or _is_network(error):
            sentence, code = explain(error), WRONG
        else:
            sentence, code = _fault(error), FAULTY
    print(sentence, file=sys.stderr)
    return code


def _fault(error: Exception) -> str:
    kind = f"{type(error).__name__}: {' '.join(str(error).split())[:MOST]}"
    text = "".join(traceback.format_exception(error))
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="vlmad-fault-", suffix=".txt", delete=False, encoding="utf-8"
        ) as out:
            out.write(text)
    except OSError:
        return f"This is a fault of vlmad, not of your input ({kind}); report it with the command that you gave."
    place = Path(out.name)
    return f"This is a fault of vlmad, not of your input ({kind}); report it with {place}, which says where it arose."
