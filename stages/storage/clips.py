"""Clips: WebDataset tars, the Parquet tables that make their members exist, plans, and snapshots.

``clips/<dataset>/`` only grows. A plan fixes which sources go into which shard before any is decoded; a shard's index part,
written last, makes its clips exist; a snapshot names all parts and shards and is what a run pins.
"""

import dataclasses
import io
import json
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import google_crc32c
import pyarrow as pa
import pyarrow.parquet as pq
import webdataset

from models.config import Config
from stages.errors import ArtifactDamaged
from stages.storage.artifact import Artifact, FileRecord, build_manifest, read_manifest
from stages.storage.publish import canonical_json, publish_bytes, publish_new, publishing, sweep
from stages.storage.workspace import Workspace

STAGE = "shard"

INDEX_SCHEMA = pa.schema(
    [
        ("clip_id", pa.string()),
        ("source_id", pa.string()),
        ("key", pa.string()),
        ("start_frame", pa.int32()),
        ("num_frames", pa.int32()),
        ("fps", pa.float64()),
        ("width_px", pa.int32()),
        ("height_px", pa.int32()),
        ("ordinal", pa.int32()),
        ("slot", pa.int32()),
        ("offset_bytes", pa.int64()),
        ("size_bytes", pa.int64()),
        ("crc32c", pa.uint32()),
        ("labels", pa.map_(pa.string(), pa.string())),
    ]
)
SOURCES_SCHEMA = pa.schema(
    [
        ("source_id", pa.string()),
        ("key", pa.string()),
        ("size_bytes", pa.int64()),
        ("status", pa.string()),
        ("num_clips", pa.int32()),
        ("num_frames", pa.int32()),
        ("ordinal", pa.int32()),
    ]
)
QUARANTINE_SCHEMA = pa.schema(
    [
        ("source_id", pa.string()),
        ("key", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("ordinal", pa.int32()),
    ]
)


@dataclasses.dataclass(frozen=True)
class Clip:
    """One clip: a row of the index."""

    clip_id: str
    source_id: str
    key: str
    """The source's name below its reader's root."""
    start_frame: int
    num_frames: int
    """Recorded frames; a short source has fewer than the recipe's clip length."""
    fps: float
    width_px: int
    height_px: int
    ordinal: int
    """The number of the shard that holds it."""
    slot: int
    """Its position within the shard."""
    offset_bytes: int
    size_bytes: int
    crc32c: int
    labels: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Member:
    """A clip that waits to be written: its video and its row without the place it will get."""

    clip_id: str
    video: bytes
    row: Mapping[str, Any]


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

    def shard_path(self, ordinal: int) -> Path:
        """The tar of one shard."""
        return self.folder / "shards" / f"{self.name}-{ordinal:06d}.tar"

    def part_path(self, table: str, ordinal: int) -> Path:
        """One shard's part of a table: ``index``, ``sources`` or ``quarantine``."""
        return self.folder / table / f"part-{ordinal:06d}.parquet"

    def is_committed(self, ordinal: int) -> bool:
        """Whether a shard's clips exist."""
        return self.part_path("index", ordinal).exists()

    def plans(self) -> list[dict[str, Any]]:
        """Every plan so far, oldest first."""
        return [json.loads(path.read_bytes()) for path in sorted((self.folder / "plans").glob("[0-9]*.json"))]

    def add_plan(self, plan: Mapping[str, Any]) -> None:
        """Record a plan under the next number."""
        number = len(self.plans()) + 1
        if not publish_new(self.folder / "plans" / f"{number:06d}.json", canonical_json(plan)):
            raise ArtifactDamaged(f"{self.folder}/plans/{number:06d}.json appeared while this run held the dataset")

    def write_shard(
        self,
        ordinal: int,
        members: Sequence[Member],
        *,
        sources: Sequence[Mapping[str, Any]],
        quarantine: Sequence[Mapping[str, Any]],
    ) -> None:
        """Publish one shard: the tar, then its source and quarantine rows, and last the index rows that make it exist."""
        rows = self._write_tar(ordinal, members) if members else []
        write_table(
            self.part_path("quarantine", ordinal), [{**row, "ordinal": ordinal} for row in quarantine], QUARANTINE_SCHEMA
        )
        write_table(self.part_path("sources", ordinal), [{**row, "ordinal": ordinal} for row in sources], SOURCES_SCHEMA)
        write_table(self.part_path("index", ordinal), rows, INDEX_SCHEMA)

    def _write_tar(self, ordinal: int, members: Sequence[Member]) -> list[dict[str, Any]]:
        path = self.shard_path(ordinal)
        with publishing(path) as file:
            writer = webdataset.TarWriter(file, mtime=0, encoder=False)
            for member in members:
                description = canonical_json({**member.row, "clip_id": member.clip_id})
                writer.write({"__key__": member.clip_id, "json": description, "mp4": member.video})
            writer.close()
        with tarfile.open(path) as tar:
            offsets = {info.name: info.offset_data for info in tar if info.name.endswith(".mp4")}
        return [
            {
                **member.row,
                "clip_id": member.clip_id,
                "ordinal": ordinal,
                "slot": slot,
                "offset_bytes": offsets[f"{member.clip_id}.mp4"],
                "size_bytes": len(member.video),
                "crc32c": google_crc32c.value(member.video),
            }
            for slot, member in enumerate(members)
        ]

    def rows(self, table: str) -> list[dict[str, Any]]:
        """All committed rows of ``sources`` or ``quarantine``, by shard."""
        committed = sorted((self.folder / "index").glob("part-*.parquet"))
        return [row for part in committed for row in read_table(self.folder / table / part.name)]

    def snapshots(self) -> list[Artifact]:
        """Every snapshot, oldest first; the newest holds all that was committed when it was made."""
        paths = sorted((self.folder / "snapshots").glob("[0-9]*.json"))
        return [Artifact(self.folder, read_manifest(path), path) for path in paths]

    def snapshot(self, *, config: Config, fingerprint: str, counts: Mapping[str, int]) -> Artifact:
        """The snapshot of all committed shards: the newest one if nothing was added since, otherwise a new one."""
        earlier = self.snapshots()
        known = dict(earlier[-1].manifest.files) if earlier else {}
        named = [path for path in self._committed_files() if path.is_file()]
        spelled = {path.relative_to(self.folder).as_posix(): path for path in named}
        files = {name: known.get(name) or FileRecord.of(path) for name, path in spelled.items()}
        if earlier and files == known:
            return earlier[-1]
        number = f"{len(earlier) + 1:06d}"
        records = {f"snapshots/{number}.{name}": data for name, data in self.workspace.records.items()}
        for name, data in records.items():
            publish_bytes(self.folder / name, data)
        manifest = build_manifest(
            self.workspace,
            stage=STAGE,
            name=fingerprint,
            config=config,
            inputs={},
            counts=counts,
            files=files,
            records={name: FileRecord.of(self.folder / name) for name in records},
        )
        path = self.folder / "snapshots" / f"{number}.json"
        publish_new(path, canonical_json(manifest.model_dump(mode="json")))
        return Artifact(self.folder, read_manifest(path), path)

    def _committed_files(self) -> Iterable[Path]:
        for index in sorted((self.folder / "index").glob("part-*.parquet")):
            ordinal = int(index.stem.removeprefix("part-"))
            yield from (
                index,
                self.part_path("sources", ordinal),
                self.part_path("quarantine", ordinal),
                self.shard_path(ordinal),
            )

    def sweep(self) -> int:
        """Remove the temporary files of killed runs; the caller holds the dataset's lock."""
        return sweep(self.folder)


def clips(snapshot: Artifact) -> list[Clip]:
    """The clips of a snapshot, in shard and slot order.

    Raises:
        ArtifactDamaged: an index part is not the one that the snapshot names.
    """
    parts = [name for name in snapshot.manifest.files if name.startswith("index/")]
    rows = [row for name in sorted(parts) for row in read_table(snapshot.verified(name))]
    return [Clip(**{**row, "labels": dict(row["labels"])}) for row in rows]


def read_clip(snapshot: Artifact, clip: Clip) -> bytes:
    """The encoded video of one clip, by a ranged read of its tar.

    Raises:
        ArtifactDamaged: the tar is gone, or the bytes are not those that were indexed.
    """
    path = snapshot.folder / "shards" / f"{snapshot.folder.name}-{clip.ordinal:06d}.tar"
    try:
        with path.open("rb") as file:
            file.seek(clip.offset_bytes)
            data = file.read(clip.size_bytes)
    except FileNotFoundError as error:
        raise ArtifactDamaged(f"{path}: missing, although {snapshot.manifest_path} names it; restore it from a copy") from error
    if len(data) != clip.size_bytes or google_crc32c.value(data) != clip.crc32c:
        raise ArtifactDamaged(
            f"{path}: clip {clip.clip_id} at byte {clip.offset_bytes} is damaged (crc32c differs); run `lvmae verify`"
        )
    return data


def write_table(path: Path, rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> None:
    """Publish rows as one Parquet file with page checksums."""
    plain = [{**row, "labels": sorted(row["labels"].items())} if "labels" in row else dict(row) for row in rows]
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(plain, schema=schema), buffer, compression="zstd", write_page_checksum=True)
    publish_bytes(path, buffer.getvalue())


def read_table(path: Path) -> list[dict[str, Any]]:
    """The rows of one Parquet file, page checksums verified."""
    rows: list[dict[str, Any]] = pq.read_table(path, page_checksum_verification=True).to_pylist()
    return rows
