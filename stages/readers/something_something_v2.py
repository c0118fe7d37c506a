"""Something-Something v2: short clips of things done to things, and the sentence template that each follows.

Source: the label files of Goyal et al., arXiv 1706.04261, in the names of both releases.
"""

from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, Literal

from stages.errors import ConfigError
from stages.readers import Source
from stages.readers._annotations import AnnotatedConfig, Segment, Videos, labelled, streamed
from stages.readers._tables import Where, document, lines, objects
from stages.storage.workspace import Workspace

_PREFIX = "something-something-v2-"
_FILES: Mapping[str, str] = MappingProxyType({"train": "train.json", "val": "validation.json", "test": "test.json"})
_ANSWERS = "test-answers.csv"


class Config(AnnotatedConfig):
    """The clips of the three lists. The class is the template without brackets, the caption the sentence with its things, and
    ``placeholders`` are the things. Test clips have a class where ``test-answers.csv`` is there."""

    name: Literal["something_something_v2"] = "something_something_v2"
    """The name in a recipe."""

    splits: tuple[Literal["train", "val", "test"], ...] = ("train", "val")
    """Which lists to read."""

    file: str = "{id}.webm"
    """Where a video lies below ``videos``: a template of ``id``; the ending ``.*`` finds any."""

    def sources(self, workspace: Workspace) -> Iterable[Source]:
        """The clips of the lists.

        Raises:
            SourceMissing: a list is not there.
            ConfigError: a list cannot be understood.
        """
        return streamed(self._segments())

    def _segments(self) -> Iterator[Segment]:
        numbers, videos = self._numbers(), Videos(self)
        for split in self.splits:
            answers = self._answers() if split == "test" else {}
            needed = ("id",) if split == "test" else ("id", "template")
            for where, entry in objects(self._official(_FILES[split]), *needed):
                video_id = str(entry["id"])
                name = _plain(entry.get("template")) or answers.get(video_id, "")
                if name and name not in numbers:
                    raise where.wrong(f"template {name!r} is none of the {len(numbers)} labels; take all files of one release")
                labels = labelled(
                    {
                        "class": name,
                        "class_id": numbers.get(name),
                        "split": split,
                        "caption": entry.get("label"),
                        "placeholders": _things(entry, where),
                    }
                )
                yield Segment(where, *videos.find(where, id=video_id), None, labels)

    def _official(self, name: str) -> str:
        return self.annotation(_PREFIX + name, name)

    def _numbers(self) -> dict[str, str]:
        url = self._official("labels.json")
        labels = document(url)
        if not isinstance(labels, dict):
            raise ConfigError(f"{url}, line 1: is not an object of templates with their numbers; take the official file")
        return {_plain(template): str(number) for template, number in labels.items()}

    def _answers(self) -> dict[str, str]:
        """The class of test clips: lines of ``id;class``, in the newer release only."""
        if not self.has_annotation(_ANSWERS):
            return {}
        answers = {}
        for where, line in lines(self.annotation(_ANSWERS)):
            video_id, separator, name = line.partition(";")
            if not separator:
                raise where.wrong(f"is {line[:80]!r} and not id;class; take the official file")
            answers[video_id.strip()] = _plain(name)
        return answers


def _plain(template: Any) -> str:
    return str(template or "").replace("[", "").replace("]", "").strip()


def _things(entry: Mapping[str, Any], where: Where) -> list[str]:
    things = entry.get("placeholders") or []
    if not isinstance(things, list):
        raise where.wrong(f"placeholders are {str(things)[:80]} and not a list; take the official file")
    return [str(thing) for thing in things]
