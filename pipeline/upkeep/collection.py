"""Which artifacts nobody needs: marked from what is kept, by their manifests. Nothing is read or written here.

Kept is what was made from one of the newest snapshots of its clips, what an alias of the registry or a person names, what a
live run makes or reads, what is young, and everything that any of these was made from. Clips themselves only grow, and every
snapshot names all that was there before it, so no clip is ever collected.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from pipeline.wording import duration
from stages.storage.clips import STAGE as CLIPS


class Key(NamedTuple):
    """Which artifact: its stage and the name of its folder."""

    stage: str
    name: str


@dataclasses.dataclass(frozen=True)
class Node:
    """One artifact after the first stage, or the beginning of one."""

    key: Key
    digest: str | None
    """``None`` while it is not committed, or where its manifest cannot be read."""
    inputs: Mapping[str, str]
    """By stage the digests of what it was made from."""
    age_s: float
    """Seconds since anything of it was written."""
    is_live: bool = False
    """Whether a live run makes or reads it."""
    is_damaged: bool = False
    """Whether its manifest cannot be read."""


@dataclasses.dataclass(frozen=True)
class Policy:
    """What is kept beside what live runs need."""

    newest: frozenset[str] = frozenset()
    """Digests of the newest snapshots of every dataset."""
    named: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Fingerprints that somebody names, each with who does."""
    grace_s: float = 0.0
    """What is younger is kept."""


def kept(nodes: Sequence[Node], policy: Policy) -> dict[Key, str]:
    """Why each artifact that is kept is; all others may go."""
    by_digest = {(node.key.stage, node.digest): node for node in nodes if node.digest}
    reasons = {node.key: reason for node in nodes if (reason := _own_reason(node, by_digest, policy))}
    waiting = [node for node in nodes if node.key in reasons]
    while waiting:
        reader = waiting.pop()
        for source in _sources(reader, by_digest):
            if source.key not in reasons:
                reasons[source.key] = f"{reader.key.stage} {reader.key.name} was made from it"
                waiting.append(source)
    return reasons


def in_order(nodes: Iterable[Node]) -> list[Node]:
    """Readers before what they were made from, so that whoever is interrupted leaves nothing without its origin."""
    left, found = list(nodes), []
    while left:
        read = {pair for node in left for pair in node.inputs.items()}
        free = [node for node in left if (node.key.stage, node.digest) not in read]
        found += free or left
        left = [node for node in left if node not in free] if free else []
    return found


def _own_reason(node: Node, by_digest: Mapping[tuple[str, str], Node], policy: Policy) -> str:
    """Why an artifact is kept whatever was made from it; empty when it is not."""
    if node.is_live:
        return "a live run makes or reads it"
    if node.is_damaged:
        return "its manifest cannot be read: `lvmae verify` says more"
    if node.age_s < policy.grace_s:
        return f"younger than {duration(policy.grace_s)}"
    for fingerprint, who in policy.named.items():
        if node.key.name.startswith(fingerprint):
            return who
    if node.digest is None:
        return ""
    return _snapshot_reason(_snapshots(node, by_digest), policy.newest)


def _snapshot_reason(snapshots: frozenset[str], newest: frozenset[str]) -> str:
    if not snapshots:
        return "what it was made from is gone, so that its snapshot is not known"
    return "made from one of the newest snapshots" if snapshots & newest else ""


def _snapshots(node: Node, by_digest: Mapping[tuple[str, str], Node]) -> frozenset[str]:
    """The digests of the snapshots that an artifact was made from, itself or by what it was made from."""
    if CLIPS in node.inputs:
        return frozenset([node.inputs[CLIPS]])
    return frozenset().union(*(_snapshots(source, by_digest) for source in _sources(node, by_digest)))


def _sources(node: Node, by_digest: Mapping[tuple[str, str], Node]) -> list[Node]:
    found = (by_digest.get((stage, digest)) for stage, digest in node.inputs.items())
    return [source for source in found if source]
