"""vlmad: vision-language anomaly detection, compared, broken down and explained in notebooks.

Modules, left to right; none knows what stands to its right:
``profile  files  data  backbones  prompts  winclip  features  prompt_learner  anomalyclip  embedding  methods  levels
metrics  statistics  run  plots  report  decide``, and ``prompt_training`` beside ``run``.
"""

from pathlib import Path

__version__ = "0.1.0"

ROOT = Path(__file__).resolve().parent.parent
"""The workbook's own folder: notebooks, profiles, reference figures and caches are found from here."""


class InputError(ValueError):
    """The input is wrong: the message is one sentence that names the file or key and the remedy."""
