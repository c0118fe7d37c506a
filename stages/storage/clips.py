"""Clips being written: plans, units, decisions and snapshots of a dataset. ``stages/storage/index.py`` reads them.

``clips/<dataset>/`` only grows. A plan fixes which sources go into which shard before any is decoded; the record of a unit,
written last, makes its shard and its rows exist; a snapshot names all files of all units and is what a run pins.
"""

import contextlib
import hashlib
import io
import itertools
import json
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import google_crc32c
import pyarrow as pa
import pyarrow.compute as pc

from models.config import Config
from stages.errors import ArtifactDamaged
from stages.storage import schemas
from stages.storage.artifact import Artifact, FileRecord, build_manifest, read_manifest
from stages.storage.publish import canonical_json, publish_bytes, publish_new, publishing, sha256_bytes, sweep
from stages.storage.tables import Groups, encode_table, read_arrow, read_table, write_groups
from stages.storage.workspace import Workspace

STAGE = "shard"
TABLES = {"index": schemas.INDEX, "sources": schemas.SOURCES, "quarantine": schemas.QUARANTINE}
SEEN = "seen.parquet"
"""The cache of what the last listing found: no part of the dataset, and safe to delete."""


class Member(NamedTuple):
    """A clip that waits to be written."""

    clip_id: str
    video: bytes
    """An mp4 file."""
    motion: bytes | None
    """An npy file."""
    row: Mapping[str, Any]
    """Its row of the index without the place that it will get."""


class Dataset:
    """The growing folder of one dataset's clips.

    Args:
        workspace: where it lies.
        name: the dataset's name, which its shards carry.
    """

    def __init__(self, workspace: Workspace, name: str) -> None:
        self.workspace = workspace
        self.name = name
        self.folder = workspace.artifact_folder(STAGE, name)
        self._known_plans: list[_Plan] = []
        self._opened: dict[Path, Groups] = {}

    def shard_path(self, ordinal: int) -> Path:
        """The tar of one unit."""
        return self.folder / "shards" / f"{self.name}-{ordinal:06d}.tar"

    def part_path(self, table: str, ordinal: int) -> Path:
        """One unit's part of a table: ``index``, ``sources`` or ``quarantine``."""
        return self.folder / table / f"part-{ordinal:06d}.parquet"

    def unit_path(self, ordinal: int) -> Path:
        """The record that makes a unit exist."""
        return self.folder / "units" / f"{ordinal:06d}.json"

    def is_committed(self, ordinal: int) -> bool:
        """Whether a unit exists."""
        return self.unit_path(ordinal).exists()

    def is_whole(self, ordinal: int) -> bool:
        """Whether a unit exists with all its files.

        Raises:
            ArtifactDamaged: its record is not what was written.
        """
        return self.is_committed(ordinal) and all((self.folder / name).is_file() for name in self.unit(ordinal))

    def committed(self) -> list[int]:
        """The units that exist, in order."""
        return sorted(int(path.stem) for path in (self.folder / "units").glob("[0-9]*.json"))

    # plans

    def num_units(self) -> int:
        """Units of all plans.

        Raises:
            ArtifactDamaged: one is missing, or its record is not what was written.
        """
        planned = sum(plan.num_units for plan in self._plans())
        if max(self.committed(), default=-1) >= planned:
            raise ArtifactDamaged(f"{self.folder}/plans: no plan has unit {planned}, which exists; restore the missing one")
        return planned

    def add_plan(self, units: Iterable[Sequence[Mapping[str, Any]]]) -> None:
        """Record which sources go into which unit, from the first free number on; nothing, when there is no unit."""
        first = self.num_units()
        numbered = ([{**row, "ordinal": first + place} for row in rows] for place, rows in enumerate(units))
        begun = next(numbered, None)
        if begun is None:
            return
        path = self.folder / "plans" / f"{first:06d}.parquet"
        with publishing(path) as file:
            hashed = _Hashed(file)
            num_units = write_groups(hashed, itertools.chain([begun], numbered), schemas.PLAN)
        files = {self._spelled(path): hashed.record()}
        publish_bytes(path.with_suffix(".json"), _sealed({"first": first, "num_units": num_units, "files": files}))

    def check_plans(self, ordinals: Iterable[int]) -> None:
        """Nothing, when the plans of some units are as they were written.

        Raises:
            ArtifactDamaged: one is not.
        """
        wanted = set(ordinals)
        for plan in self._plans():
            if wanted.intersection(range(plan.first, plan.first + plan.num_units)) and FileRecord.of(plan.path) != plan.record:
                raise ArtifactDamaged(f"{plan.path}: not the plan that was written there; restore it from a copy")

    def planned(self, ordinal: int) -> list[dict[str, Any]]:
        """The sources of one unit, in their order.

        Raises:
            ArtifactDamaged: the plan cannot be read.
        """
        plan = self._plan_of(ordinal)
        rows = self._groups(plan).rows(ordinal - plan.first)
        if any(row["ordinal"] != ordinal for row in rows):
            raise ArtifactDamaged(f"{plan.path}: holds the plan of other units; restore it from a copy")
        return rows

    def num_planned(self, ordinals: Iterable[int]) -> int:
        """How many sources some units have."""
        plans = [(ordinal, self._plan_of(ordinal)) for ordinal in ordinals]
        return sum(self._groups(plan).num_rows(ordinal - plan.first) for ordinal, plan in plans)

    def plan_columns(self, columns: Sequence[str]) -> Iterator[list[dict[str, Any]]]:
        """Some columns of all plans, oldest first, one unit at a time."""
        for plan in self._plans():
            for number in range(plan.num_units):
                yield self._groups(plan).rows(number, columns)

    def _plan_of(self, ordinal: int) -> "_Plan":
        if ordinal >= sum(plan.num_units for plan in self._known_plans):
            self._known_plans = self._plans()
        return next(plan for plan in self._known_plans if plan.first <= ordinal < plan.first + plan.num_units)

    def _groups(self, plan: "_Plan") -> Groups:
        if plan.path not in self._opened:
            self._opened[plan.path] = Groups(plan.path)
        return self._opened[plan.path]

    def _plans(self) -> list["_Plan"]:
        """Every plan, in order.

        Raises:
            ArtifactDamaged: one is missing, or its record is not what was written.
        """
        plans = []
        free = 0
        for path in sorted((self.folder / "plans").glob("[0-9]*.json")):
            record = _unsealed(path)
            if record["first"] != free or int(path.stem) != free:
                raise ArtifactDamaged(f"{path}: no plan has unit {free}; restore the missing one from a copy")
            (found,) = record["files"].values()
            plans.append(_Plan(free, record["num_units"], path.with_suffix(".parquet"), found))
            free += record["num_units"]
        return plans

    # decisions

    def decisions(self) -> list[dict[str, Any]]:
        """What people decided about quarantined sources, oldest first."""
        return [json.loads(path.read_bytes()) for path in sorted((self.folder / "decisions").glob("[0-9]*.json"))]

    def decide(self, decision: Mapping[str, Any]) -> None:
        """Record a decision under the next number.

        Raises:
            ArtifactDamaged: another run wrote that number meanwhile.
        """
        path = self.folder / "decisions" / f"{len(self.decisions()) + 1:06d}.json"
        if not publish_new(path, canonical_json({**decision, "units": self.num_units()})):
            raise ArtifactDamaged(f"{path} appeared while this run held the dataset; run again")

    # units

    def write_unit(
        self,
        ordinal: int,
        fates: Iterable[tuple[Sequence[Member] | Iterator[Member], Mapping[str, Any], Mapping[str, Any] | None]],
    ) -> dict[str, int]:
        """Publish one unit: the tar, the tables' parts, and last the record that makes them exist.

        Args:
            ordinal: its number.
            fates: per source its clips, its row of ``sources`` and, if it is quarantined, its row of ``quarantine``; taken
                one after the other, so that one clip is in memory at a time.

        Returns:
            How many sources were committed and quarantined, and how many clips there are.
        """
        rows: dict[str, list[Mapping[str, Any]]] = {name: [] for name in TABLES}
        with _Tar(self.shard_path(ordinal)) as tar:
            for members, source, fault in fates:
                rows["index"] += [tar.add(member) for member in members]
                rows["sources"].append(source)
                rows["quarantine"] += [fault] if fault else []
        records = {f"shards/{self.shard_path(ordinal).name}": tar.record} if tar.record else {}
        parts = {
            self.part_path(name, ordinal): encode_table([{**row, "ordinal": ordinal} for row in rows[name]], schema)
            for name, schema in TABLES.items()
        }
        records |= {path.relative_to(self.folder).as_posix(): _record(data) for path, data in parts.items()}
        self._check_same(ordinal, records)
        for path, data in parts.items():
            publish_bytes(path, data)
        counts = {
            "committed": len(rows["sources"]) - len(rows["quarantine"]),
            "quarantined": len(rows["quarantine"]),
            "clips": len(rows["index"]),
        }
        publish_bytes(self.unit_path(ordinal), _sealed({"ordinal": ordinal, "counts": counts, "files": records}))
        return counts

    def _check_same(self, ordinal: int, records: Mapping[str, Any]) -> None:
        if self.is_committed(ordinal) and self.unit(ordinal) != records:
            raise ArtifactDamaged(
                f"{self.unit_path(ordinal)}: a file of this unit is gone, and its sources give other bytes now; "
                "restore the file or the sources"
            )

    def unit(self, ordinal: int) -> dict[str, FileRecord]:
        """The files of a unit.

        Raises:
            ArtifactDamaged: its record is not what was written.
        """
        path = self.unit_path(ordinal)
        record = _unsealed(path)
        if record["ordinal"] != ordinal:
            raise ArtifactDamaged(f"{path}: the record of another unit; delete it and run `lvmae shard` again")
        files: dict[str, FileRecord] = record["files"]
        return files

    # tables

    def rows(self, table: str, ordinals: Sequence[int] | None = None) -> list[dict[str, Any]]:
        """The rows of a table, of all units that exist or of some."""
        wanted = self.committed() if ordinals is None else ordinals
        return [row for ordinal in wanted for row in read_table(self.part_path(table, ordinal))]

    def total(self, table: str, column: str) -> tuple[int, int]:
        """How many rows a table has, and the sum of one of its columns."""
        parts = [read_arrow(self.part_path(table, ordinal), [column])[column] for ordinal in self.committed()]
        return sum(map(len, parts)), sum(pc.sum(part).as_py() or 0 for part in parts)

    def fates(self, columns: Sequence[str]) -> pa.Table:
        """The latest row of ``sources`` of every (source, key), as an Arrow table in the order of units.

        A source in quarantine counts no more once the same key has a later row: it was mended, replaced or tried again.

        Args:
            columns: wanted beside ``source_id``, ``key``, ``status`` and ``ordinal``.
        """
        wanted = ["source_id", "key", "status", "ordinal", *columns]
        parts = [read_arrow(self.part_path("sources", ordinal), wanted) for ordinal in self.committed()]
        if not parts:
            return schemas.SOURCES.empty_table().select(wanted)
        table = pa.concat_tables(parts)
        numbered = table.append_column("row", pa.array(range(len(table)), pa.int64()))
        of_pair = numbered.group_by(["source_id", "key"]).aggregate([("row", "max")])["row_max"]
        of_key = numbered.group_by("key").aggregate([("row", "max")])["row_max"]
        latest = pc.is_in(numbered["row"], value_set=of_pair)
        standing = pc.or_(pc.equal(table["status"], "committed"), pc.is_in(numbered["row"], value_set=of_key))
        return table.filter(pc.and_(latest, standing))

    def quarantined(self) -> list[dict[str, Any]]:
        """The rows of ``quarantine`` that still count, in the order of units."""
        fates = self.fates(())
        faulty = fates.filter(pc.equal(fates["status"], "quarantined"))
        standing = set(zip(*(faulty[name].to_pylist() for name in ("source_id", "key", "ordinal")), strict=True))
        ordinals = sorted({ordinal for _, _, ordinal in standing})
        rows = self.rows("quarantine", ordinals)
        return [row for row in rows if (row["source_id"], row["key"], row["ordinal"]) in standing]

    # snapshots

    def snapshots(self) -> list[Artifact]:
        """Every snapshot, oldest first; the newest holds all that was committed when it was made.

        Raises:
            ArtifactDamaged: one cannot be read, is missing, or is not the one that was written there.
        """
        paths = sorted((self.folder / "snapshots").glob("[0-9]*.json"))
        found = [Artifact(self.folder, read_manifest(path), path) for path in paths]
        for number, (path, one) in enumerate(zip(paths, found, strict=True), start=1):
            earlier = found[number - 2].manifest.files if number > 1 else {}
            if int(path.stem) != number or not earlier.keys() < one.manifest.files.keys():
                raise ArtifactDamaged(f"{path}: a snapshot before it is missing, or not in its place; restore it from a copy")
        return found

    def newest_snapshot(self) -> Artifact | None:
        """The newest snapshot, if there is one."""
        paths = sorted((self.folder / "snapshots").glob("[0-9]*.json"))
        return Artifact(self.folder, read_manifest(paths[-1]), paths[-1]) if paths else None

    def new_units(self) -> list[int]:
        """The units that the newest snapshot does not name."""
        newest = self.newest_snapshot()
        named = newest.manifest.files if newest else {}
        return [ordinal for ordinal in self.committed() if f"sources/{self.part_path('sources', ordinal).name}" not in named]

    def snapshot(self, *, config: Config, fingerprint: str, counts: Mapping[str, int]) -> Artifact:
        """The snapshot of all units: the newest one if nothing was added since, otherwise a new one."""
        newest = self.newest_snapshot()
        added = self.new_units()
        if newest and not added:
            return newest
        files = dict(newest.manifest.files) if newest else {}
        for ordinal in added:
            files |= self.unit(ordinal)
        number = f"{int(newest.manifest_path.stem) + 1 if newest else 1:06d}"
        for name, data in self.workspace.records.items():
            publish_bytes(self.folder / "snapshots" / f"{number}.{name}", data)
        manifest = build_manifest(
            self.workspace,
            stage=STAGE,
            name=fingerprint,
            config=config,
            inputs={},
            counts=counts,
            files=files,
            records=self._records(newest, added, number),
        )
        path = self.folder / "snapshots" / f"{number}.json"
        publish_new(path, canonical_json(manifest.model_dump(mode="json")))
        return Artifact(self.folder, read_manifest(path), path)

    def _records(self, newest: Artifact | None, added: Sequence[int], number: str) -> dict[str, FileRecord]:
        """What accompanies a snapshot: all plans, the records of all units, and what the run brought along."""
        kept = newest.manifest.records if newest else {}
        records = {name: record for name, record in kept.items() if name.startswith(("plans/", "units/"))}
        brought = [self.folder / "snapshots" / f"{number}.{name}" for name in self.workspace.records]
        paths = (
            [plan.path.with_suffix(".json") for plan in self._plans()]
            + [self.unit_path(ordinal) for ordinal in added]
            + brought
        )
        records |= {self._spelled(plan.path): plan.record for plan in self._plans()}
        return records | {name: FileRecord.of(path) for path in paths if (name := self._spelled(path)) not in records}

    def _spelled(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()

    def sweep(self) -> int:
        """Remove what killed runs left half-made; the caller holds the dataset's lock."""
        unrecorded = [path for path in (self.folder / "plans").glob("*.parquet") if not path.with_suffix(".json").exists()]
        for path in unrecorded:
            path.unlink()
        return sweep(self.folder) + len(unrecorded)


class _Plan(NamedTuple):
    """A plan as its record describes it."""

    first: int
    """Its first unit."""
    num_units: int
    """How many units it has."""
    path: Path
    record: FileRecord
    """Of its table."""


class _Tar(contextlib.AbstractContextManager["_Tar"]):
    """A tar that appears whole when the block ends, if anything was added.

    As ``webdataset.TarWriter`` would write it, byte for byte reproducible; that one would bring all of torch into every worker.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stack = contextlib.ExitStack()
        self._tar: tarfile.TarFile | None = None
        self._file: _Hashed | None = None
        self._num_clips = 0
        self.record: FileRecord | None = None

    def add(self, member: Member) -> dict[str, Any]:
        """Append a clip; its row of the index."""
        description = canonical_json({**_json(member.row), "clip_id": member.clip_id})
        self._append(f"{member.clip_id}.json", description)
        row = {**member.row, "clip_id": member.clip_id, "slot": self._num_clips}
        row |= self._append(f"{member.clip_id}.mp4", member.video)
        if member.motion is not None:
            motion = self._append(f"{member.clip_id}.npy", member.motion)
            row |= {f"motion_{name}": value for name, value in motion.items()}
        self._num_clips += 1
        return row

    def _append(self, name: str, data: bytes) -> dict[str, int]:
        """Append a member; where it lies."""
        if self._tar is None or self._file is None:
            self._file = _Hashed(self._stack.enter_context(publishing(self._path)))
            self._tar = tarfile.TarFile(fileobj=self._file, mode="w", format=tarfile.USTAR_FORMAT)
        header = tarfile.TarInfo(name)
        header.size = len(data)
        header.mode = 0o444
        offset_bytes = self._file.tell() + tarfile.BLOCKSIZE
        self._tar.addfile(header, io.BytesIO(data))
        return {"offset_bytes": offset_bytes, "size_bytes": len(data), "crc32c": google_crc32c.value(data)}

    def __exit__(self, *fault: Any) -> None:
        if self._tar is not None and self._file is not None:
            with contextlib.nullcontext() if fault[0] is None else contextlib.suppress(OSError):
                self._tar.close()
            self.record = self._file.record()
        self._stack.__exit__(*fault)


class _Hashed(io.RawIOBase):
    """A file to write into that knows the sha256 of what was written."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__()
        self._file = file
        self._digest = hashlib.sha256()
        self._size_bytes = 0

    def write(self, data: Any) -> int:
        """Write all of ``data``."""
        self._digest.update(data)
        self._size_bytes += len(data)
        return self._file.write(data)

    def writable(self) -> bool:
        """It is."""
        return True

    def tell(self) -> int:
        """How much was written."""
        return self._size_bytes

    def record(self) -> FileRecord:
        """What a manifest says of the file."""
        return FileRecord(size_bytes=self._size_bytes, sha256=self._digest.hexdigest())


def _record(data: bytes) -> FileRecord:
    return FileRecord(size_bytes=len(data), sha256=sha256_bytes(data))


def _sealed(record: Mapping[str, Any]) -> bytes:
    """A record with the digest of its own content."""
    plain = {**record, "files": {name: found.model_dump() for name, found in record["files"].items()}}
    return canonical_json({**plain, "sha256": sha256_bytes(canonical_json(plain))})


def _unsealed(path: Path) -> dict[str, Any]:
    """A record whose digest is right, with its files.

    Raises:
        ArtifactDamaged: it is not what was written.
    """
    try:
        record: dict[str, Any] = json.loads(path.read_bytes())
        whole = record.pop("sha256") == sha256_bytes(canonical_json(record))
        record["files"] = {name: FileRecord.model_validate(found) for name, found in record["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactDamaged(f"{path}: not a record; delete it and run `lvmae shard` again") from error
    if not whole:
        raise ArtifactDamaged(f"{path}: not the record that was written there; delete it and run `lvmae shard` again")
    return record


def _json(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row as JSON values: named tuples as objects."""
    boxes = [{**box._asdict(), "labels": list(box.labels)} for box in row["boxes"]]
    labels = {column: list(values) for column, values in row["labels"].items()}
    return {**row, "boxes": boxes, "labels": labels}
