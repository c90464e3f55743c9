"""Tables of text that people and other programs write: CSV with commas, semicolons or tabs, UTF-8 or Excel's UTF-16."""

from __future__ import annotations

import codecs
import csv
import io
import warnings
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from vlmad_lib import InputError

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs"}


def read_text_table(file: Path, columns: Sequence[str], remedy: str, named: Sequence[str] = ()) -> pd.DataFrame:
    """A CSV of text that has these columns, and one of those ``named``; InputError otherwise.

    The header tells what separates its columns (``attrs["separator"]``). Names of these columns may have capitals;
    spaces around names and values are no part of them.
    """
    try:
        text = _decode(file.read_bytes())
        separator = _separator(text, [*columns, *named])
        with warnings.catch_warnings(action="error", category=pd.errors.ParserWarning):  # pandas would cut rows short
            table = pd.read_csv(
                io.StringIO(text), sep=separator, dtype=str, keep_default_na=False, skipinitialspace=True,
                index_col=False,
            )  # fmt: skip
    except pd.errors.ParserWarning:
        start = f"{file} has rows with more values than its header has names: put text and numbers with "
        raise InputError(f"{start}{SEPARATORS[separator]} in quotes, or separate columns by something else.") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise InputError(f"{file} is not a readable CSV ({reason}); {remedy}.") from None
    plain = {name.casefold(): name for name in [*columns, *named]}
    table.columns = [plain.get(name.strip().casefold(), name.strip()) for name in map(str, table.columns)]
    for name in table.columns[table.columns.duplicated()]:
        raise InputError(f"{file} has the column {name!r} twice; remove one of them.")
    table = table.apply(lambda values: values.str.strip())
    needed = [*columns, *([] if set(named) & set(table) else named[:1])]
    if absent := [name for name in needed if name not in table]:
        raise InputError(
            f"{file} lacks the column {absent[0]!r}; it needs {', '.join(needed)}, separated by commas, semicolons "
            "or tabs."
        )
    table.attrs["separator"] = separator
    return table


def _decode(content: bytes) -> str:
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content.decode("utf-16")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ValueError(f"line {line} is not UTF-8; in Excel choose 'CSV UTF-8'") from None


def _separator(text: str, names: Sequence[str]) -> str:
    """What separates the header into most of the names."""
    header = next((line for line in text.splitlines() if line.strip()), "")

    def matches(separator: str) -> int:
        cells = next(csv.reader([header], delimiter=separator, skipinitialspace=True), [])
        return len({cell.strip().casefold() for cell in cells} & {name.casefold() for name in names})

    return max(SEPARATORS, key=matches)
