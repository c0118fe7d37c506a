"""What readers of lists and annotations share: the videos they name, labels, and sources from rows that are parts of them."""

import functools
import itertools
from abc import ABC
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import ClassVar, NamedTuple, Self

from pydantic import model_validator

from stages.errors import ConfigError, SourceMissing
from stages.places import Place, is_remote, listing, place_of
from stages.readers import Labels, ReaderConfig, Source, Span
from stages.readers._files import SUFFIXES, exists, join
from stages.readers._tables import Where, inner

ANY_SUFFIX = ".*"
DEFAULT_SUFFIX = ".mp4"
"""What a missing video is called where the annotations do not know how it ends."""


class Segment(NamedTuple):
    """A span and the source that it is part of."""

    where: Where
    key: str
    place: Place
    span: Span | None
    """Null for all of the source."""
    labels: Labels
    """Of all of the source; empty if the span has them."""


class Once:
    """Refuses what comes a second time; remembers a number per thing, not the thing."""

    def __init__(self) -> None:
        self._seen: set[int] = set()

    def add(self, key: str, where: Where, remedy: str = "remove one of the two") -> None:
        """Take note of ``key``.

        Raises:
            ConfigError: it was there before.
        """
        mark = hash(key)
        if mark in self._seen:
            raise where.wrong(f"{key!r} comes a second time; {remedy}")
        self._seen.add(mark)


class AnnotatedConfig(ReaderConfig, ABC):
    """What the readers of official annotations have in common."""

    EXECUTION: ClassVar[frozenset[str]] = frozenset({"annotations", "videos"})
    FIELDS: ClassVar[Mapping[str, str | int]] = {"id": "x"}
    """What the template ``file`` may name, each with an example."""

    name: str
    """The name in a recipe."""

    annotations: str
    """Folder of the official annotation files, a local path or an URL."""

    videos: str
    """Folder of the videos, a local path or an URL."""

    file: str
    """How a video lies below the folder: a template."""

    @model_validator(mode="after")
    def _template_is_known(self) -> Self:
        try:
            self.file.format_map(self.FIELDS)
        except (KeyError, ValueError, IndexError, AttributeError) as error:
            known = ", ".join(f"{{{field}}}" for field in self.FIELDS)
            raise ValueError(f"file={self.file!r} cannot be filled in ({error}); it may name {known}") from error
        return self

    def dataset_name(self) -> str:
        """The reader's name."""
        return self.name

    def has_annotation(self, name: str) -> bool:
        """Whether a file called ``name`` lies among the annotations."""
        return exists(join(self.annotations, name))

    def annotation(self, *names: str) -> str:
        """The first of the files called ``names`` that lies among the annotations.

        Raises:
            SourceMissing: none does.
        """
        for name in names:
            if exists(url := join(self.annotations, name)):
                return url
        raise SourceMissing(f"{self.annotations}: holds none of {', '.join(names)}; annotations must name the folder with it")


class Videos:
    """The videos that annotations name, found by a template; one that ends in ``.*`` finds them whatever they end in."""

    def __init__(self, config: AnnotatedConfig) -> None:
        """Take the folder and the template of ``config``.

        Raises:
            SourceMissing: there is no such folder.
        """
        self._base = join(config.videos, "")
        if not is_remote(self._base) and not Path(self._base).is_dir():
            raise SourceMissing(
                f"{config.videos}: no such folder; videos must name the folder that the annotated videos are in"
            )
        self._template = config.file

    def find(self, where: Where, **fields: str | int) -> tuple[str, Place]:
        """Key and place of a video; there or not.

        Raises:
            ConfigError: its name leads out of the folder, or two videos have it.
        """
        key = inner(self._template.format_map(fields), where)
        if key.endswith(ANY_SUFFIX):
            stem = key.removesuffix(ANY_SUFFIX)
            key, *others = self._by_stem.get(stem, [stem + DEFAULT_SUFFIX])
            if others:
                raise where.wrong(f"{key!r} and {others[0]!r} are both there; remove one, or let file say how videos end")
        return key, Place(self._base + key)

    @functools.cached_property
    def _by_stem(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for key, _, _ in listing(self._base):
            if key.lower().endswith(SUFFIXES):
                found.setdefault(key.rpartition(".")[0], []).append(key)
        return found


def located(name: str, base: str, where: Where) -> tuple[str, Place]:
    """Key and place of what a list calls ``name``: relative to ``base``, an absolute path, or an URL.

    What lies below ``base``, a place that ends in a slash, is called what it is called there; anything else by its whole path
    or URL without the scheme.
    """
    if not name.startswith("/") and "://" not in name:
        key = inner(name, where)
        return key, Place(base + key)
    try:
        place = place_of(name)
    except ConfigError as error:
        raise where.wrong(str(error)) from error
    below = place.url.removeprefix(base)
    return inner((below.partition("://")[2] or below).lstrip("/"), where), place


def labelled(columns: Mapping[str, object]) -> Labels:
    """Labels from values: a list or a tuple holds several, and what is empty is left out."""
    found = {}
    for column, value in columns.items():
        values = value if isinstance(value, list | tuple) else (value,)
        if texts := tuple([text for each in values if (text := _spelled(each))]):
            found[column] = texts
    return found


def is_value(value: object) -> bool:
    """Whether a value of a JSON file can be a label: a text, a number, a truth value, or a list of these."""
    return all(isinstance(each, str | int | float) for each in (value if isinstance(value, list) else [value]))


def gathered(segments: Iterable[Segment]) -> Iterator[Source]:
    """Sources of segments that lie in any order; holds them all.

    Raises:
        ConfigError: a source is to be cut and taken whole.
    """
    by_key: dict[str, list[Segment]] = {}
    for segment in segments:
        by_key.setdefault(segment.key, []).append(segment)
    return (_source(parts) for _, parts in sorted(by_key.items()))


def streamed(segments: Iterable[Segment], remedy: str = "remove one of the two") -> Iterator[Source]:
    """Sources of segments, those of one source following each other; holds one source at a time.

    Raises:
        ConfigError: segments of one source are apart, or a source is to be cut and taken whole.
    """
    once = Once()
    for key, group in itertools.groupby(segments, key=lambda segment: segment.key):
        parts = list(group)
        once.add(key, parts[0].where, remedy)
        yield _source(parts)


def _source(parts: list[Segment]) -> Source:
    first, names = parts[0], set()
    if len(parts) > 1 and not all(part.span for part in parts):
        raise parts[1].where.wrong(f"{first.key!r} comes a second time, and is taken whole; remove one of the two")
    spans = tuple(part.span for part in parts if part.span)
    for part, span in zip(parts, spans, strict=False):
        if span.native_id in names:
            raise part.where.wrong(f"{first.key!r} has a second span {span.native_id!r}; rename or remove one of the two")
        names.add(span.native_id)
    return Source(key=first.key, place=first.place, labels=first.labels, spans=spans or None)


def _spelled(value: object) -> str:
    if isinstance(value, str):
        return value.strip()
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)
