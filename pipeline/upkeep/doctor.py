"""``lvmae doctor``: whether this machine and the servers that it is told of can run the pipeline, each check with a remedy.

No secret is printed, not even in part: of credentials only whether they are set.
"""

import importlib.metadata
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from packaging.requirements import Requirement

from pipeline.upkeep import machine_checks, server_checks
from pipeline.upkeep.findings import Check, State, fail, ok, warn
from pipeline.wording import table

_CONSTRAINTS = Path(os.environ.get("LVMAE_CONSTRAINTS") or Path(__file__).parents[2] / "constraints.txt")
"""The versions that were tested together: beside the code in a checkout, elsewhere where the variable says."""


class _Group(NamedTuple):
    """Checks that belong together."""

    name: str
    checks: Callable[[], Iterator[Check]]


def show_health(*, root: str, as_json: bool) -> bool:
    """Print every check; whether none failed."""
    found = []
    for check in checks(Path(root).expanduser().absolute()):
        found.append(check)
        if as_json:
            sys.stdout.write(json.dumps(check.record()) + "\n")
            sys.stdout.flush()
    if not as_json:
        sys.stdout.write("".join(f"{line}\n" for line in _lines(found)))
    return all(check.state is not State.FAIL for check in found)


def checks(root: Path) -> Iterator[Check]:
    """Every check, in the order in which a person would mend things."""
    yield from packages(_CONSTRAINTS)
    yield from machine_checks.machine()
    yield from machine_checks.storage(root)
    yield from server_checks.servers(root)


def packages(constraints: Path) -> Iterator[Check]:
    """Whether the installed packages are those that this project allows, and those that were tested together.

    Args:
        constraints: the list of what was tested; where it does not lie beside the project, that part is left out.
    """
    needed = [Requirement(line) for line in importlib.metadata.requires("lvmae") or () if "extra ==" not in line]
    wrong = [found for requirement in needed if (found := _unfit(requirement))]
    if wrong:
        yield fail("packages", "; ".join(wrong), "install the project again: pip install -c constraints.txt -e .")
    else:
        yield ok("packages", f"{len(needed)} requirements are met")
    if not constraints.is_file():
        yield warn("tested set", "constraints.txt is not here", "install from a checkout, or compare by hand")
        return
    other = list(_untested(constraints.read_text()))
    if other:
        shown = ", ".join(other[:6]) + (f" and {len(other) - 6} more" if len(other) > 6 else "")
        yield warn("tested set", f"differs from constraints.txt: {shown}", "pip install -c constraints.txt -e .")
    else:
        yield ok("tested set", "every installed package is as in constraints.txt")


def _unfit(requirement: Requirement) -> str:
    """What is wrong with an installed package; empty when nothing is."""
    try:
        version = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return f"{requirement.name} is not installed"
    return "" if requirement.specifier.contains(version, prereleases=True) else f"{requirement} is wanted, {version} is there"


def _untested(constraints: str) -> Iterator[str]:
    """The installed packages that have another version than the one tested."""
    lines = (line.partition("#")[0].strip() for line in constraints.splitlines())
    for requirement in (Requirement(line) for line in lines if line):
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            continue  # of an extra that is not installed
        if not requirement.specifier.contains(version, prereleases=True):
            yield f"{requirement.name} {version} instead of {requirement.specifier}"


def _lines(found: Sequence[Check]) -> Iterator[str]:
    yield from table([(check.state.value, check.name, check.found) for check in found])
    unwell = [check for check in found if check.state is not State.OK]
    if unwell:
        yield ""
        yield from (f"{check.state.value:<4}  {check.name}: {check.remedy}" for check in unwell)
    count = {state: sum(check.state is state for check in found) for state in State}
    yield ""
    yield f"{count[State.OK]} well, {count[State.WARN]} warnings, {count[State.FAIL]} failures"
