"""What ``lvmae status`` and ``verify`` print: for a person as a table, for a program as JSON."""

import json
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipeline import inventory
from pipeline.inventory import Entry, State
from pipeline.wording import duration, plan_lines, size
from stages.storage.workspace import Workspace

if TYPE_CHECKING:
    from pipeline.plan import Step
    from pipeline.recipe import Request

_SHOWN_DIGITS = 8
"""How much of an input's fingerprint is shown; the folder's name has all of it."""


def show_status(request: "Request | None", *, root: str, as_json: bool) -> None:
    """Print every artifact below the root and, given a request, what a run of it would do."""
    workspace = Workspace.at(root)
    entries = inventory.entries(workspace)
    steps = _plan(request, workspace) if request else None
    if as_json:
        _print_json(
            {
                "root": str(workspace.root),
                "artifacts": [entry.record() for entry in entries],
                "next": None if steps is None else [_step_record(step) for step in steps],
            }
        )
        return
    _print([f"root {workspace.root}", *_table(entries)])
    if steps is not None and request:
        _print(["", f"lvmae run {request.spelled()} --root {root} would", *plan_lines(steps)])


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


def _table(entries: Sequence[Entry]) -> list[str]:
    if not entries:
        return ["holds no artifact yet"]
    rows = [("stage", "artifact", "state", "size", "age", "made from"), *(_row(entry) for entry in entries)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    details = [f"{entry.stage} {entry.name}: {entry.detail}" for entry in entries if entry.state is not State.COMMITTED]
    return lines + details


def _row(entry: Entry) -> tuple[str, ...]:
    made_from = [
        f"{stage} {fingerprint[:_SHOWN_DIGITS]}{' (gone)' if stage in entry.lost_inputs else ''}"
        for stage, fingerprint in entry.inputs.items()
    ]
    return (entry.stage, entry.name, entry.state, size(entry.size_bytes), duration(entry.age_s), ", ".join(made_from) or "-")


def _verdict(entry: Entry, faults: Mapping[str, str]) -> list[str]:
    if faults:
        advice = f"  delete {entry.path} and run the stage {entry.stage} again"
        return [f"DAMAGED {entry.stage} {entry.path}", *(f"  {name}: {fault}" for name, fault in faults.items()), advice]
    if entry.state is State.IN_PROGRESS:
        return [f"passed over, {entry.detail}: {entry.stage} {entry.path}"]
    return [f"whole   {entry.stage} {entry.path}"]


def _plan(request: "Request", workspace: Workspace) -> "list[Step]":
    from pipeline.plan import plan  # with all stages, and torch: only when a recipe is asked about

    return plan(request.load(), workspace)


def _step_record(step: "Step") -> dict[str, Any]:
    return {"stage": step.stage, "action": step.action.value, "fingerprint": step.fingerprint, "reason": step.reason}


def _print(lines: Sequence[str]) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.stdout.flush()


def _print_json(value: Any) -> None:
    _print([json.dumps(value)])
