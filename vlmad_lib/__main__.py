"""The command line: ``python -m vlmad_lib COMMAND ...``; each command says what it takes with ``--help``."""

from __future__ import annotations

import sys
from importlib import import_module

COMMANDS = {
    "report": ("vlmad_lib.reporting.report", "run a profile's notebooks into HTML pages"),
    "decide": ("vlmad_lib.reporting.decide", "judge new pictures by normal ones"),
    "compare": ("vlmad_lib.reporting.compare", "what changed between two reports, as a page"),
    "train": ("vlmad_lib.methods.training", "train what a method learns: anomalyclip, coop or aprilgan"),
    "workload": ("vlmad_lib.pipeline.workload", "how long MVTec AD and VisA take on this machine"),
    "cache": ("vlmad_lib.pipeline.cache", "what is kept of a profile's runs; --prune removes what none needs"),
    "transfer": ("vlmad_lib.analysis.prompt_transfer", "train the demo's prompts by group of categories"),
    "exercises": ("vlmad_lib.reporting.exercises", "write copies of the notebooks without solutions"),
}


def main(arguments: list[str]) -> int:
    """Run the command that the first argument names; its exit code, or 2 where there is no such command."""
    if arguments and arguments[0] in COMMANDS:
        return import_module(COMMANDS[arguments[0]][0]).main(arguments[1:])
    lines = [f"  {name:<10} {purpose}" for name, (_, purpose) in COMMANDS.items()]
    asks_for_help = not arguments or arguments[0] in ("-h", "--help")
    print("\n".join([__doc__.replace("``", ""), *lines]), file=sys.stdout if asks_for_help else sys.stderr)
    return 0 if asks_for_help else 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
