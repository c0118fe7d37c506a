"""Where everything lies below one root, and what accompanies a run: its monitor and its records."""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path

from stages.errors import ArtifactBusy, ConfigError
from stages.fan_out import FanOut, over_processes
from stages.progress import Monitor, Silent
from stages.storage import locks
from stages.storage.publish import make_folder

FOLDERS = {
    "shard": "clips",
    "tokenizer": "tokenizers",
    "precompute": "targets",
    "pretrain": "pretrain",
    "evaluate": "evaluate",
    "export": "export",
}
"""The folder of each stage's artifacts below the root."""


@dataclasses.dataclass(frozen=True)
class Workspace:
    """A root folder with the artifacts of all stages, and what a run brings along.

    Args:
        root: the folder; created when the first stage writes.
        monitor: told about progress and measurements.
        records: files that are laid beside every artifact made in this run, such as the resolved recipe: named and
            verified by the manifest, but no part of the artifact's digest.
        fan_out: where independent pieces of a stage's work run.
    """

    root: Path
    monitor: Monitor = dataclasses.field(default_factory=Silent)
    records: Mapping[str, bytes] = dataclasses.field(default_factory=dict)
    fan_out: FanOut = over_processes

    @classmethod
    def at(
        cls,
        location: str,
        *,
        monitor: Monitor | None = None,
        records: Mapping[str, bytes] | None = None,
        fan_out: FanOut = over_processes,
    ) -> "Workspace":
        """The workspace at a path or a ``file://`` URL.

        Raises:
            ConfigError: the URL has another scheme: object stores are not supported yet.
        """
        scheme, separator, rest = location.partition("://")
        if separator and scheme != "file":
            raise ConfigError(
                f"root {location!r}: only local folders are supported yet, not {scheme}://; give a path or a file:// URL"
            )
        root = Path(rest if separator else location).expanduser().absolute()
        return cls(root=root, monitor=monitor or Silent(), records=records or {}, fan_out=fan_out)

    def stage_folder(self, stage: str) -> Path:
        """The folder that holds all artifacts of a stage."""
        return self.root / FOLDERS[stage]

    def artifact_folder(self, stage: str, name: str) -> Path:
        """The folder of one artifact: a fingerprint, or for clips the dataset's name."""
        return self.stage_folder(stage) / name

    def sources_folder(self, name: str) -> Path:
        """The folder of the videos that a generating reader made itself."""
        return self.root / "sources" / name

    def relative(self, path: Path) -> str:
        """``path`` as spelled from the root, for records and messages."""
        return path.relative_to(self.root).as_posix()

    def lock(self, stage: str, name: str) -> contextlib.AbstractContextManager[None]:
        """Hold an artifact's folder against other live runs; the kernel frees it when a run is killed, and no byte is written.

        Raises:
            ArtifactBusy: another live run holds it.
        """
        return self.hold(self.artifact_folder(stage, name))

    @contextlib.contextmanager
    def hold(self, folder: Path) -> Iterator[None]:
        """Hold any folder below the root against other live runs.

        Raises:
            ArtifactBusy: another live run holds it.
        """
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(_alone(folder))
            except locks.Held as error:
                raise ArtifactBusy(
                    f"{self.relative(folder)}: another run is making it right now; wait for it to finish, then run again"
                ) from error
            yield


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Have a folder alone, made again if it is collected before it is locked."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locks.exclusive(make_folder(folder)))
        except FileNotFoundError:
            stack.enter_context(locks.exclusive(make_folder(folder)))
        yield
