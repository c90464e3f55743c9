"""What can be trained: ``python -m vlmad_lib train METHOD ...``."""

from __future__ import annotations

import sys

from vlmad_lib.methods import training
from vlmad_lib.methods.projection_training import APRILGAN
from vlmad_lib.methods.prompt_training import COOP, PROMPTS

TASKS = {task.method: task for task in (PROMPTS, COOP, APRILGAN)}


def main(arguments: list[str]) -> int:
    """Train what the method named first learns; the exit code of that, or 2 where it learns nothing."""
    if arguments and arguments[0] in TASKS:
        return training.main(TASKS[arguments[0]], arguments[1:])
    print(f"python -m vlmad_lib train METHOD ...: METHOD is one of {', '.join(TASKS)}.", file=sys.stderr)
    return 2
