"""Stage 5: what can be read from the frozen encoder, against chance, against itself untrained, and against plain pixels."""

import dataclasses
import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from models.config import Config as BaseConfig
from models.extension import extension
from stages import pixels, summary
from stages.batches import ClipFrames
from stages.device import device
from stages.encoders import OwnEncoder
from stages.evals import ProbeConfig
from stages.exhibits import answer, clip_exhibit, curve_exhibit
from stages.features import PRETRAINED, Extractor, extract, load, missing_shards
from stages.judgement import Findings, judge
from stages.networks import geometry, load_encoder, untrained_encoder
from stages.pictures import Painter, Picture
from stages.protocol import Question, question, scored_clips
from stages.report import Report, render
from stages.storage import artifact
from stages.storage.artifact import Artifact, Outcome, Work
from stages.storage.index import Clip, Index
from stages.storage.publish import publish_bytes
from stages.storage.targets.reading import TargetReader
from stages.storage.workspace import Workspace
from stages.views import cut, stored_view

INPUTS = ("shard", "pretrain", "precompute", "tokenizer")
VERSION = 2
UNTRAINED = "untrained"


class Config(BaseConfig):
    """Which labels to read from which features, and how the answer is judged."""

    label: str = "class"
    """The label column that the headline is about."""
    extra_labels: tuple[str, ...] = ()
    """Further label columns, such as easier ones that show learning sooner; one that no clip carries is not asked."""
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
    seeds: tuple[int, ...] = Field(default=(0, 1, 2), min_length=1)
    """Seeds of the untrained encoders to compare with."""
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
    """Clips to show."""
    num_picture_frames: int = Field(default=8, gt=0)
    """Frames of each that are shown."""

    @model_validator(mode="after")
    def _names_tell_apart(self) -> Self:
        for field, names in (("label and extra_labels", self.labels), ("probes", [probe.name for probe in self.probes])):
            if len(set(names)) < len(names):
                raise ValueError(f"{field} name something twice: {', '.join(names)}")
        return self

    @property
    def labels(self) -> tuple[str, ...]:
        """All labels, the headline's first."""
        return (self.label, *self.extra_labels)


def run(config: Config, inputs: Mapping[str, Artifact], workspace: Workspace) -> Outcome:
    """Accuracies in ``metrics.json`` and a page for a person in ``report.html``, with its pictures in ``figures/``.

    Raises:
        ConfigError: a label or a split is not on the clips.
        ArtifactBusy: another live run makes the same evaluation.
    """
    make = functools.partial(_make, config, inputs, workspace)
    made = artifact.produce("evaluate", version=VERSION, config=config, inputs=inputs, workspace=workspace, make=make)
    return dataclasses.replace(made, metrics=_headline_metrics(made.artifact))


def _make(config: Config, inputs: Mapping[str, Artifact], workspace: Workspace, folder: Path) -> Work:
    scored = scored_clips(Index(inputs["shard"]), config.where, config.labels)
    carried = [label for label in config.extra_labels if any(label in clip.labels for clip in scored)]
    questions = [_question(config, scored, label) for label in (config.label, *carried)]
    shards = _by_shard(scored)
    targets = TargetReader(inputs["precompute"])
    frames = ClipFrames(inputs["shard"])
    units_done = _extract(config, inputs, shards, targets=targets, frames=frames, folder=folder, workspace=workspace)
    findings = _judge(config, questions, shards, folder=folder, workspace=workspace)
    shown = _pictures(inputs, _chosen(questions[0], scored, config.num_pictures), targets=targets, frames=frames)
    _publish(config, inputs, findings, shown, folder=folder, workspace=workspace)
    counts = {"clips": len(scored), "labels": len(questions), "pictures": len(shown)}
    return Work(units_done, len(shards) - units_done, counts)


def _question(config: Config, scored: Sequence[Clip], label: str) -> Question:
    return question(scored, label, split_label=config.split_label, folds=config.folds, group_label=config.group_label)


def _by_shard(scored: Iterable[Clip]) -> dict[int, list[Clip]]:
    shards: dict[int, list[Clip]] = {}
    for clip in scored:
        shards.setdefault(clip.ordinal, []).append(clip)
    return shards


def _extract(
    config: Config,
    inputs: Mapping[str, Artifact],
    shards: Mapping[int, Sequence[Clip]],
    *,
    targets: TargetReader,
    frames: ClipFrames,
    folder: Path,
    workspace: Workspace,
) -> int:
    """Publish the features that are missing; the number of shards that were."""
    missing = missing_shards(folder, shards)
    wanted = {ordinal: shards[ordinal] for ordinal in missing}
    workspace.monitor.begin("features", total=len(shards), done=len(shards) - len(missing))
    pretrain = inputs["pretrain"]
    encoders = {PRETRAINED: load_encoder(pretrain)}
    encoders |= {_seeded(seed): untrained_encoder(pretrain, seed) for seed in config.seeds}
    patching = geometry(pretrain).model.patching
    extractor = Extractor(
        encoders={name: OwnEncoder(encoder.to(device()), patching, device()) for name, encoder in encoders.items()},
        slot_frames=patching.tubelet_frames,
        frames=frames,
        views={clip.clip_id: stored_view(targets.place(clip, 0)) for clips in wanted.values() for clip in clips},
        layer=config.layer,
        temporal_bins=config.temporal_bins,
        spatial_cells=config.spatial_cells,
        pixel_cells=config.pixel_cells,
        batch_clips=config.batch_clips,
    )
    extract(folder, wanted, extractor=extractor, finished=workspace.monitor.advance)
    return len(missing)


def _judge(
    config: Config, questions: Sequence[Question], shards: Mapping[int, Sequence[Clip]], *, folder: Path, workspace: Workspace
) -> list[Findings]:
    kinds = {PRETRAINED: [PRETRAINED], UNTRAINED: [_seeded(seed) for seed in config.seeds]}
    kinds |= {name: [name] for name in pixels.TITLES}
    num_runs = sum(map(len, kinds.values()))
    workspace.monitor.begin("probes", total=len(questions) * len(config.probes) * num_runs)
    return judge(
        questions,
        probes=config.probes,
        kinds=kinds,
        load=lambda name: load(folder, name, shards),
        finished=workspace.monitor.advance,
    )


def _chosen(asked: Question, scored: Sequence[Clip], count: int) -> list[Clip]:
    """Tested clips to show, of as many different classes as there are, by clip id within a class."""
    by_class: dict[int, list[str]] = {}
    by_id = {scored[asked.rows[position]].clip_id: position for position in asked.tested}
    for clip_id in sorted(by_id):
        by_class.setdefault(int(asked.classes[by_id[clip_id]]), []).append(clip_id)
    turns = sorted((turn, number, clip_id) for number, ids in by_class.items() for turn, clip_id in enumerate(ids))
    return [scored[asked.rows[by_id[clip_id]]] for _, _, clip_id in turns[:count]]


def _seeded(seed: int) -> str:
    return f"{UNTRAINED}-{seed}"


def _pictures(
    inputs: Mapping[str, Artifact], chosen: Sequence[Clip], *, targets: TargetReader, frames: ClipFrames
) -> list[tuple[Clip, Picture]]:
    painter = Painter.of(inputs, device())
    shown = []
    for clip in chosen:
        place = targets.place(clip, 0)
        view, stored = stored_view(place), targets.read(place)
        pixels_seen = cut(frames, clip, view, painter.geometry.views.num_frames)
        shown.append((clip, painter.paint(pixels_seen, view, stored)))
    return shown


def _publish(
    config: Config,
    inputs: Mapping[str, Artifact],
    findings: Sequence[Findings],
    shown: Sequence[tuple[Clip, Picture]],
    *,
    folder: Path,
    workspace: Workspace,
) -> None:
    titles = {PRETRAINED: "pretrained encoder", UNTRAINED: "same encoder, untrained", **pixels.TITLES}
    titles |= {probe.name: probe.title for probe in config.probes}
    report = Report(
        dataset=inputs["shard"].folder.name,
        facts=summary.facts(inputs, findings[0].question, config.model_dump(mode="json")),
        asked=[answer(found, number=number, titles=titles) for number, found in enumerate(findings)],
        pictures=[
            clip_exhibit(picture, clip, number=number, labels=config.labels, num_frames=config.num_picture_frames)
            for number, (clip, picture) in enumerate(shown)
        ],
        curves=[curve for stage in ("tokenizer", "pretrain") if (curve := curve_exhibit(stage, inputs[stage]))],
        origins=[summary.origin(stage, made, workspace.relative(made.folder)) for stage, made in inputs.items()],
        quarantine=summary.quarantine(inputs["shard"]),
        titles=titles,
    )
    for figure in report.figures:
        publish_bytes(folder / "figures" / f"{figure.name}.png", figure.png)
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
        }
        for found in findings
    ]
    return json.dumps({"labels": plain}, indent=1).encode()


def _headline_metrics(made: Artifact) -> dict[str, float]:
    """The accuracies of the first label, by probe and features, and the chance they stand against."""
    first = json.loads(made.path("metrics.json").read_bytes())["labels"][0]
    found = {f"{one['probe']}_{one['features']}": one["accuracy"] for one in first["scores"]}
    return {**found, "chance": first["uniform_chance"]}
