"""How far long work is, and how long the rest takes: a bar where somebody watches, otherwise a line a minute.

The rest is estimated from the work that was done since the first result came, so neither the start of worker processes
nor images that cost more than others falsify it.
"""

from __future__ import annotations

import io
import sys
import time
from typing import Any

from tqdm.auto import tqdm

LINE_SECONDS = 60  # from one line to the next where nobody watches
SURE_SECONDS = 3  # from the first result to the first estimate


class Bar(tqdm):
    """A bar that counts things and estimates the rest by the work that they are; it vanishes when it is closed.

    Args:
        total: How many things there are.
        work: The work of all of them in any unit; their number where each is as much as another.
        lines: Whether to print a line each minute to stderr in place of a bar.
        **options: As for tqdm: ``desc``, ``unit`` (in the plural) and ``disable``.
    """

    def __init__(self, total: int, work: float = 0.0, lines: bool = False, **options: Any):
        self.work, self.work_done, self.lines = work or float(total), 0.0, lines
        self.work_of_one = self.work / max(total, 1)  # for now: whoever counts things that differ sets it before
        self.first: tuple[float, float] | None = None  # when the first result was there, and the work that it was
        bar = "" if lines else "{bar}|"
        options |= {"bar_format": "{l_bar}" + bar + " {n_fmt}/{total_fmt} {unit} [{elapsed}<{left}{postfix}]"}
        if lines:
            options |= {"file": io.StringIO(), "delay": LINE_SECONDS, "mininterval": LINE_SECONDS, "miniters": 1}
        super().__init__(total=total, leave=False, **options)

    def update(self, n: float | None = 1) -> bool | None:
        """Count ``n`` things more, each as much work as ``work_of_one``."""
        self.work_done += (n or 0) * self.work_of_one
        if self.first is None and n:
            self.first = time.monotonic(), self.work_done
        return super().update(n)

    def estimate_rest(self) -> float | None:
        """Seconds that the rest takes at the rate since the first result; None where that is not known yet."""
        if self.total and self.n >= self.total:
            return 0.0
        began, before = self.first or (0.0, 0.0)
        seconds, done = time.monotonic() - began, self.work_done - before
        if not self.first or seconds < SURE_SECONDS or done <= 0:
            return None
        return max(self.work - self.work_done, 0) * seconds / done

    @property
    def format_dict(self) -> dict[str, Any]:
        """What tqdm formats, and ``left``, the time that the rest takes."""
        rest = self.estimate_rest()
        return super().format_dict | {"left": "?" if rest is None else self.format_interval(rest)}

    def display(self, msg: str | None = None, *args: Any, **kwargs: Any) -> bool | None:
        """Draw the bar, or print the line."""
        if not self.lines:
            return super().display(msg, *args, **kwargs)
        if msg is None and 0 < self.n < self.total:  # an empty message wipes a bar
            print(self, file=sys.stderr, flush=True)
        return True
