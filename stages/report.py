"""The report as one HTML page that needs nothing else: images inside, no scripts, nothing loaded from anywhere."""

import base64
import dataclasses
import importlib.resources
import json
from collections.abc import Mapping, Sequence

import jinja2
from markupsafe import Markup

from stages.protocol import Question
from stages.scoring import Comparison, Score
from stages.summary import Fact, Origin, Quarantine, percent, points, probability, span

TEMPLATE = "report.html.jinja"


@dataclasses.dataclass(frozen=True)
class Shown:
    """One figure with what it shows."""

    name: str
    """Its file among the figures, without the ending."""
    title: str
    caption: str
    png: bytes


@dataclasses.dataclass(frozen=True)
class Asked:
    """One label with everything that was found for it."""

    question: Question
    sentences: Sequence[str]
    scores: Sequence[Score]
    comparisons: Sequence[Comparison]
    chart: Shown

    @property
    def probes(self) -> list[str]:
        """The probes, in the order of the recipe."""
        return list(dict.fromkeys(score.probe for score in self.scores))

    @property
    def features(self) -> list[str]:
        """The kinds of features, the pretrained encoder's first."""
        return list(dict.fromkeys(score.features for score in self.scores))

    def score(self, features: str, probe: str) -> Score:
        """One cell of the table."""
        return next(score for score in self.scores if (score.features, score.probe) == (features, probe))

    def comparison(self, baseline: str, probe: str) -> Comparison | None:
        """How the pretrained encoder stands to one kind of features; ``None`` for itself."""
        found = [one for one in self.comparisons if (one.baseline, one.probe) == (baseline, probe)]
        return found[0] if found else None


@dataclasses.dataclass(frozen=True)
class Report:
    """Everything the page says."""

    dataset: str
    facts: Sequence[Fact]
    asked: Sequence[Asked]
    pictures: Sequence[Shown]
    curves: Sequence[Shown]
    origins: Sequence[Origin]
    quarantine: Quarantine
    titles: Mapping[str, str]
    """What to call features and probes."""

    @property
    def figures(self) -> list[Shown]:
        """Every figure, in the order of the page."""
        return [*(asked.chart for asked in self.asked), *self.pictures, *self.curves]


def render(report: Report) -> bytes:
    """The page, in UTF-8. Every text in it is escaped: file names and labels come from whoever made the videos."""
    template = importlib.resources.files("stages").joinpath(TEMPLATE).read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"percent": percent, "span": span, "points": points, "probability": probability}
    environment.filters |= {"embedded": _embedded, "plain_json": _plain_json}
    return environment.from_string(template).render(report=report).encode()


def _embedded(png: bytes) -> Markup:
    return Markup("data:image/png;base64,") + base64.b64encode(png).decode()


def _plain_json(value: Mapping[str, object]) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)
