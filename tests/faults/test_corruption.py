"""A bit flipped, a file cut, swapped, brought back from the past or deleted: found out, and never read as data."""

import dataclasses
import hashlib
import random
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from pipeline import inventory
from stages.errors import PipelineError
from stages.storage import artifact, index
from stages.storage.clips import Dataset
from stages.storage.index import Index, read_clip, read_motion
from stages.storage.workspace import Workspace
from tests.faults import shard_work

SEED = 20_250_717
NUM_FLIPS, NUM_CUTS = 40, 12
"""Of every kind of file."""
KINDS = ("shards", "index", "sources", "quarantine", "units", "plans", "plan_records", "snapshots")
WAVES = (
    {"a.mp4": b"a" * 500, "b.mp4": b"b" * 700},
    {"c.mp4": shard_work.BAD, "d.mp4": b"d" * 300},
    {"e.mp4": b"e" * 900},
)
"""Sources that come one after the other, each with a plan, a unit and a snapshot of its own."""

Change = Callable[[], None]


@dataclasses.dataclass
class Patient:
    """A dataset of two waves, what it holds, and what the third wave makes of it."""

    root: Path
    sources: Path
    clips: list[Any]
    expected: Mapping[str, str]

    def files(self, kind: str) -> list[Path]:
        """The files of one kind."""
        if kind == "records":
            return sorted(self.root.glob("clips/*/snapshots/*.recipe.yaml"))
        if kind == "plan_records":
            return sorted(self.root.glob("clips/*/plans/*.json"))
        unlike = {".yaml", ".json"} if kind == "plans" else {".yaml"}
        return sorted(path for path in self.root.glob(f"clips/*/{kind}/*[0-9].*") if path.suffix not in unlike)

    def undetected(self, changes: Mapping[str, Mapping[Path, bytes | None]]) -> list[str]:
        """The changes to some files, by name, that are read as data or that ``lvmae verify`` does not see."""
        return [name for name, change in changes.items() if self._is_missed(change)]

    def _is_missed(self, change: Mapping[Path, bytes | None]) -> bool:
        before = {path: path.read_bytes() for path in change}
        try:
            put(change)
            return self.verifies() or self.reads_otherwise()
        finally:
            put(before)

    def verifies(self) -> bool:
        """Whether ``lvmae verify`` finds nothing."""
        found = list(inventory.verified(Workspace(self.root)))
        return not any(faults or entry.state == inventory.State.DAMAGED for entry, faults in found)

    def reads_otherwise(self) -> bool:
        """Whether a training would get something else, without an error."""
        try:
            return contents(self.root) != self.clips
        except PipelineError:
            return False


def put(files: Mapping[Path, bytes | None]) -> None:
    for path, data in files.items():
        if data is None:
            path.unlink()
        else:
            path.write_bytes(data)


def contents(root: Path) -> list[Any]:
    """Every clip of the newest snapshot with its bytes."""
    snapshot = Dataset(Workspace(root), next(root.glob("clips/*")).name).snapshots()[-1]
    clips = []
    for clip in Index(snapshot):
        motion = read_motion(snapshot, clip)
        clips.append((clip, read_clip(snapshot, clip), None if motion is None else motion.tobytes()))
    return clips


def tree(root: Path) -> dict[str, str]:
    files = [path for path in root.rglob("*") if path.is_file() and path.name != "seen.parquet"]
    return {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def patient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Patient]:
    folder = tmp_path_factory.mktemp("patient")
    root, sources, later = folder / "root", folder / "sources", folder / "later"
    sources.mkdir()
    for number, wave in enumerate(WAVES):
        if number == len(WAVES) - 1:
            shutil.copytree(root, later)
        put({sources / name: data for name, data in wave.items()})
        shard_work.run(str(later if later.exists() else root), str(sources))
    made = Patient(root, sources, contents(root), tree(later))
    assert len(made.clips) == 6
    assert all(len(made.files(kind)) == 2 for kind in KINDS)
    assert made.verifies()
    yield made
    assert made.verifies(), "every change must have been undone"


def flips(patient: Patient, kind: str) -> dict[str, dict[Path, bytes | None]]:
    """One bit of a file of a kind, somewhere."""
    generator, found = random.Random(f"{SEED} {kind}"), {}
    for path in generator.choices(patient.files(kind), k=NUM_FLIPS):
        bit, data = flipped(path, generator)
        found[f"seed {SEED}: bit {bit} of {kind}/{path.name}"] = {path: data}
    return found


def flipped(path: Path, generator: random.Random) -> tuple[int, bytes]:
    """The bytes of a file with one bit changed, and which."""
    data = bytearray(path.read_bytes())
    bit = generator.randrange(8 * len(data))
    data[bit // 8] ^= 1 << bit % 8
    return bit, bytes(data)


def cuts(patient: Patient, kind: str) -> dict[str, dict[Path, bytes | None]]:
    """A file of a kind that ends early."""
    generator, found = random.Random(f"{SEED} {kind}"), {}
    for path in generator.choices(patient.files(kind), k=NUM_CUTS):
        length = generator.randrange(path.stat().st_size)
        found[f"seed {SEED}: {kind}/{path.name} cut after {length} bytes"] = {path: path.read_bytes()[:length]}
    return {**found, f"{kind} cut to nothing": {patient.files(kind)[0]: b""}}


@pytest.mark.parametrize("kind", [*KINDS, "records"])
def test_a_flipped_bit_anywhere_is_found_and_never_read_as_data(patient: Patient, kind: str) -> None:
    changes = flips(patient, kind)
    assert len(changes) > NUM_FLIPS * 0.8
    assert patient.undetected(changes) == []


@pytest.mark.parametrize("kind", [*KINDS, "records"])
def test_a_file_that_was_cut_is_found_and_never_read_as_data(patient: Patient, kind: str) -> None:
    assert patient.undetected(cuts(patient, kind)) == []


@pytest.mark.parametrize("kind", KINDS)
def test_swapped_restored_and_deleted_files_are_found_and_never_read_as_data(patient: Patient, kind: str) -> None:
    older, newer = patient.files(kind)
    assert older.read_bytes() != newer.read_bytes()
    changes: dict[str, dict[Path, bytes | None]] = {
        "swapped": {older: newer.read_bytes(), newer: older.read_bytes()},
        "an old one in the place of a newer": {newer: older.read_bytes()},
        "a newer one in the place of an old": {older: newer.read_bytes()},
        "the older deleted": {older: None},
        "the newer deleted": {newer: None},
    }
    if kind == "snapshots":  # the newest never was, then: the next run makes it again
        del changes["the newer deleted"]
    assert patient.undetected(changes) == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("damage", ["older flipped", "newer flipped", "older deleted", "newer deleted", "swapped"])
def test_a_run_on_damaged_files_stops_or_loses_nothing(patient: Patient, tmp_path: Path, kind: str, damage: str) -> None:
    root = tmp_path / "root"
    shutil.copytree(patient.root, root)
    older, newer = dataclasses.replace(patient, root=root).files(kind)
    hurt = newer if damage.startswith("newer") else older
    if damage == "swapped":
        put({older: newer.read_bytes(), newer: older.read_bytes()})
    else:
        put({hurt: None if damage.endswith("deleted") else flipped(hurt, random.Random(f"{SEED} {kind} {damage}"))[1]})
    try:
        shard_work.run(str(root), str(patient.sources))
    except PipelineError:
        return
    now = tree(root)
    wrong = {name for name in now.keys() | patient.expected.keys() if now.get(name) != patient.expected.get(name)}
    spared = {older.relative_to(root).as_posix(), newer.relative_to(root).as_posix()}
    if (kind, damage) == ("snapshots", "newer deleted"):  # the next one takes its number
        spared |= {name for name in patient.expected if "/snapshots/" in name}
    assert wrong <= spared, "the run went on and made other files"


def test_a_damaged_plan_that_a_killed_run_left_stops_the_next_or_changes_nothing(patient: Patient, tmp_path: Path) -> None:
    generator, stopped = random.Random(SEED), 0
    undone = tmp_path / "undone"
    shutil.copytree(patient.root, undone)
    for folder in undone.glob("clips/*/*"):
        if folder.is_dir() and folder.name != "plans":
            shutil.rmtree(folder)
    whole = tmp_path / "whole"
    shutil.copytree(undone, whole)
    shard_work.run(str(whole), str(patient.sources))
    for number in range(25):
        root = tmp_path / str(number)
        shutil.copytree(undone, root)
        plan = generator.choice(sorted(root.glob("clips/*/plans/*")))
        bit, data = flipped(plan, generator)
        plan.write_bytes(data)
        try:
            shard_work.run(str(root), str(patient.sources))
        except PipelineError:
            stopped += 1
        else:
            spelled = plan.relative_to(root).as_posix()
            assert {**tree(root), spelled: ""} == {**tree(whole), spelled: ""}, f"seed {SEED}: bit {bit} of {plan.name}"
        shutil.rmtree(root)
    assert stopped


def test_a_damaged_clip_is_found_by_reading_it(patient: Patient) -> None:
    generator = random.Random(SEED)
    path = patient.files("shards")[0]
    whole = path.read_bytes()
    clips = [clip for clip, _, _ in patient.clips if clip.ordinal == 0]
    for _ in range(40):
        clip = generator.choice(clips)
        data = bytearray(whole)
        data[clip.offset_bytes + generator.randrange(clip.size_bytes)] ^= 1 << generator.randrange(8)
        put({path: bytes(data)})
        with pytest.raises(PipelineError, match="damaged"):
            contents(patient.root)
    put({path: whole})


def test_without_the_checksum_of_clips_their_damage_is_read_as_data(patient: Patient) -> None:
    path = patient.files("shards")[0]
    clip = patient.clips[0][0]
    data = bytearray(path.read_bytes())
    data[clip.offset_bytes + 10] ^= 1
    before = path.read_bytes()
    put({path: bytes(data)})
    assert not patient.reads_otherwise()
    with mock.patch.object(index, "google_crc32c", mock.Mock(value=lambda _: mock.ANY)):
        assert patient.reads_otherwise()
    put({path: before})


@pytest.mark.parametrize("kind", ["shards", "sources"])
def test_without_the_digest_damage_is_not_found(patient: Patient, kind: str) -> None:
    changes = flips(patient, kind)
    with mock.patch.object(artifact, "_damage", return_value=None):
        assert patient.undetected(changes)
