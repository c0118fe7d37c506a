"""Places: where the bytes of a source lie, be it a local file, an object of a store, or a member of a tar in either.

What goes wrong is told apart: bytes that are gone or cannot become a video are a ``MediaError`` and go to quarantine; a store
that did not answer, after its own retries, is an ``OSError``, and running again is the cure; a place that nothing here can read
is a ``ConfigError``. Credentials and endpoints come from the environment, as each store's client reads them.
"""

import contextlib
import datetime
import errno
import functools
import hashlib
import io
import os
import re
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple

import fsspec

from stages.confidential import refuse_url
from stages.errors import ConfigError, MediaError, Reason, SourceMissing

PIECE_BYTES = 4 << 20
"""How much of a source is read at a time."""

STORES = {"s3": "lvmae[s3]", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs", "memory": "fsspec"}
"""Schemes that are read, and what to install for them."""

_SCHEME = re.compile(r"([A-Za-z0-9+.:-]*?)://(.*)", re.DOTALL)
_CHAIN = re.compile(r"::[A-Za-z0-9+.-]*://")
_SUFFIX = re.compile(r"\.[A-Za-z0-9]{1,8}")
_ESCAPE_LIKE = re.compile(rb"\\(?=x[0-9a-f]{2})")
_VERSIONS = ("ETag", "generation", "etag", "created")
"""What the stores call the version of an object: S3, Google, Azure, and memory."""

_OF_THE_FILE = frozenset({errno.EACCES, errno.EPERM, errno.EIO, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP})
"""System errors that belong to one file; any other is the machine's."""

_NOTHING: Mapping[str, Any] = {}
_STORE_LOCK = threading.Lock()

Listing = Iterator[tuple[str, "Place", str]]


class Place(NamedTuple):
    """Where the bytes of a source lie."""

    url: str
    """An absolute local path, or an URL of a store such as ``s3://bucket/name``."""
    offset_bytes: int = 0
    """Where they begin, for a member of a tar."""
    size_bytes: int = -1
    """How many they are; -1 means all of them."""


def place_of(location: str | Path) -> Place:
    """The place of a whole file or object, given as a path, as a ``file://`` URL, or as the URL of a store.

    Raises:
        ConfigError: it is an URL that is not read.
    """
    if isinstance(location, str) and is_remote(location):
        return Place(_store_url(location))
    return Place(str(Path(os.path.expanduser(str(location).removeprefix("file://"))).absolute()))


def is_remote(url: str) -> bool:
    """Whether this is an URL, and not a local path or the ``file://`` URL of one."""
    return bool(_SCHEME.match(url)) and not url.startswith("file://")


def stamp(place: Place) -> str:
    """What changes whenever the bytes may have; empty when nothing is there to be looked at.

    Raises:
        OSError: the store does not answer.
    """
    if is_remote(place.url):
        try:
            return _version(_info(place))
        except MediaError:
            return ""
    try:
        status = os.lstat(place.url)
    except OSError:
        return ""
    return f"{status.st_size}-{status.st_mtime_ns}-{status.st_ctime_ns}-{status.st_ino}"


def local_size(place: Place) -> int:
    """Bytes of a local file as it lies there, 0 when there is none."""
    try:
        return os.lstat(place.url).st_size
    except OSError:
        return 0


def check(place: Place) -> None:
    """Nothing, when there are bytes to read in a regular file or an object.

    Raises:
        MediaError: there are none; or it is a link: what a link points at may change under its name.
        OSError: the store does not answer.
    """
    if _window_bytes(place, _size_bytes(place)) == 0:
        raise MediaError(Reason.EMPTY, "0 bytes")


def digest(place: Place) -> tuple[str, int]:
    """The sha256 of a place's bytes in hex, and how many they are; read in pieces.

    Raises:
        MediaError: they cannot be read.
        OSError: the store does not answer.
    """
    sha256, size_bytes = hashlib.sha256(), 0
    with opened(place) as file:
        while piece := file.read(PIECE_BYTES):
            sha256.update(piece)
            size_bytes += len(piece)
    return sha256.hexdigest(), size_bytes


@contextlib.contextmanager
def opened(place: Place) -> Iterator[BinaryIO]:
    """A place's bytes as a file that can be read and sought in; a member of a tar begins at 0.

    Raises:
        MediaError: they cannot be read; reading raises it, too.
        OSError: the store does not answer.
    """
    with contextlib.ExitStack() as stack:
        if is_remote(place.url):
            file, size_bytes = _open_object(place)
            stack.callback(file.close)
        else:
            file, size_bytes = _open_file(place)
            stack.enter_context(file)
        window = _Window(file, place, size_bytes=_window_bytes(place, size_bytes))
        yield stack.enter_context(io.BufferedReader(window))


@contextlib.contextmanager
def local_copy(place: Place, scratch: Path, *, max_bytes: int, name: str = "") -> Iterator[Path]:
    """A local file with a place's bytes: a whole local file is itself, anything else is copied, and removed afterwards.

    Args:
        place: where the bytes lie.
        scratch: a folder of the caller's for the copy.
        max_bytes: how large a copy may be.
        name: what the source is called: the copy ends like it, since that can decide how a video is understood. Empty takes the
            object's own name.

    Raises:
        MediaError: the bytes cannot be read, or are more than ``max_bytes``.
        OSError: the store does not answer, or the copy cannot be written.
    """
    if not is_remote(place.url) and place.offset_bytes == 0 and place.size_bytes < 0:
        yield Path(place.url)
        return
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        path = Path(folder) / f"source{_suffix(name or ('' if place.size_bytes >= 0 else place.url))}"
        with opened(place) as source, path.open("wb") as copy:
            size_bytes = source.seek(0, os.SEEK_END)
            if size_bytes > max_bytes:
                raise MediaError(Reason.LIMIT, f"{size_bytes} bytes to copy; at most {max_bytes} are copied")
            source.seek(0)
            while piece := source.read(PIECE_BYTES):
                copy.write(piece)
        yield path


def listing(url: str) -> Listing:
    """Everything below a folder or a prefix: its name from there on, its place, and its stamp if the listing tells it.

    Names that start with a dot are left out, with what is below them. Whatever is not a folder is listed, pipes and links too:
    ``check`` says what is wrong with it. Links to folders are not followed. Names come in order, the same wherever they lie.

    Args:
        url: a folder, as ``place_of`` takes it.

    Raises:
        SourceMissing: there is no such folder or store.
        ConfigError: the store does not let its content be listed.
        OSError: a folder cannot be listed: an incomplete listing would pass for one of fewer sources.
    """
    root = place_of(url).url
    return _objects(root) if is_remote(root) else _files(root)


def spelled(path: str | Path) -> str:
    """A relative path as text that any table can hold: bytes that are no UTF-8 become escapes, one spelling per path."""
    return _ESCAPE_LIKE.sub(rb"\\x5c", os.fsencode(path)).decode("utf-8", "backslashreplace")


class _Window(io.RawIOBase):
    """The bytes of a place in an open file: what lies before and after them is not there, and faults are told apart."""

    def __init__(self, file: Any, place: Place, *, size_bytes: int) -> None:
        self._file, self._place, self._size_bytes = file, place, size_bytes
        self._at = 0

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a byte, counted as in any file."""
        self._at = max(0, offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size_bytes}[whence])
        return self._at

    def tell(self) -> int:
        """Where the next byte is read."""
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Read the next bytes: fewer only at the end."""
        wanted = min(len(buffer), self._size_bytes - self._at)
        if wanted <= 0:
            return 0
        with _faults(self._place):
            self._file.seek(self._place.offset_bytes + self._at)
            data = self._file.read(wanted)
        if not data:
            raise MediaError(
                Reason.CHANGED, f"{self._size_bytes} bytes when it was opened, and only {self._at} when it was read"
            )
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def _store_url(url: str) -> str:
    """An URL that was given, when it is one object or prefix of a store that is read."""
    refuse_url(url)
    scheme, _, rest = url.partition("://")
    if "::" in scheme or _CHAIN.search(rest):
        raise ConfigError(f"{url}: places within places, spelled with '::', are not read; name the file or the object itself")
    if scheme not in STORES:
        known = ", ".join(f"{name}://" for name in STORES)
        raise ConfigError(f"{url}: {scheme}:// is not read; copy it to a local folder or to one of {known}")
    if not rest.strip("/"):
        raise ConfigError(f"{url}: names no bucket; give {scheme}://bucket/prefix")
    return url


def _resolve(url: str) -> tuple[str, Any, str]:
    """Scheme, client, and the name by which the client knows an URL. Nothing in a name is taken for another place."""
    scheme = url.partition("://")[0]
    with _STORE_LOCK:
        client = _client(scheme, os.getpid())
    return scheme, client, str(client._strip_protocol(url))


@functools.lru_cache
def _client(scheme: str, process: int) -> Any:
    """The client of a store: one for all threads of a process, which remembers no listing."""
    try:
        return fsspec.filesystem(scheme, use_listings_cache=False, skip_instance_cache=True)
    except ImportError as error:
        package = STORES[scheme]
        raise ConfigError(f"{scheme}:// needs a package that is not installed: pip install '{package}' ({error})") from error


def _info(place: Place) -> Mapping[str, Any]:
    """What the store says of an object, asked anew."""
    _, client, name = _resolve(place.url)
    with _faults(place):
        info: Mapping[str, Any] = client.info(name)
    return info


def _version(info: Mapping[str, Any]) -> str:
    version = next((info[name] for name in _VERSIONS if info.get(name)), "")
    if isinstance(version, datetime.datetime):  # a listing and a single question may tell it in different kinds
        version = version.timestamp()
    return f"{_object_bytes(info)}-{version}".replace('"', "")


def _size_bytes(place: Place) -> int:
    """Of the whole file or object."""
    if is_remote(place.url):
        return _object_bytes(_info(place))
    with _faults(place):
        return _file_bytes(os.lstat(place.url))


def _object_bytes(info: Mapping[str, Any]) -> int:
    if info["type"] != "file":
        raise MediaError(Reason.NOT_A_FILE, f"a {info['type']}, not an object")
    return int(info["size"])


def _file_bytes(status: os.stat_result) -> int:
    if not stat.S_ISREG(status.st_mode):
        raise MediaError(Reason.NOT_A_FILE, f"an entry of kind {stat.filemode(status.st_mode)[0]!r}, not a regular file")
    return status.st_size


def _window_bytes(place: Place, size_bytes: int) -> int:
    """How many bytes are at a place in a file of ``size_bytes``."""
    if place.size_bytes < 0:
        return max(0, size_bytes - place.offset_bytes)
    if place.offset_bytes + place.size_bytes > size_bytes:
        missing = place.offset_bytes + place.size_bytes - size_bytes
        raise MediaError(Reason.TRUNCATED, f"a member of {place.size_bytes} bytes, of which the tar lacks {missing}")
    return place.size_bytes


def _open_file(place: Place) -> tuple[BinaryIO, int]:
    """A regular file and its size. It is opened without waiting, so that a pipe that took its name cannot hold us up."""
    with _faults(place):
        _file_bytes(os.lstat(place.url))
        descriptor = os.open(place.url, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    file = os.fdopen(descriptor, "rb", buffering=0)
    try:
        return file, _file_bytes(os.fstat(file.fileno()))
    except MediaError:
        file.close()
        raise


def _open_object(place: Place) -> tuple[Any, int]:
    """An object and its size, read by ranges."""
    _, client, name = _resolve(place.url)
    with _faults(place):
        file = client.open(name, "rb", block_size=PIECE_BYTES, cache_type="readahead")
        return file, _object_bytes(getattr(file, "details", None) or client.info(name))


@contextlib.contextmanager
def _faults(place: Place) -> Iterator[None]:
    """Whatever fails inside, as the fault of a source or of the machine or store it is on."""
    remote = is_remote(place.url)
    try:
        yield
    except MediaError:
        raise
    except FileNotFoundError as error:
        raise MediaError(Reason.MISSING, f"there is no such {'object' if remote else 'file'}") from error
    except PermissionError as error:
        raise MediaError(Reason.UNREADABLE, f"cannot be read: {error.strerror or error}") from error
    except OSError as error:
        if not remote and error.errno in _OF_THE_FILE:
            raise MediaError(Reason.UNREADABLE, f"cannot be read: {error.strerror}") from error
        if _has_expired(error):
            raise MediaError(Reason.CHANGED, "changed while it was read") from error
        raise OSError(error.errno or errno.EIO, f"{error.strerror or error}; run again", place.url) from error
    except Exception as error:  # a client's own kinds, such as botocore's, which are no OSError
        kind = type(error).__name__
        if "Credentials" in kind:
            raise ConfigError(
                f"{place.url}: {error}; credentials come from the environment, for S3 AWS_ACCESS_KEY_ID and others"
            ) from error
        raise OSError(errno.EIO, f"{kind}: {error}; run again", place.url) from error


def _has_expired(error: OSError) -> bool:
    """Whether a store says that the object is not the one that was opened."""
    return type(error).__name__ == "FileExpired"


def _suffix(name: str) -> str:
    suffix = PurePosixPath(name).suffix
    return suffix if _SUFFIX.fullmatch(suffix) else ""


def _files(root: str) -> Listing:
    for name, _ in _below(functools.partial(_local_entries, root)):
        yield spelled(name), Place(os.path.join(root, name)), ""


def _below(entries: Callable[[str], list[tuple[str, Mapping[str, Any]]]]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Everything that is no folder, in the order of whole names, as a store of the kind of S3 lists them.

    Args:
        entries: the content of one folder, given its name from the root on; names of folders end with a slash.
    """
    open_folders = [("", iter(sorted(entries(""), key=_name)))]
    while open_folders:
        prefix, content = open_folders[-1]
        name, info = next(content, ("", {}))
        if not name:
            open_folders.pop()
        elif name.endswith("/"):
            open_folders.append((prefix + name, iter(sorted(entries(prefix + name), key=_name))))
        else:
            yield prefix + name, info


def _name(entry: tuple[str, Mapping[str, Any]]) -> str:
    return entry[0]


def _local_entries(root: str, folder: str) -> list[tuple[str, Mapping[str, Any]]]:
    try:
        with os.scandir(os.path.join(root, folder)) as entries:
            visible = (entry for entry in entries if not entry.name.startswith("."))
            return [(f"{entry.name}/" if entry.is_dir(follow_symlinks=False) else entry.name, _NOTHING) for entry in visible]
    except (FileNotFoundError, NotADirectoryError) as error:
        if not folder:
            raise SourceMissing(f"{root}: no such folder; give the folder that holds the videos") from error
        return []  # it went while the others were listed, and what was in it with it


def _objects(url: str) -> Listing:
    scheme, client, root = _resolve(url)
    found = _pages(client, root, url) if scheme == "s3" else _below(functools.partial(_remote_entries, client, root, url))
    try:
        for name, info in found:
            if not any(part.startswith(".") for part in name.split("/")):
                yield name, Place(f"{scheme}://{root}/{name}"), _version(info)
    except MediaError as error:
        if error.reason == Reason.MISSING:
            raise SourceMissing(f"{url}: no such bucket or folder; give the one that holds the videos") from error
        raise ConfigError(f"{url}: cannot be listed: {error.detail}; check its credentials in the environment") from error


def _pages(client: Any, root: str, url: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """S3's objects page by page: the client itself would hold all of them."""
    bucket, key, _ = client.split_path(root)
    prefix = f"{key}/" if key else ""
    follow: dict[str, str] = {}
    while True:
        with _faults(Place(url)):
            page = client.call_s3("list_objects_v2", Bucket=bucket, Prefix=prefix, **follow)
        for each in page.get("Contents", ()):
            if not each["Key"].endswith("/"):  # a marker, for programs that want folders
                yield each["Key"].removeprefix(prefix), {"type": "file", "size": each["Size"], "ETag": each["ETag"]}
        if not page.get("IsTruncated"):
            return
        follow = {"ContinuationToken": page["NextContinuationToken"]}


def _remote_entries(client: Any, root: str, url: str, folder: str) -> list[tuple[str, Mapping[str, Any]]]:
    place = f"{root}/{folder}".rstrip("/")
    with _faults(Place(url)):
        found = client.ls(place, detail=True)
    below = [(entry["name"].rstrip("/").removeprefix(f"{place}/"), entry) for entry in found]
    return [(f"{name}/" if entry["type"] == "directory" else name, entry) for name, entry in below if "/" not in name and name]
