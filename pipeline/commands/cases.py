"""Quarantined sources for a person: chosen, shown, retried and waived."""

import collections
import json
import sys
from collections.abc import Iterable, Sequence

from stages import quarantine
from stages.errors import ConfigError, Reason
from stages.quarantine import COPIES, Case, State
from stages.storage.clips import STAGE, Dataset
from stages.storage.workspace import Workspace

Chosen = Sequence[tuple[Dataset, Sequence[Case]]]

REMEDIES = {
    Reason.EMPTY: "the file has no bytes: copy it again",
    Reason.NOT_A_FILE: "give a regular file: links, pipes and devices are never followed",
    Reason.UNREADABLE: "see that the file is a video and may be read by this user",
    Reason.FORMAT_REFUSED: "convert it to a common container such as mp4, mkv or webm: playlists and images are never opened",
    Reason.NO_VIDEO_STREAM: "there is only sound, or a cover picture: give a file with moving pictures",
    Reason.NO_FRAMES: "the picture stream is empty: copy or export it again",
    Reason.TOO_SHORT: "lower shard.clip.min_frames, or leave it out",
    Reason.TOO_LARGE: "raise shard.limits.max_pixels, or scale it down",
    Reason.TRUNCATED: "the end is missing: copy it again, or accept what is there with shard.clip.policy=tolerant",
    Reason.CORRUPT: "copy it again, or accept some damage with shard.clip.policy=tolerant",
    Reason.TIMESTAMPS: "its clock jumps or runs backwards: remux or re-encode it",
    Reason.TIMEOUT: "raise shard.limits.timeout_s if the file is honest",
    Reason.DECODER_CRASH: "the decoder crashed on it: re-encode it, and treat it as hostile until then",
    Reason.LIMIT: "raise the limit that the detail names, if the file is honest",
    Reason.DUPLICATE: "nothing: its bytes are stored under the other name",
    Reason.RENAMED: "nothing: its clips stay under the old name",
    Reason.CHANGED: "nothing: the next run reads what is there now",
    Reason.MISSING: "bring the file back; the next run reads it",
}


def show_all(root: str, dataset: str | None, *, reason: str | None, as_json: bool) -> None:
    """Print every quarantined source of the datasets that are meant."""
    found = [case for one in _datasets(root, dataset) for case in quarantine.cases(one) if reason in (None, case.reason)]
    _print([json.dumps(case._asdict()) for case in found] if as_json else _table(found))


def show(chosen: Chosen, *, as_json: bool) -> None:
    """Print all that is known of some cases, and what to do about each."""
    for _, found in chosen:
        for case in found:
            record = {**case._asdict(), "remedy": REMEDIES[case.reason]}
            _print([json.dumps(record)] if as_json else [*(f"{name:<10} {value}" for name, value in record.items()), ""])


def retry(chosen: Chosen, note: str) -> None:
    """Let the next run read sources again."""
    for dataset, found in chosen:
        quarantine.retry(dataset, found, note)
        _print([f"{dataset.name}: {_number(found)} will be read again by the next `lvmae shard`"])


def waive(chosen: Chosen, note: str) -> None:
    """Accept that sources are lost."""
    for dataset, found in chosen:
        quarantine.waive(dataset, found, note)
        _print([f"{dataset.name}: {_number(found)} waived"])


def chosen(root: str, dataset: str | None, keys: Sequence[str] | None, *, reason: str | None, every: bool = False) -> Chosen:
    """The cases that are meant, by dataset.

    Raises:
        ConfigError: nothing is, or something that is not in quarantine.
    """
    if not (keys or reason or every):
        raise ConfigError("name sources, or choose them with --reason or --all; `lvmae quarantine list` prints them")
    if reason is not None and reason not in set(Reason):
        raise ConfigError(f"unknown reason {reason!r}; known: {', '.join(Reason)}")
    found = [
        (one, [case for case in quarantine.cases(one) if _is_meant(case, keys, reason)]) for one in _datasets(root, dataset)
    ]
    missing = set(keys or ()) - {case.key for _, some in found for case in some}
    if missing:
        raise ConfigError(f"{sorted(missing)[0]!r} is not in quarantine; `lvmae quarantine list` prints what is")
    if not any(some for _, some in found):
        raise ConfigError("no source in quarantine is meant by that; `lvmae quarantine list` prints them")
    return [(one, some) for one, some in found if some]


def _is_meant(case: Case, keys: Sequence[str] | None, reason: str | None) -> bool:
    if keys:
        return case.key in keys and reason in (None, case.reason)
    return case.reason == reason if reason is not None else case.reason not in COPIES


def _number(found: Sequence[Case]) -> str:
    return f"{len(found)} {'source' if len(found) == 1 else 'sources'}"


def _datasets(root: str, name: str | None) -> list[Dataset]:
    workspace = Workspace.at(root)
    folders = sorted(path for path in workspace.stage_folder(STAGE).glob("*") if path.is_dir())
    found = [Dataset(workspace, path.name) for path in folders if name is None or path.name.startswith(name)]
    if not found:
        known = ", ".join(path.name for path in folders) or "none"
        raise ConfigError(f"no dataset{f' {name}' if name else ''} below {workspace.stage_folder(STAGE)}; there is {known}")
    return found


def _table(found: Sequence[Case]) -> list[str]:
    if not found:
        return ["nothing is in quarantine"]
    rows = [("state", "reason", "source", "detail"), *((case.state, case.reason, case.key, case.detail) for case in found)]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]]).rstrip() for row in rows
    ]
    counts = collections.Counter(case.reason for case in found)
    listed = ", ".join(f"{reason} {count}" for reason, count in counts.most_common())
    new = sum(case.state is State.NEW for case in found)
    return [_plain(line) for line in lines] + ["", f"{len(found)} in quarantine ({listed}); {new} of them new"]


def _plain(text: str) -> str:
    """A line as a terminal may show it: what a file name could do to the terminal is spelled out."""
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


def _print(lines: Iterable[str]) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in lines))
