"""What ``lvmae status`` and ``verify`` print: for a person as a table, for a program as JSON."""

import json
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipeline import inventory, surroundings
from pipeline.inventory import Entry, State
from pipeline.staleness import differing, recipe_reason
from pipeline.wording import duration, size, table
from stages.storage.clips import STAGE as CLIPS
from stages.storage.workspace import Workspace

if TYPE_CHECKING:
    from pipeline.estimation.estimates import Forecast, Outlook
    from pipeline.recipe import Recipe, Request

_SHOWN_DIGITS = 8
"""How much of an input's fingerprint is shown; the folder's name has all of it."""


def show_status(request: "Request | None", *, root: str, as_json: bool) -> None:
    """Print every artifact below the root and, given a request, what a run of it would do."""
    workspace = Workspace.at(root)
    entries = inventory.entries(workspace)
    recipe = request.load() if request else None
    asked = _outlook(recipe, workspace) if recipe else None
    room, waiting = surroundings.disk(workspace.root), surroundings.outgoing(workspace.root)
    if as_json:
        _print_json(
            {
                "root": str(workspace.root),
                "artifacts": [entry.record() | _recipe_record(entry, recipe) for entry in entries],
                "disk": room._asdict(),
                "outbox": waiting._asdict(),
                "source": asked.ahead._asdict() if asked and asked.ahead else None,
                "next": [one.record() for one in asked.stages] if asked else None,
            }
        )
        return
    _print([f"root {workspace.root}", *_table(entries), *_stale_lines(entries, recipe), "", room.line()])
    _print([waiting.line()] if waiting.events else [])
    _print([_freshness(entry) for entry in entries if entry.stage == CLIPS and entry.manifest])
    if asked and request:
        _print([surroundings.source_line(asked.ahead, asked.problem), ""])
        _print([f"lvmae run {request.spelled()} --root {root} would", *_next_lines(asked.stages)])


def show_damage(*, root: str, as_json: bool) -> bool:
    """Print what is wrong with the stored bytes; whether everything is whole."""
    found = []
    workspace = Workspace.at(root)
    for entry, faults in inventory.verified(workspace):
        found.append({**entry.record(), "faults": faults})
        if not as_json:
            _print(_verdict(entry, faults))
    num_damaged = sum(bool(one["faults"]) for one in found)
    if as_json:
        _print_json({"root": str(workspace.root), "artifacts": found, "damaged": num_damaged})
    else:
        _print([f"{len(found)} artifacts checked, {num_damaged} damaged"])
    return num_damaged == 0


def _outlook(recipe: "Recipe", workspace: Workspace) -> "Outlook":
    from pipeline.estimation.estimates import outlook  # counts what every stage would do: only when a recipe is asked about

    return outlook(recipe, workspace)


def _recipe_record(entry: Entry, recipe: "Recipe | None") -> dict[str, Any]:
    if recipe is None or entry.manifest is None:
        return {}
    return {"differs": differing(recipe, entry.manifest)}


def _next_lines(stages: "Sequence[Forecast]") -> list[str]:
    return [f"{one.stage:<10}  {one.action:<6}  {one.fingerprint or '-':<16}  {one.reason}" for one in stages]


def _table(entries: Sequence[Entry]) -> list[str]:
    if not entries:
        return ["holds no artifact yet"]
    lines = table([("stage", "artifact", "state", "size", "age", "made from"), *(_row(entry) for entry in entries)])
    details = [f"{entry.stage} {entry.name}: {entry.detail}" for entry in entries if entry.state is not State.COMMITTED]
    return lines + details


def _stale_lines(entries: Sequence[Entry], recipe: "Recipe | None") -> list[str]:
    """Why what is out of date is, and what a recipe asks for otherwise."""
    lines = [f"{entry.stage} {entry.name}: {reason}" for entry in entries for reason in entry.stale]
    if recipe is not None:
        reasons = [(entry, recipe_reason(recipe, entry.manifest)) for entry in entries if entry.manifest]
        lines += [f"{entry.stage} {entry.name}: {reason}" for entry, reason in reasons if reason]
    return ["", "out of date", *(f"  {line}" for line in lines)] if lines else []


def _freshness(entry: Entry) -> str:
    snapshot = f"newest snapshot of {entry.name} is {duration(entry.age_s)} old"
    return f"freshness   {snapshot}"


def _state(entry: Entry) -> str:
    """The state in one or two words, for a column."""
    stale = ", out of date" if entry.stale and entry.state is State.COMMITTED else ""
    use = ", being made" if entry.is_held else ", being read" if entry.is_read else ""
    return f"{entry.state}{stale}{use}"


def _row(entry: Entry) -> tuple[str, ...]:
    made_from = [
        f"{stage} {fingerprint[:_SHOWN_DIGITS]}{' (gone)' if stage in entry.lost_inputs else ''}"
        for stage, fingerprint in entry.inputs.items()
    ]
    return (entry.stage, entry.name, _state(entry), size(entry.size_bytes), duration(entry.age_s), ", ".join(made_from) or "-")


def _verdict(entry: Entry, faults: Mapping[str, str]) -> list[str]:
    if faults:
        advice = f"  delete {entry.path} and run the stage {entry.stage} again"
        return [f"DAMAGED {entry.stage} {entry.path}", *(f"  {name}: {fault}" for name, fault in faults.items()), advice]
    if entry.state is State.IN_PROGRESS:
        return [f"passed over, {entry.detail}: {entry.stage} {entry.path}"]
    return [f"whole   {entry.stage} {entry.path}"]


def _print(lines: Sequence[str]) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.stdout.flush()


def _print_json(value: Any) -> None:
    _print([json.dumps(value)])
