"""What ``lvmae compare`` does: finds evaluations, compares them, and shows the outcome as a page and a table. It reads only."""

import json
import string
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from pipeline.recipe import RECORD
from pipeline.tracking.tracker import flattened
from stages.comparison import COLUMNS, Comparison, Evaluation, compare
from stages.comparison_page import reach, render, verdict
from stages.errors import ArtifactDamaged, ArtifactMissing, ConfigError
from stages.predictions import NAME as PREDICTIONS
from stages.storage.artifact import MANIFEST, Artifact, FileRecord, read_manifest
from stages.storage.publish import publish_bytes
from stages.storage.tables import read_table
from stages.storage.workspace import Workspace
from stages.summary import percent, points, probability, span

STAGE = "evaluate"
_SHOWN_SETTINGS = 12
_LONGEST_VALUE = 28


def show_comparison(names: Sequence[str], *, root: str, out: Path, as_json: bool) -> None:
    """Compare evaluations, write the page, and print the table or one JSON object.

    Args:
        names: two or more, each a folder or the beginning of a fingerprint below the root.
        root: where fingerprints are looked up.
        out: where the page goes.
        as_json: for a program.

    Raises:
        ConfigError: there are fewer than two, one is named twice, or a name means several or something else.
        ArtifactMissing: there is no such evaluation, or it keeps no predictions.
    """
    workspace = Workspace.at(root)
    found = [_found(workspace, name) for name in names]
    if len({one.fingerprint for one in found}) < max(2, len(found)):
        raise ConfigError(f"compare {' '.join(names)}: name two or more different evaluations")
    comparison = compare([evaluation(letter, made) for letter, made in zip(_letters(), found, strict=False)])
    publish_bytes(out.absolute(), render(comparison))
    record = json.dumps({**comparison.record(), "page": str(out.absolute())})
    _print([record] if as_json else [*_lines(comparison), "", f"the whole comparison: {out.absolute()}"])


def _letters() -> Iterator[str]:
    yield from string.ascii_uppercase
    yield from (f"A{letter}" for letter in string.ascii_uppercase)


def _found(workspace: Workspace, name: str) -> Artifact:
    """The evaluation that a person means."""
    folder = Path(name).expanduser()
    if not (folder / MANIFEST).is_file():
        folder = _by_prefix(workspace, name)
    made = Artifact(folder.absolute(), read_manifest(folder / MANIFEST), folder.absolute() / MANIFEST)
    if made.manifest.stage != STAGE:
        raise ConfigError(f"{folder}: an artifact of the stage {made.manifest.stage}; compare takes those of {STAGE}")
    if PREDICTIONS not in made.manifest.files:
        raise ArtifactMissing(f"{folder}: keeps no {PREDICTIONS}, made by an earlier version; run evaluate again")
    return made


def _by_prefix(workspace: Workspace, name: str) -> Path:
    place = workspace.stage_folder(STAGE)
    known = sorted(path.name for path in place.iterdir() if (path / MANIFEST).is_file()) if place.is_dir() else []
    meant = [one for one in known if name and one.startswith(name)]
    if not meant:
        raise ArtifactMissing(
            f"{name!r} is neither the folder of an evaluation nor the beginning of one below {place}; known: "
            f"{', '.join(known) or 'none'}"
        )
    if len(meant) > 1:
        raise ConfigError(f"{name!r} is the beginning of {len(meant)} evaluations: {', '.join(meant)}; give more of it")
    return place / meant[0]


def evaluation(letter: str, made: Artifact) -> Evaluation:
    """An evaluation as it is compared, under a letter.

    Raises:
        ArtifactMissing: it keeps no predictions.
        ArtifactDamaged: its bytes are not what its manifest says.
    """
    settings = _settings(made)
    return Evaluation(
        name=letter,
        title=settings.get("name", made.fingerprint),
        fingerprint=made.fingerprint,
        folder=str(made.folder),
        labels=json.loads(made.verified("metrics.json").read_bytes())["labels"],
        rows=_rows(made.verified(PREDICTIONS)),
        settings={name: value for name, value in settings.items() if name not in ("name", "description")},
        inputs={stage: one.digest for stage, one in made.manifest.inputs.items()},
    )


def _rows(path: Path) -> list[dict[str, Any]]:
    """The predictions; their scores, which are large, only where it takes them to know the first answer."""
    rows = read_table(path, COLUMNS)
    one_each = all(len(row["true"]) == len(row["predicted"]) == 1 for row in rows)
    return rows if one_each else read_table(path, (*COLUMNS, "scores"))


def _settings(made: Artifact) -> Mapping[str, str]:
    """The recipe that lies beside an evaluation, by dotted names; its own configuration where there is none."""
    if RECORD not in made.manifest.records:
        return flattened({STAGE: made.manifest.config})
    path = made.folder / RECORD
    if not path.is_file() or FileRecord.of(path) != made.manifest.records[RECORD]:
        raise ArtifactDamaged(f"{path}: not what was written; run `lvmae verify`")
    return flattened(yaml.safe_load(path.read_bytes()))


def _lines(comparison: Comparison) -> list[str]:
    return [
        *(f"{one.name}  {one.title}  {one.fingerprint}  {one.folder}" for one in comparison.evaluations),
        *(f"warning: {warning}" for warning in comparison.warnings),
        "",
        *_table(_headline_rows(comparison)),
        "",
        *(_table(_pair_rows(comparison)) if comparison.pairs else ["no pair to compare"]),
        *(f"“{pair.label}”, {pair.probe}: {verdict(pair)}" for pair in comparison.pairs),
        "",
        *_setting_lines(comparison),
    ]


def _headline_rows(comparison: Comparison) -> list[list[str]]:
    rows = [["accuracy", *(one.name for one in comparison.evaluations)]]
    for label, probe in comparison.asked:
        found = [comparison.headline(one.name, label, probe) for one in comparison.evaluations]
        rows.append(
            [f"{label}, {probe}", *(f"{percent(one.accuracy)} ({span(one.interval)})" if one else "-" for one in found)]
        )
    return rows


def _pair_rows(comparison: Comparison) -> list[list[str]]:
    rows = [["pair", "label, probe", "clips", "accuracies", "difference", "95 % interval", "right alone", "p", "adjusted"]]
    for pair in comparison.pairs:
        rows.append(
            [
                f"{pair.first} less {pair.second}",
                f"{pair.label}, {pair.probe}",
                str(pair.num_clips),
                " ".join(percent(value) for value in pair.accuracies),
                points(pair.difference),
                reach(pair.interval),
                f"{pair.wins}, {pair.losses}",
                probability(pair.p_value),
                probability(pair.adjusted_p_value),
            ]
        )
    return rows


def _setting_lines(comparison: Comparison) -> list[str]:
    names = [one.name for one in comparison.evaluations]
    if not comparison.settings:
        return ["their recipes do not differ"]
    shown = comparison.settings[:_SHOWN_SETTINGS]
    rows = [["what differs", *names], *([one.name, *(_short(value) for value in one.values)] for one in shown)]
    left_out = len(comparison.settings) - len(shown)
    return [*_table(rows), *([f"and {left_out} more settings"] if left_out else [])]


def _short(value: str | None) -> str:
    spelled = "-" if value is None else value
    return spelled if len(spelled) <= _LONGEST_VALUE else f"{spelled[: _LONGEST_VALUE - 1]}…"


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _print(lines: Sequence[str]) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.stdout.flush()
