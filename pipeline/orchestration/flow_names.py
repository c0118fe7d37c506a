"""Names and tags of flow runs, by which a person finds one in a long list."""

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from prefect import runtime

from pipeline.plan import order
from pipeline.recipe import Recipe

_LONGEST = 160
_SHOWN_DIGEST = 8


def run_name() -> str:
    """The name of the current flow run: the recipe with its overlays, and what else was asked for."""
    _, _, stage = runtime.flow_run.flow_name.partition("-")
    return spelled(runtime.flow_run.parameters, stage=stage)


def spelled(parameters: Mapping[str, Any], *, stage: str = "") -> str:
    """Such as ``lvmae+demo, pretrain to evaluate, pretrain.seed=1, from clips-of-may``.

    Args:
        parameters: of the flow run.
        stage: that it runs alone.
    """
    recipe = _stem(parameters.get("recipe_file")) or parameters["recipe"]
    overlays = [*parameters["overlays"], *map(_stem, parameters.get("overlay_files") or ())]
    parts = ["+".join([_stem(recipe), *map(_stem, overlays)]), *_stages(parameters, stage)]
    parts += list(parameters.get("overrides") or ())
    if source := parameters.get("source"):
        parts.append(f"from {PurePosixPath(source).name or source}")
    if dataset := parameters.get("dataset"):
        parts.append(f"as {dataset}")
    if snapshot := parameters.get("snapshot"):
        parts.append(f"snapshot {snapshot[:_SHOWN_DIGEST]}")
    if landed := parameters.get("landed"):
        parts.append(f"landed {landed[:_SHOWN_DIGEST]}")
    if parameters.get("plan_only"):
        parts.append("plan only")
    name = ", ".join(parts)
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 3]}..."


def tags_of(recipe: Recipe) -> set[str]:
    """What a run is about."""
    section = recipe.shard
    return {f"recipe:{recipe.name}", f"dataset:{section.dataset or section.source.dataset_name()}"}


def _stages(parameters: Mapping[str, Any], stage: str) -> list[str]:
    if stage:
        return [stage]
    known = order()
    first, last = parameters.get("from_stage") or known[0], parameters.get("to_stage") or known[-1]
    if (first, last) == (known[0], known[-1]):
        return []
    return [first] if first == last else [f"{first} to {last}"]


def _stem(spelled_name: str | None) -> str:
    """The name in a path of a YAML file; what is no path stays."""
    if not spelled_name:
        return ""
    path = PurePosixPath(spelled_name)
    return path.stem.lstrip("_") if path.suffix in (".yaml", ".yml") or "/" in spelled_name else spelled_name
