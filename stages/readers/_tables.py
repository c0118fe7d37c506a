"""Text, tables and JSON in which every fault has a place: what readers of lists and annotations read with."""

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO, NamedTuple, cast

from stages.errors import ConfigError
from stages.readers._files import opened


class Where(NamedTuple):
    """A spot in an annotation file, for messages."""

    url: str
    spot: str
    """Such as ``line 3``."""

    def wrong(self, what: str) -> ConfigError:
        """The error that names the spot, what is wrong there and what to do about it."""
        return ConfigError(f"{self.url}, {self.spot}: {what}")


class Row(NamedTuple):
    """One row of a table."""

    where: Where
    values: Mapping[str, str]

    def text(self, column: str) -> str:
        """What stands in ``column``, without the spaces around it; a ConfigError if nothing does."""
        value = self.values[column].strip()
        if not value:
            raise self.where.wrong(f"nothing stands in column {column!r}; fill it in or remove the row")
        return value

    def number(self, column: str) -> float:
        """The number in ``column``."""
        return number(self.values[column], self.where, column)

    def integer(self, column: str) -> int:
        """The whole number in ``column``."""
        return integer(self.values[column], self.where, column)


def lines(url: str) -> Iterator[tuple[Where, str]]:
    """Lines of a text in UTF-8, without the spaces around them; empty ones are left out.

    Raises:
        SourceMissing: there is no such file.
        ConfigError: it is not UTF-8.
    """
    for count, line in enumerate(_text(url), start=1):
        if stripped := line.strip():
            yield Where(url, f"line {count}"), stripped


def table(url: str, *, needed: Sequence[str] = (), header: Sequence[str] = (), delimiter: str = ",") -> Iterator[Row]:
    """Rows of a CSV.

    Args:
        url: the file.
        needed: columns that must be there; others may, in any order.
        header: names of the columns, where the file has no line with them.
        delimiter: between the fields.

    Raises:
        SourceMissing: there is no such file.
        ConfigError: it is not a CSV in UTF-8, lacks a column, or a row has too many or too few fields.
    """
    rows = csv.reader(_text(url), strict=True, delimiter=delimiter)
    columns = [name.strip() for name in header or _next(rows, url) or []]
    if missing := [name for name in needed if name not in columns]:
        raise ConfigError(f"{url}, line 1: has no column {missing[0]!r}; it has {columns}, and must have {list(needed)}")
    if len(set(columns)) < len(columns):
        raise ConfigError(f"{url}, line 1: a column comes twice among {columns}; rename one")
    while (fields := _next(rows, url)) is not None:
        where = Where(url, f"line {rows.line_num}")
        if fields and len(fields) != len(columns):
            raise where.wrong(f"has {len(fields)} fields and not the {len(columns)} of {columns}; quote commas within")
        if fields:
            yield Row(where, dict(zip(columns, fields, strict=True)))


def document(url: str) -> Any:
    """What a JSON file says.

    Raises:
        SourceMissing: there is no such file.
        ConfigError: it is not JSON.
    """
    with opened(url) as file:
        return parsed(file.read(), url)


def parsed(text: bytes | str, url: str, spot: str = "") -> Any:
    """What ``text`` says as JSON.

    Raises:
        ConfigError: it is not JSON in UTF-8.
    """
    try:
        return json.loads(text.decode("utf-8-sig") if isinstance(text, bytes) else text)
    except json.JSONDecodeError as error:
        where = Where(url, spot or f"line {error.lineno}")
        raise where.wrong(f"is not JSON: {error.msg}; download or write it again") from error
    except (UnicodeDecodeError, RecursionError) as error:
        raise Where(url, spot or "line 1").wrong(f"is not JSON in UTF-8: {error}; download or write it again") from error


def objects(url: str, *needed: str) -> Iterator[tuple[Where, Mapping[str, Any]]]:
    """The objects of a JSON list.

    Args:
        url: the file.
        needed: keys that each must have.

    Raises:
        ConfigError: it is not a list of such objects.
    """
    entries = document(url)
    if not isinstance(entries, list):
        raise ConfigError(f"{url}, line 1: is not a JSON list; take the official file")
    for count, entry in enumerate(entries, start=1):
        where = Where(url, f"entry {count}")
        if not isinstance(entry, dict) or not all(key in entry for key in needed):
            raise where.wrong(f"is not an object with {', '.join(needed)}: {str(entry)[:80]}; take the official file")
        yield where, entry


def number(text: str, where: Where, what: str) -> float:
    """A finite number.

    Raises:
        ConfigError: ``text`` is none.
    """
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise where.wrong(f"{what} is {text!r}, which is not a number; correct it")
    return value


def integer(text: str, where: Where, what: str) -> int:
    """A whole number.

    Raises:
        ConfigError: ``text`` is none.
    """
    try:
        return int(text)
    except ValueError:
        raise where.wrong(f"{what} is {text!r}, which is not a whole number; correct it") from None


def ordered(start_s: float, end_s: float, where: Where) -> tuple[float, float]:
    """Start and end of a span.

    Raises:
        ConfigError: it ends before it starts, or starts before zero.
    """
    if not 0 <= start_s <= end_s:
        raise where.wrong(f"runs from {start_s:g} s to {end_s:g} s; a span starts at 0 or later and ends after its start")
    return start_s, end_s


def inner(name: str, where: Where) -> str:
    """``name`` as a key: relative, with slashes, and not leading out of its folder.

    Raises:
        ConfigError: it is no such name.
    """
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts or not parts or "\0" in name:
        raise where.wrong(f"names {name!r}, which is not below the folder; give names relative to it")
    return "/".join(parts)


def _text(url: str) -> Iterator[str]:
    """The lines of a text with their ends, decoded."""
    with opened(url) as raw, io.TextIOWrapper(cast(BinaryIO, raw), encoding="utf-8-sig", newline="") as text:
        try:
            yield from text
        except UnicodeDecodeError as error:
            raise ConfigError(f"{url}: is not a text in UTF-8: {error}; save it as UTF-8") from error


def _next(rows: Any, url: str) -> list[str] | None:
    try:
        found: list[str] | None = next(rows, None)
    except csv.Error as error:
        raise Where(url, f"line {rows.line_num}").wrong(f"is not CSV: {error}; correct the quotes") from error
    return found
