"""Evaluations as the stage publishes them, with answers that a test chooses: no network, no video."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from models.config import Config
from stages.predictions import NAME, SCHEMA
from stages.storage import artifact
from stages.storage.artifact import Artifact
from stages.storage.publish import publish_bytes
from stages.storage.tables import write_table
from stages.storage.workspace import Workspace

CLASSES = ("left", "right")


def rows(
    hits: Sequence[bool],
    *,
    label: str = "class",
    probe: str = "knn",
    features: str = "pretrained",
    durations_s: Sequence[float] = (),
    groups: Sequence[str] = (),
    split: int = 0,
    first: int = 0,
) -> list[dict[str, Any]]:
    """The predictions for clips that are named rightly or not."""
    found = []
    for number, is_right in enumerate(hits, start=first):
        true = CLASSES[number % 2]
        predicted = true if is_right else CLASSES[1 - number % 2]
        place = number - first
        found.append(
            {
                "label": label, "probe": probe, "features": features, "split": split,
                "clip_id": f"{number:032d}", "key": f"<clip> {number}.mp4",
                "group": groups[place] if groups else f"take {number}",
                "duration_s": durations_s[place] if durations_s else 2.0,
                "num_frames": 32, "true": [true], "predicted": [predicted],
                "scores": [float(name == predicted) for name in CLASSES],
            }
        )  # fmt: skip
    return found


def labels(predictions: Sequence[Mapping[str, Any]], class_names: Sequence[str] = CLASSES) -> list[dict[str, Any]]:
    """What ``metrics.json`` says of predictions; intervals are of no particular kind."""
    asked: dict[str, dict[tuple[str, str], list[bool]]] = {}
    for row in predictions:
        hits = asked.setdefault(row["label"], {}).setdefault((row["probe"], row["features"]), [])
        hits.append(row["true"] == row["predicted"])
    return [
        {
            "label": label, "class_names": list(class_names), "uniform_chance": 1 / len(class_names), "majority_chance": 0.5,
            "num_clips": 10, "comparisons": [],
            "scores": [
                {
                    "label": label, "probe": probe, "features": features, "accuracy": sum(hits) / len(hits),
                    "interval": [0.1, 0.9], "runs": [sum(hits) / len(hits)], "seed_interval": None,
                    "num_train": 5, "num_test": len(hits),
                }
                for (probe, features), hits in found.items()
            ],
        }
        for label, found in asked.items()
    ]  # fmt: skip


def committed(
    root: Workspace,
    name: str,
    predictions: Sequence[Mapping[str, Any]],
    *,
    class_names: Sequence[str] = CLASSES,
    inputs: Mapping[str, Artifact] | None = None,
) -> Artifact:
    """An artifact of the stage that holds these predictions."""
    folder = root.artifact_folder("evaluate", name)
    publish_bytes(folder / "metrics.json", json.dumps({"labels": labels(predictions, class_names)}).encode())
    write_table(folder / NAME, predictions, SCHEMA)
    return artifact.commit(root, stage="evaluate", name=name, config=Config(), inputs=inputs or {}, counts={})
