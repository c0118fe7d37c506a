"""Tars of other makers in the form of WebDataset, such as video2dataset's: videos are read where they lie in the tar."""

import tarfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import Any, BinaryIO, ClassVar, Literal, NamedTuple, cast

from pydantic import Field

from stages.errors import ConfigError, SourceMissing
from stages.places import Place, spelled
from stages.readers import Labels, ReaderConfig, Source, plain_name
from stages.readers._annotations import is_value, labelled
from stages.readers._files import SUFFIXES, exists, opened, tree
from stages.readers._tables import Where, inner, parsed
from stages.storage.workspace import Workspace

JSON_SUFFIX = ".json"
TEXT_COLUMNS: Mapping[str, str] = MappingProxyType({".txt": "caption", ".cls": "class"})
"""Columns that members of one text become, by their suffix."""
MAX_LABEL_BYTES = 16 << 20
"""Of one member with labels, and of one header with all that extends it."""

_REGULAR = (tarfile.REGTYPE, tarfile.AREGTYPE)
_SPARSE = "GNU.sparse"
_PIECE_BYTES = 1 << 20
_MAGIC: Mapping[bytes, str] = MappingProxyType(
    {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"\x04\x22\x4d\x18": "lz4"}
)


class Config(ReaderConfig):
    """WebDataset tars: every member that is a video, labelled by the members of the same sample.

    Of a sample ``x`` are read ``x.json`` (an object; its texts, numbers and lists of these are labels), ``x.txt`` (the label
    ``caption``) and ``x.cls`` (the label ``class``). Other members are left alone, and nothing is extracted or unpickled.
    """

    EXECUTION: ClassVar[frozenset[str]] = frozenset({"path"})

    name: Literal["webdataset"] = "webdataset"
    """The name in a recipe."""

    path: str
    """A tar, a folder of tars, a prefix such as ``s3://bucket/tars``, or a glob in either."""

    columns: tuple[str, ...] | None = None
    """Which labels to keep; null keeps all."""

    suffixes: tuple[str, ...] = Field(default=SUFFIXES, min_length=1)
    """Endings of the names of videos, in lower case."""

    def dataset_name(self) -> str:
        """The name of the folder of the tars, or of the tar."""
        return plain_name(tree(self.path).name.removesuffix(".tar"))

    def sources(self, workspace: Workspace) -> Iterable[Source]:
        """The videos of all tars, called ``<tar>/<member>``.

        Raises:
            SourceMissing: there is no tar, or no video in any.
            ConfigError: a tar is cut, damaged or compressed, or a member is no regular file or has a name that is refused.
        """
        amount = 0
        for name, place, stamp in self._tars():
            for source in self._videos(name, place.url, stamp):
                amount += 1
                yield source
        if not amount:
            raise SourceMissing(
                f"{self.path}: holds no tar with a video, that is with a member ending in {', '.join(self.suffixes)}"
            )

    def _tars(self) -> Iterator[tuple[str, Place, str]]:
        if exists(self.path):
            whole = tree(self.path)
            return iter([(whole.name, Place(whole.root), "")])
        return (file for file in tree(self.path).files() if ".tar" in PurePosixPath(file[0]).suffixes)

    def _videos(self, tar: str, url: str, stamp: str) -> Iterator[Source]:
        videos, labels = [], dict[str, dict[str, Any]]()
        with opened(url) as file:
            for member in members(cast(BinaryIO, file), url):
                if member.name.lower().endswith(self.suffixes):
                    videos.append(member)
                elif columns := _columns(member, cast(BinaryIO, file)):
                    labels.setdefault(member.sample, {}).update(columns)
        for member in videos:
            place = Place(url, member.offset_bytes, member.size_bytes)
            version = f"{stamp}:{member.offset_bytes}:{member.size_bytes}" if stamp else ""
            yield Source(f"{tar}/{member.name}", place, self._kept(labels.get(member.sample, {})), stamp=version)

    def _kept(self, columns: Mapping[str, Any]) -> Labels:
        return labelled({name: value for name, value in columns.items() if self.columns is None or name in self.columns})


class Member(NamedTuple):
    """A regular file in a tar."""

    where: Where
    name: str
    offset_bytes: int
    """Of its first byte in the tar."""
    size_bytes: int

    @property
    def sample(self) -> str:
        """What members of one sample have in common: the name up to the first dot of its last part."""
        path = PurePosixPath(self.name)
        return str(path.with_name(path.name.partition(".")[0] or path.name))

    @property
    def suffix(self) -> str:
        """The rest of its name, in lower case."""
        return self.name[len(self.sample) :].lower()


def members(file: BinaryIO, url: str) -> Iterator[Member]:
    """Regular files of an uncompressed tar, in its order; directories are passed over.

    Raises:
        ConfigError: the tar is cut, damaged or compressed, or has a member that is no regular file, that leads out of the tar,
            or that comes twice.
    """
    _check_plain(file, url)
    size_bytes, names = file.seek(0, 2), set()
    file.seek(0)
    try:
        with tarfile.open(fileobj=cast(BinaryIO, _Capped(file)), mode="r:") as tar:
            while (info := tar.next()) is not None:
                if info.isdir():
                    continue
                member = _member(info, url)
                if member.offset_bytes + member.size_bytes > size_bytes:
                    raise member.where.wrong("ends after the tar does; the tar was cut: copy it again")
                if member.name in names:
                    raise member.where.wrong("comes a second time; make the tar again without one of the two")
                names.add(member.name)
                yield member
            _check_end(file, tar.offset, url)
    except (tarfile.TarError, ValueError, OverflowError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{url}: is not a whole tar: {error}; copy it again") from error


class _Capped:
    """A file of which no header can make ``tarfile`` read much at once."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int) -> bytes:
        if not 0 <= size <= MAX_LABEL_BYTES:
            raise tarfile.ReadError(f"a header claims {size} bytes, over {MAX_LABEL_BYTES}")
        return self._file.read(size)


def _member(info: tarfile.TarInfo, url: str) -> Member:
    name = spelled(info.name)
    where = Where(url, f"member {name!r}")
    if info.type not in _REGULAR or info.size < 0 or any(key.startswith(_SPARSE) for key in info.pax_headers):
        raise where.wrong(f"is no plain file (type {info.type.decode('latin-1')!r}); make the tar again with plain files only")
    return Member(where, inner(name, where), info.offset_data, info.size)


def _check_plain(file: BinaryIO, url: str) -> None:
    head = file.read(8)
    for magic, kind in _MAGIC.items():
        if head.startswith(magic):
            raise ConfigError(f"{url}: is compressed with {kind}, so no member can be read alone; decompress it first")


def _check_end(file: BinaryIO, offset_bytes: int, url: str) -> None:
    """A whole tar ends in zeros, and ``tarfile`` takes any end and any damaged header for its end."""
    file.seek(offset_bytes)
    piece = file.read(tarfile.BLOCKSIZE)
    if len(piece) < tarfile.BLOCKSIZE:
        raise ConfigError(f"{url}: lacks the zeros that end a tar at byte {offset_bytes}; it was cut: copy it again")
    while piece:
        if any(piece):
            raise ConfigError(f"{url}: holds neither a member nor its end after byte {offset_bytes}; copy it again")
        piece = file.read(_PIECE_BYTES)


def _columns(member: Member, file: BinaryIO) -> Mapping[str, Any]:
    """The labels that a member holds; none for a member of another kind."""
    if member.suffix != JSON_SUFFIX and member.suffix not in TEXT_COLUMNS:
        return {}
    if member.size_bytes > MAX_LABEL_BYTES:
        raise member.where.wrong(f"holds labels, and has {member.size_bytes} bytes of at most {MAX_LABEL_BYTES}; shorten it")
    back = file.tell()
    file.seek(member.offset_bytes)
    data = file.read(member.size_bytes)
    file.seek(back)
    if member.suffix != JSON_SUFFIX:
        return {TEXT_COLUMNS[member.suffix]: _text(data, member.where)}
    fields = parsed(data, *member.where)
    if not isinstance(fields, dict):
        raise member.where.wrong("is not a JSON object; make the tar again with one")
    return {name: value for name, value in fields.items() if is_value(value)}


def _text(data: bytes, where: Where) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise where.wrong(f"is not UTF-8 ({error.reason}); make the tar again") from error
