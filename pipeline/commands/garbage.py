"""What ``lvmae gc`` asks and prints: which encoders the registry names, what may go, and what went."""

import json
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from pipeline import environment
from pipeline.tracking.outbox import DATABASE, StoreRefused, StoreUnreachable
from pipeline.upkeep import sweeping
from pipeline.upkeep.sweeping import Finding, Wanted
from pipeline.wording import size, table
from stages.errors import ConfigError, PipelineError
from stages.storage.clips import STAGE as CLIPS
from stages.storage.workspace import FOLDERS, Workspace

_DAY_S = 86_400
_TAGS = ("lvmae.fingerprint", "lvmae.evaluation")
"""Tags of a registered version that name an artifact."""


class NamesUnknown(PipelineError, OSError):
    """The registry cannot be asked which encoders have an alias, so nothing is collected."""


def show_collection(
    *, root: str, keep: Sequence[str], num_snapshots: int, grace_days: float, is_deleting: bool, as_json: bool
) -> None:
    """Print what may go below a root and why, or take it away and print what went.

    Raises:
        ConfigError: ``keep`` names something that is not there.
        NamesUnknown: the registry cannot be asked.
        PipelineError: the snapshots of a dataset cannot be read.
    """
    workspace = Workspace.at(root)
    _check_names(workspace, keep)
    named = dict.fromkeys(keep, "it is named by --keep") | aliased(workspace.root)
    wanted = Wanted(num_snapshots, named, grace_days * _DAY_S)
    found = sweeping.collect(workspace, wanted) if is_deleting else sweeping.survey(workspace, wanted)
    if as_json:
        _print(json.dumps(one.record()) for one in found)
        return
    listed = list(found)
    _print(_lines(listed, is_deleting=is_deleting))


def _check_names(workspace: Workspace, keep: Sequence[str]) -> None:
    known = [folder.name for stage in FOLDERS if stage != CLIPS for folder in workspace.stage_folder(stage).glob("[!.]*")]
    for name in keep:
        if not name or not any(one.startswith(name) for one in known):
            raise ConfigError(f"--keep {name!r} names no artifact below {workspace.root}; `lvmae status` shows them")


def aliased(root: Path) -> dict[str, str]:
    """The fingerprints of encoders with an alias in the registry, and of their evaluations, each with what names it.

    Raises:
        NamesUnknown: the registry cannot be asked.
    """
    if not os.environ.get("MLFLOW_TRACKING_URI") and not (root / DATABASE).is_file():
        return {}  # nothing was ever recorded here
    environment.prepare()
    from pipeline.tracking import mlflow_store  # with MLflow, which takes seconds

    try:
        with mlflow_store.reaching("registry"):
            client = mlflow_store.client_of(root)
            named: dict[str, str] = {}
            for model in client.search_registered_models(max_results=1000):
                for alias, number in model.aliases.items():
                    tags = client.get_model_version(model.name, str(number)).tags
                    named |= {tags[tag]: f"alias {alias} of {model.name}" for tag in _TAGS if tag in tags}
    except (StoreUnreachable, StoreRefused) as error:
        raise NamesUnknown(
            f"MLflow: {error}; without it nobody knows which encoders have an alias, so nothing is collected. "
            "Start the store, or correct MLFLOW_TRACKING_URI, and run again"
        ) from error
    return named


def _lines(found: Sequence[Finding], *, is_deleting: bool) -> Iterable[str]:
    going = [one for one in found if not one.is_kept]
    rows = [("", "what", "where", "size", "why"), *map(_row, found)]
    total = size(sum(one.size_bytes for one in going))
    lines = table(rows) if found else []
    if is_deleting:
        return [*lines, f"{total} freed"]
    return [*lines, f"{total} may go; nothing was changed" + ("; --delete removes it" if going else "")]


def _row(one: Finding) -> tuple[str, ...]:
    verb = "kept" if one.is_kept else "removed" if one.is_gone else "may go"
    return (verb, one.what, one.path, size(one.size_bytes), one.why)


def _print(lines: Iterable[str]) -> None:
    for line in lines:
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()
