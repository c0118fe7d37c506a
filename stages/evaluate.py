"""Stage 5: what can be read from the frozen encoder, against chance, against itself untrained, and against plain pixels."""

import dataclasses
import functools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from models.config import Config as BaseConfig
from models.extension import extension
from stages import pixels, summary, tuned_readings
from stages.device import device
from stages.encoders import OwnEncoder, VideoEncoder
from stages.evals import MeasureConfig, ProbeConfig
from stages.examples import examples, varied
from stages.features import PRETRAINED, Extractor, Look, extract, load, missing_units
from stages.fine_tuning import Config as FineTuning
from stages.foreign import ForeignConfig
from stages.judgement import Findings, Kinds, answer_all, judge
from stages.metrics import Answers
from stages.multi_view import Footage, MultiViewConfig
from stages.networks import geometry, load_encoder, untrained_encoder
from stages.pictures import Painter
from stages.predictions import NAME as PREDICTIONS
from stages.predictions import write_predictions
from stages.protocol import Asking, Question, question, scored_clips
from stages.reading import Key, Readings, Samples, read_all
from stages.report import Report, Shown, render
from stages.storage import artifact
from stages.storage.artifact import Artifact, Outcome, Work
from stages.storage.features import FeatureUnit
from stages.storage.index import Clip, Index
from stages.storage.publish import publish_bytes
from stages.storage.workspace import Workspace
from stages.tuned_readings import UNTRAINED, pretrained_runs, read_fine_tuned, untrained_run

INPUTS = ("shard", "pretrain", "precompute", "tokenizer")
VERSION = 4


class Config(BaseConfig):
    """Which labels to read from which features, and how the answer is judged."""

    label: str = "class"
    """The label that the headline is about: a column of the clips, or a name in ``joint``."""
    extra_labels: tuple[str, ...] = ()
    """Further labels, such as easier ones that show learning sooner; one that no clip carries is not asked."""
    multi_labels: tuple[str, ...] = ()
    """Those of the labels that may have several values on one clip."""
    joint: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Labels that are made of others and right only if all of them are, such as ``{action: [verb, noun]}``; their parts are
    labels too."""
    where: dict[str, str] = Field(default_factory=dict)
    """Only clips with all of these labels are scored, such as ``{core: "1"}``."""
    split_label: str = "split"
    """The column whose values ``train`` and ``test`` say which clips teach and which are tested."""
    folds: int | None = Field(default=None, ge=2)
    """Parts of a grouped k-fold over all scored clips instead of that column; ``None``: use the column."""
    group_label: str | None = "group"
    """The column of clips that must stay on one side of a split; ``None``: the clips of one source stay together."""
    probes: tuple[extension("stages.evals", ProbeConfig), ...] = Field(
        default=("linear_probe", "knn"), min_length=1, validate_default=True
    )
    """What reads the features; the headline is about the first."""
    measures: tuple[extension("stages.evals", MeasureConfig), ...] = Field(
        default=("few_shot", "retrieval"), validate_default=True
    )
    """What is measured of the features without a probe."""
    fine_tuning: FineTuning | None = None
    """Train the whole encoder on the labels as well, once per split and seed; ``None``: leave it frozen."""
    views: MultiViewConfig = MultiViewConfig()
    """How many views of a tested clip are read; probes learn on view 0."""
    seeds: tuple[int, ...] = Field(default=(0, 1, 2), min_length=1)
    """Seeds of the untrained encoders to compare with."""
    others: tuple[ForeignConfig, ...] = ()
    """Encoders of others to compare with; the ``sha256`` of their weights is part of what was asked."""
    layer: int | None = Field(default=None, gt=0)
    """The block whose output is read; ``None``: after the last block and the final norm."""
    temporal_bins: int = Field(default=8, gt=0)
    """Equal parts of time that features are averaged over. Our choice; 1 is the usual mean, which forgets all order."""
    spatial_cells: int = Field(default=1, gt=0)
    """Cells along each side that features are averaged within. Our choice; 1 is the usual mean, which forgets all places."""
    pixel_cells: int = Field(default=8, gt=0)
    """Cells along each side of the grid of the trivial features."""
    batch_clips: int = Field(default=8, gt=0)
    """Clips per forward pass; bounds the memory."""
    num_pictures: int = Field(default=4, ge=0)
    """Clips to show with what the networks make of them."""
    num_films: int = Field(default=2, ge=0)
    """How many of these are shown as a film too; one of 128 frames takes up to two megabytes of the page."""
    num_examples: int = Field(default=4, ge=0)
    """Clips to show that the pretrained encoder tells rightly, and as many that it does not."""
    num_picture_frames: int = Field(default=8, gt=0)
    """Frames of each that are shown."""

    @model_validator(mode="after")
    def _names_tell_apart(self) -> Self:
        readers = [one.name for one in (*self.probes, *self.measures)]
        own = [*self.kinds[PRETRAINED], UNTRAINED, *self.kinds[UNTRAINED]]
        for field, names in (
            ("label and extra_labels", self.labels),
            ("probes and measures", readers),
            ("others and our own features", [*own, *self._alone]),
        ):
            if len(set(names)) < len(names):
                raise ValueError(f"{field} name something twice: {', '.join(names)}")
        return self

    @model_validator(mode="after")
    def _others_are_pinned(self) -> Self:
        if loose := [one.name for one in self.others if one.sha256 is None]:
            raise ValueError(f"others: {', '.join(loose)} must have the sha256 of the weights; `sha256sum` tells it")
        return self

    @model_validator(mode="after")
    def _labels_are_asked(self) -> Self:
        single = set(self.columns) - set(self.multi_labels)
        for field, names, known in (
            ("joint", self.joint, set(self.labels)),
            ("multi_labels", self.multi_labels, set(self.columns)),
            *((f"joint.{name}", parts, single) for name, parts in self.joint.items()),
        ):
            if strange := [name for name in names if name not in known]:
                raise ValueError(
                    f"{field} names {', '.join(strange)}, which label and extra_labels do not ask in that way; "
                    f"asked: {', '.join(sorted(known))}"
                )
        return self

    @property
    def labels(self) -> tuple[str, ...]:
        """All labels, the headline's first."""
        return (self.label, *self.extra_labels)

    @property
    def columns(self) -> tuple[str, ...]:
        """The labels that are columns of the clips."""
        return tuple(label for label in self.labels if label not in self.joint)

    @property
    def kinds(self) -> Kinds:
        """Per kind of features the names of its runs, those of fine-tuning included."""
        tuned = self.fine_tuning.seeds if self.fine_tuning else ()
        untrained = [untrained_run(seed) for seed in dict.fromkeys((*self.seeds, *tuned))]
        return {PRETRAINED: pretrained_runs(self.fine_tuning), UNTRAINED: untrained, **{name: [name] for name in self._alone}}

    @property
    def frozen_runs(self) -> tuple[str, ...]:
        """The names of all features that are read as they are."""
        return (PRETRAINED, *map(untrained_run, self.seeds), *self._alone)

    @property
    def _alone(self) -> tuple[str, ...]:
        return (*(one.name for one in self.others), *pixels.TITLES)

    @property
    def titles(self) -> dict[str, str]:
        """What a person calls features, probes and measures."""
        readers = {one.name: one.title for one in (*self.probes, *self.measures)} | {tuned_readings.NAME: tuned_readings.TITLE}
        features = {PRETRAINED: "pretrained encoder", UNTRAINED: "same encoder, untrained", **pixels.TITLES}
        return {**features, **{one.name: one.name for one in self.others}, **readers}


def run(config: Config, inputs: Mapping[str, Artifact], workspace: Workspace) -> Outcome:
    """Numbers in ``metrics.json``, what was said of every clip in ``predictions.parquet``, a page for a person in
    ``report.html``, with its pictures in ``figures/``.

    Raises:
        ConfigError: a label or a split is not on the clips.
        ArtifactBusy: another live run makes the same evaluation.
    """
    make = functools.partial(_make, config, inputs, workspace)
    made = artifact.produce("evaluate", version=VERSION, config=config, inputs=inputs, workspace=workspace, make=make)
    return dataclasses.replace(made, metrics=_headline_metrics(made.artifact))


def _make(config: Config, inputs: Mapping[str, Artifact], workspace: Workspace, folder: Path) -> Work:
    scored = scored_clips(Index(inputs["shard"]), config.where, config.columns)
    questions = _questions(config, scored)
    footage = Footage.of(inputs)
    units = _units(config, scored, questions, footage)
    units_done = _extract(config, inputs, units, footage=footage, folder=folder, workspace=workspace)
    readings, samples = _read(config, questions, units, scored=scored, folder=folder, workspace=workspace)
    readings |= _fine_tuned(config, inputs, questions, footage=footage, folder=folder, workspace=workspace)
    answered = answer_all(questions, readings)
    findings = judge(questions, answered, samples, kinds=config.kinds, view_frames=footage.view_frames)
    write_predictions(folder / PREDICTIONS, questions, answered, view_frames=footage.view_frames)
    report = _report(config, inputs, findings, answered, footage=footage, workspace=workspace)
    _publish(report, findings, folder)
    counts = {"clips": len(scored), "labels": len(questions), "pictures": len(report.pictures)}
    return Work(units_done, len(units) - units_done, counts)


def _questions(config: Config, scored: Sequence[Clip]) -> list[Question]:
    asked = [Asking(label, label in config.multi_labels, config.joint.get(label, ())) for label in config.labels]
    carried = [one for one in asked if one.label == config.label or any(one.classes(clip) for clip in scored)]
    return [
        question(scored, one, split_label=config.split_label, folds=config.folds, group_label=config.group_label)
        for one in carried
    ]


def _units(
    config: Config, scored: Sequence[Clip], questions: Sequence[Question], footage: Footage
) -> dict[FeatureUnit, list[Look]]:
    """What to see of which clips: view 0 of all, further views of the tested ones, each unit in the order of the clips."""
    tested = {asked.clips[place].clip_id for asked in questions for place in asked.tested}
    units: dict[FeatureUnit, list[Look]] = {}
    for clip in scored:
        for view in footage.views(clip, config.views if clip.clip_id in tested else MultiViewConfig()):
            units.setdefault(FeatureUnit(clip.ordinal, view.view), []).append((clip, view))
    return dict(sorted(units.items()))


def _extract(
    config: Config,
    inputs: Mapping[str, Artifact],
    units: Mapping[FeatureUnit, Sequence[Look]],
    *,
    footage: Footage,
    folder: Path,
    workspace: Workspace,
) -> int:
    """Publish the features that are missing; the number of units that were."""
    missing = missing_units(folder, units)
    workspace.monitor.begin("features", total=len(units), done=len(units) - len(missing))
    if not missing:
        return 0
    encoders = _encoders(config, inputs["pretrain"])
    extractor = Extractor(
        encoders=encoders,
        slot_frames=math.lcm(*(encoder.tubelet_frames for encoder in encoders.values())),
        frames=footage.frames,
        layer=config.layer,
        temporal_bins=config.temporal_bins,
        spatial_cells=config.spatial_cells,
        pixel_cells=config.pixel_cells,
        batch_clips=config.batch_clips,
    )
    extract(folder, missing, extractor=extractor, finished=workspace.monitor.advance)
    return len(missing)


def _encoders(config: Config, pretrain: Artifact) -> dict[str, VideoEncoder]:
    """Every encoder to read, by the name of its features."""
    networks = {PRETRAINED: load_encoder(pretrain)}
    networks |= {untrained_run(seed): untrained_encoder(pretrain, seed) for seed in config.seeds}
    patching = geometry(pretrain).model.patching
    own = {name: OwnEncoder(network.to(device()), patching, device()) for name, network in networks.items()}
    return {**own, **{one.name: one.load(device()) for one in config.others}}


def _read(
    config: Config,
    questions: Sequence[Question],
    units: Mapping[FeatureUnit, Sequence[Look]],
    *,
    scored: Sequence[Clip],
    folder: Path,
    workspace: Workspace,
) -> tuple[Readings, Samples]:
    asked = [one for one in questions if not one.asking.parts]
    workspace.monitor.begin("probes", total=len(asked) * len(config.probes) * len(config.frozen_runs))
    return read_all(
        asked,
        probes=config.probes,
        measures=config.measures,
        runs=config.frozen_runs,
        load=lambda name: load(folder, name, units, scored),
        folder=folder,
        finished=workspace.monitor.advance,
    )


def _fine_tuned(
    config: Config,
    inputs: Mapping[str, Artifact],
    questions: Sequence[Question],
    *,
    footage: Footage,
    folder: Path,
    workspace: Workspace,
) -> Readings:
    if config.fine_tuning is None:
        return {}
    return read_fine_tuned(
        config.fine_tuning,
        questions,
        inputs["pretrain"],
        footage=footage,
        views=config.views,
        folder=folder,
        monitor=workspace.monitor,
    )


def _report(
    config: Config,
    inputs: Mapping[str, Artifact],
    findings: Sequence[Findings],
    answered: Mapping[Key, Answers],
    *,
    footage: Footage,
    workspace: Workspace,
) -> Report:
    from stages.exhibits import answer, curve_exhibit, example_exhibit  # with matplotlib, which most commands need not import

    first = findings[0].question
    own = answered[first.label, findings[0].scores[0].probe, PRETRAINED]
    shown = examples(first, own, config.num_examples)
    return Report(
        dataset=inputs["shard"].folder.name,
        facts=summary.facts(inputs, first, config.model_dump(mode="json")),
        asked=[answer(found, number=number, titles=config.titles) for number, found in enumerate(findings)],
        examples=[example_exhibit(one, footage, number, config.num_picture_frames) for number, one in enumerate(shown)],
        pictures=_pictures(config, inputs, first, footage),
        curves=[curve for stage in ("tokenizer", "pretrain") if (curve := curve_exhibit(stage, inputs[stage]))],
        origins=[summary.origin(stage, made, workspace.relative(made.folder)) for stage, made in inputs.items()],
        quarantine=summary.quarantine(inputs["shard"]),
        titles=config.titles,
    )


def _pictures(config: Config, inputs: Mapping[str, Artifact], asked: Question, footage: Footage) -> list[Shown]:
    from stages.exhibits import clip_exhibit

    painter = Painter.of(inputs, device())
    shown = []
    for number, place in enumerate(varied(asked, asked.tested, config.num_pictures)):
        clip = asked.clips[place]
        stored = footage.targets.read(footage.targets.place(clip, 0))
        picture = painter.paint(footage.pixels(clip), footage.first(clip), stored)
        shown.append(
            clip_exhibit(
                picture,
                clip,
                number=number,
                labels=config.columns,
                num_frames=config.num_picture_frames,
                is_moving=number < config.num_films,
            )
        )
    return shown


def _publish(report: Report, findings: Sequence[Findings], folder: Path) -> None:
    for figure in report.figures:
        publish_bytes(folder / "figures" / f"{figure.name}.png", figure.png)
        if figure.webm:
            publish_bytes(folder / "figures" / f"{figure.name}.webm", figure.webm)
    publish_bytes(folder / "metrics.json", _metrics(findings))
    publish_bytes(folder / "report.html", render(report))


def _metrics(findings: Sequence[Findings]) -> bytes:
    plain = [
        {
            "label": found.question.label,
            "class_names": found.question.class_names,
            "uniform_chance": found.question.uniform_chance,
            "majority_chance": found.question.majority_chance,
            "num_clips": len(found.question.rows),
            "num_shared_groups": found.question.num_shared_groups,
            "scores": [dataclasses.asdict(one) for one in found.scores],
            "comparisons": [dataclasses.asdict(one) for one in found.comparisons],
            "measures": [dataclasses.asdict(one) for one in found.measures],
        }
        for found in findings
    ]
    return json.dumps({"labels": plain}, indent=1).encode()


def _headline_metrics(made: Artifact) -> dict[str, float]:
    """The accuracies of the first label, by probe and features, and the chance they stand against."""
    first = json.loads(made.path("metrics.json").read_bytes())["labels"][0]
    found = {f"{one['probe']}_{one['features']}": one["accuracy"] for one in first["scores"]}
    return {**found, "chance": first["uniform_chance"]}
