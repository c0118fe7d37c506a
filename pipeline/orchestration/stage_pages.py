"""The pages of a run in the Prefect UI, as Markdown: the plan, a stage under way, and a stage that is through."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pipeline.estimation.estimates import HEAD, Forecast, notes, row
from pipeline.orchestration import markdown
from pipeline.plan import Action, Step
from pipeline.runner import Report
from pipeline.wording import duration
from stages.storage.artifact import Artifact

MOST_PICTURE_BYTES = 600_000
"""Of one page, encoded. What is left out is named."""

_ACTIONS = {Action.LOOK: "looks", Action.REUSE: "reuses", Action.RUN: "**runs**", Action.WAIT: "waits"}
_TRAINED = ("tokenizer", "pretrain")
_ORDER = ("preview", "accuracy", "clip", "confusion")
"""Pictures whose names begin so come first, in this order."""


def plan_page(steps: Sequence[Step]) -> str:
    """What a run will do with each stage, and why."""
    rows = [
        (
            step.stage,
            _ACTIONS[step.action],
            markdown.code(step.fingerprint) if step.fingerprint else "",
            markdown.plain(step.reason),
        )
        for step in steps
    ]
    return markdown.table(rows, ("stage", "this run", "fingerprint", "why"))


def forecast_page(stages: Sequence[Forecast]) -> str:
    """What a run would do that only plans: units, bytes and minutes of each stage."""
    rows = [[markdown.plain(cell) for cell in row(one)] for one in stages]
    listed = "\n".join(f"* {markdown.plain(note)}" for note in notes(stages))
    return f"Nothing was run. A run with these parameters would:\n\n{markdown.table(rows, HEAD)}\n\n{listed}"


def live_page(progress: str, values: Mapping[str, float], step: int, pictures: Mapping[str, tuple[int, bytes]]) -> str:
    """A stage while it works: how far it is, its latest measurements, its latest picture of each kind."""
    sections = [f"**{markdown.plain(progress)}**"]
    if values:
        sections += [f"## Measured at step {step:,}", _numbers(values)]
    shown = ((f"{name}, step {at:,}", png) for name, (at, png) in sorted(pictures.items()))
    return "\n\n".join([*sections, *_drawn(shown)])


def page(
    report: Report, reasons: Mapping[str, int], links: Mapping[str, str] | None = None, sources: Sequence[str] = ()
) -> str:
    """The page of a stage: what was done, links, counts, reasons for quarantine, measurements, pictures.

    Args:
        report: what came of it.
        reasons: how many sources are in quarantine, by reason.
        links: addresses by what they lead to.
        sources: names of some sources in quarantine, each with its reason.
    """
    outcome, made = report.outcome, report.artifact
    known = {
        "state": f"**{report.state}**",
        "units done, reused": f"{outcome.units_done:,}, {outcome.units_reused:,}",
        "took": duration(report.duration_s),
        **{name: markdown.link(name, address) for name, address in (links or {}).items()},
        "fingerprint": markdown.code(made.fingerprint),
        "digest": markdown.code(made.digest),
        "place": markdown.code(made.folder),
    }
    sections = [f"# {report.stage}", markdown.facts(known)]
    if outcome.counts:
        counts = {name: f"{count:,}" for name, count in outcome.counts.items()}
        sections += ["## Counts", markdown.facts(counts, ("what", "number"))]
    if reasons:
        sections += ["## In quarantine, by reason", markdown.facts(reasons, ("reason", "sources"))]
        sections += [f"* {markdown.code(name)}" for name in sources]
        sections += ["What to do about each: `lvmae quarantine show NAME`."]
    if outcome.metrics:
        sections += ["## Measured", _numbers(outcome.metrics)]
    if report.state == "done":
        sections += _drawn(_pictures(report.stage, made))
    return "\n\n".join(sections)


def _numbers(values: Mapping[str, float]) -> str:
    return markdown.facts({markdown.plain(name): f"{value:.5g}" for name, value in values.items()}, ("measurement", "value"))


def _pictures(stage: str, made: Artifact) -> Iterator[tuple[str, bytes]]:
    """The curves of a training, and every picture that is part of the artifact."""
    if stage in _TRAINED and "metrics.json" in made.manifest.files:
        from stages.exhibits import curve_exhibit  # with matplotlib, which other stages need not import

        if curve := curve_exhibit(stage, made):
            yield curve.title, curve.png
    names = [name for name in made.manifest.files if name.endswith(".png")]
    for name in sorted(names, key=_place):
        yield Path(name).stem, made.path(name).read_bytes()


def _place(name: str) -> tuple[int, str]:
    kind = Path(name).stem.partition("-")[0]
    return (_ORDER.index(kind) if kind in _ORDER else len(_ORDER)), name


def _drawn(pictures: Iterator[tuple[str, bytes]]) -> list[str]:
    """Pictures as long as there is room for them, then the names of the others."""
    shown: list[str] = []
    left_out: list[str] = []
    for title, png in pictures:
        drawn = markdown.picture(title, png)
        fits = sum(map(len, shown)) + len(drawn) <= MOST_PICTURE_BYTES
        shown += [drawn] if fits else []
        left_out += [] if fits else [title]
    rest = [f"Not shown here, for want of room: {', '.join(map(markdown.code, left_out))}."] if left_out else []
    return [*(["## Pictures"] if shown else []), *shown, *rest]
