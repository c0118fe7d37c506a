"""Which encoder is the one to use: the alias ``champion`` of the registry, and when a new encoder takes it over.

After every evaluation that was made, the new encoder is compared with the champion on the clips that both tested. The alias
moves when its accuracy there is not lower; whether the difference could be chance is stated, and does not decide. The registry
stores, the artifacts' evaluations decide. A registry that is away stops nothing: the next run makes up for the decision.
"""

import dataclasses
import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from pipeline import environment
from pipeline.compare import evaluation
from pipeline.plan import Step
from pipeline.recipe import Recipe
from pipeline.runner import Report
from stages.comparison import Comparison, Pair, compare
from stages.comparison_page import reach, render, verdict
from stages.errors import ArtifactDamaged, ArtifactMissing, PipelineError
from stages.predictions import NAME as PREDICTIONS
from stages.storage import artifact
from stages.storage.artifact import Artifact
from stages.storage.publish import publish_bytes
from stages.storage.workspace import Workspace
from stages.summary import percent, points, probability

if TYPE_CHECKING:
    from pipeline.tracking.registry import Version

STAGE, ENCODER = "evaluate", "pretrain"
FOLDER = "promotions"
"""Below the root: pages of comparisons, and notes of decisions that are still to be made. No artifact, and safe to delete."""

_PENDING = ".undecided"
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Decision:
    """What was decided about a new encoder."""

    moves: bool
    """Whether it is the champion from now on."""
    why: str
    """One sentence with the numbers."""
    comparison: Comparison | None = None
    pair: Pair | None = None
    """What decided: the new encoder, A, against the champion, B, for the first label and probe."""

    def page(self) -> str:
        """The decision in Markdown."""
        parts = ["# Champion", f"**{'The alias moves.' if self.moves else 'The alias stays.'}** {self.why}"]
        if self.pair is not None:
            parts.append("\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in _facts(self.pair))]))
        return "\n\n".join(parts)

    def tags(self) -> dict[str, str]:
        """What is noted beside a registered version."""
        numbers = {} if self.pair is None else {"difference": f"{self.pair.difference:.6f}", "p": f"{self.pair.p_value:.6f}"}
        return {f"lvmae.promotion.{name}": value for name, value in {"why": self.why, **numbers}.items()}


def decide(new: Artifact, champion: Artifact | None) -> Decision:
    """Whether the encoder of a new evaluation takes over from that of another one.

    Args:
        new: evaluation of the new encoder.
        champion: evaluation of the present champion; ``None`` when it cannot be had.

    Raises:
        ArtifactMissing: one of them keeps no predictions.
        ArtifactDamaged: bytes of one of them are not what they were.
    """
    if champion is None:
        return Decision(False, "the evaluation of the present champion is gone, so that the two cannot be compared")
    comparison = compare([evaluation("A", new), evaluation("B", champion)])
    pair = next((one for one in comparison.pairs if (one.label, one.probe) == comparison.asked[0]), None)
    if pair is None:
        return Decision(False, "it and the champion tested no clip in common for its first label and probe", comparison)
    moves = pair.accuracies[0] >= pair.accuracies[1]
    said = "not lower than" if moves else "lower than"
    own, other = map(percent, pair.accuracies)
    why = (
        f"on {pair.num_clips} clips that both tested, “{pair.label}”, {pair.probe}, its accuracy of {own} is {said} the "
        f"champion's {other} ({points(pair.difference)}, {reach(pair.interval)}, {probability(pair.p_value)}). "
        f"A is the new encoder, B the champion: {verdict(pair)}"
    )
    return Decision(moves, why, comparison, pair)


class Promoter:
    """An observer that registers every encoder that was evaluated, and gives the better one the alias.

    Args:
        workspace: below whose root the artifacts lie.
        recipe: its name is that of the registered model.
        shown: told of every decision in Markdown, such as a function that makes a Prefect artifact.
    """

    def __init__(self, workspace: Workspace, recipe: Recipe, shown: Callable[[str], object] | None = None) -> None:
        self._workspace = workspace
        self._recipe = recipe
        self._shown = shown

    def stage_started(self, upcoming: Step, recipe: Recipe, inputs: Mapping[str, Artifact]) -> None:
        """Nothing: what there is to decide shows at the end."""

    def begin(self, label: str, *, total: int, done: int = 0) -> None:
        """Nothing."""

    def advance(self, amount: int = 1) -> None:
        """Nothing."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Nothing."""

    def show(self, step: int, name: str, png: bytes) -> None:
        """Nothing."""

    def stage_finished(self, report: Report) -> None:
        """Decide about an encoder that was evaluated just now, or whose decision could not be made before."""
        if report.stage != STAGE or ENCODER not in report.artifact.manifest.inputs:
            return
        pending = self._workspace.root / FOLDER / f"{report.artifact.fingerprint}{_PENDING}"
        if not report.outcome.units_done and not pending.exists():
            return
        try:
            decision = self.promote(report.artifact)
        except (PipelineError, OSError) as error:
            publish_bytes(pending, b"")
            _log.warning("no decision about the champion: %s; the next run of the recipe makes up for it", error)
            return
        pending.unlink(missing_ok=True)
        if decision and self._shown:
            self._shown(decision.page())

    def stage_failed(self, stage: str, error: BaseException) -> None:
        """Nothing: what failed is no champion."""

    def run_ended(self, error: BaseException | None) -> None:
        """Nothing."""

    def promote(self, new: Artifact) -> Decision | None:
        """Register the encoder of an evaluation, and move the alias if it may have it; nothing if it has it already.

        Args:
            new: artifact of the stage ``evaluate``.

        Raises:
            RegistryUnreachable: nothing was decided.
            ArtifactMissing: its encoder is gone.
        """
        environment.prepare()
        from pipeline.tracking.registry import Registry

        made = artifact.find(self._workspace, ENCODER, new.manifest.inputs[ENCODER].fingerprint)
        if made is None:
            raise ArtifactMissing(f"{new.folder}: its encoder is gone; run {ENCODER} again")
        registry = Registry(self._workspace.root)
        version = registry.register(self._recipe.name, made, evaluation=new)
        champion = registry.champion(self._recipe.name)
        if champion is not None and champion.digest == made.digest:
            return None
        decision = self._decision(new, champion)
        if decision.moves:
            registry.promote(version)
        registry.note(version, decision.tags() | self._page(new, decision))
        return decision

    def _decision(self, new: Artifact, champion: "Version | None") -> Decision:
        if champion is None:
            return Decision(True, "it is the first encoder of this recipe that was evaluated")
        try:
            return decide(new, self._evaluation_of(champion))
        except (ArtifactMissing, ArtifactDamaged) as error:
            return Decision(False, f"it and the champion cannot be compared: {error}")

    def _evaluation_of(self, champion: "Version") -> Artifact | None:
        found = artifact.find(self._workspace, STAGE, champion.evaluation) if champion.evaluation else None
        return found if found and PREDICTIONS in found.manifest.files else None

    def _page(self, new: Artifact, decision: Decision) -> dict[str, str]:
        """The whole comparison as a page beside the artifacts; where it lies, for the registry."""
        if decision.comparison is None:
            return {}
        other = decision.comparison.evaluations[1].fingerprint
        path = self._workspace.root / FOLDER / f"{new.fingerprint}-{other}.html"
        publish_bytes(path, render(decision.comparison))
        return {"lvmae.promotion.page": path.as_uri()}


def _facts(pair: Pair) -> list[tuple[str, str]]:
    return [
        ("label, probe", f"{pair.label}, {pair.probe}"),
        ("clips that both tested", f"{pair.num_clips} in {pair.num_groups} groups"),
        ("accuracy of the new encoder", percent(pair.accuracies[0])),
        ("accuracy of the champion", percent(pair.accuracies[1])),
        ("difference", f"{points(pair.difference)}, 95 % interval {reach(pair.interval)}"),
        ("right alone", f"{pair.wins} and {pair.losses} clips, sign test {probability(pair.p_value)}"),
        ("adjusted for all pairs", probability(pair.adjusted_p_value)),
    ]
