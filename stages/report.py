"""The report as one HTML page that needs nothing else: images inside, no scripts, nothing loaded from anywhere."""

import base64
import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from stages import pages
from stages.protocol import Question
from stages.scoring import Comparison, Estimate, Measured, Score
from stages.summary import Fact, Origin, Quarantine

TEMPLATE = "report.html.jinja"


@dataclasses.dataclass(frozen=True)
class Shown:
    """One figure with what it shows."""

    name: str
    """Its file among the figures, without the ending."""
    title: str
    caption: str
    png: bytes
    webm: bytes | None = None
    """The same as a film, if there is one."""


@dataclasses.dataclass(frozen=True)
class Asked:
    """One label with everything that was found for it."""

    question: Question
    sentences: Sequence[str]
    scores: Sequence[Score]
    comparisons: Sequence[Comparison]
    measures: Sequence[Measured]
    charts: Sequence[Shown]

    @property
    def probes(self) -> list[str]:
        """The readers, in the order of the recipe."""
        return list(dict.fromkeys(score.probe for score in self.scores))

    @property
    def features(self) -> list[str]:
        """The kinds of features, the pretrained encoder's first."""
        return list(dict.fromkeys(score.features for score in self.scores))

    def score(self, features: str, probe: str) -> Score | None:
        """One cell of the table; ``None`` where this reader did not read these features."""
        return next((score for score in self.scores if (score.features, score.probe) == (features, probe)), None)

    def comparison(self, baseline: str, probe: str) -> Comparison | None:
        """How the pretrained encoder stands to one kind of features; ``None`` for itself."""
        return next((one for one in self.comparisons if (one.baseline, one.probe) == (baseline, probe)), None)

    @property
    def details(self) -> list[tuple[str, str]]:
        """The further numbers that some score has: what they are called, and the field."""
        named = {
            "Top 5": "top5_accuracy",
            "Mean over classes": "mean_class_accuracy",
            "mAP": "mean_average_precision",
            "Calibration error": "calibration_error",
        }
        return [(title, field) for title, field in named.items() if any(getattr(score, field) for score in self.scores)]

    @property
    def measured(self) -> list[tuple[str, str]]:
        """Every number that was measured: the measure and the name of the number."""
        return list(dict.fromkeys((one.measure, name) for one in self.measures for name in one.values))

    def estimate(self, features: str, measure: str, name: str) -> Estimate | None:
        """One measured number; ``None`` where the clips did not suffice."""
        return next((one.values.get(name) for one in self.measures if (one.features, one.measure) == (features, measure)), None)


@dataclasses.dataclass(frozen=True)
class Report:
    """Everything the page says."""

    dataset: str
    facts: Sequence[Fact]
    asked: Sequence[Asked]
    examples: Sequence[Shown]
    """Tested clips with what was said of them."""
    pictures: Sequence[Shown]
    curves: Sequence[Shown]
    origins: Sequence[Origin]
    quarantine: Quarantine
    titles: Mapping[str, str]
    """What to call features and probes."""

    @property
    def figures(self) -> list[Shown]:
        """Every figure, in the order of the page."""
        return [*(chart for asked in self.asked for chart in asked.charts), *self.examples, *self.pictures, *self.curves]


def render(report: Report) -> bytes:
    """The page, in UTF-8. Every text in it is escaped: file names and labels come from whoever made the videos."""
    filters: dict[str, Callable[..., Any]] = {"embedded": _embedded, "embedded_film": _embedded_film, "plain_json": _plain_json}
    return pages.render(TEMPLATE, filters, report=report)


def _embedded(png: bytes) -> Markup:
    return Markup("data:image/png;base64,") + base64.b64encode(png).decode()


def _embedded_film(webm: bytes) -> Markup:
    return Markup("data:video/webm;base64,") + base64.b64encode(webm).decode()


def _plain_json(value: Mapping[str, object]) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)
