"""Where things lie: a file or folder on local disk or on S3, with one set of verbs for both.

S3 is reached through ``pyarrow.fs`` (endpoint, region and credentials from the usual ``AWS_*`` variables), and
patiently: a store that is slow, or fails now and then, is asked again. What pyarrow cannot do, to create an object only
if there is none, is boto3's.
"""

import io
import os
import time
import uuid
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any, cast

import pyarrow as pa
import pyarrow.fs as pafs

S3_ATTEMPTS = 10
"""Times a request to S3 is tried before it fails; the pause between doubles up to 20 s."""


class Place:
    """A file or folder: ``/abs/path`` or ``s3://bucket/path``. Immutable, small and picklable."""

    __slots__ = ("_uri",)

    def __init__(self, uri: str) -> None:
        """Take an absolute local path or an S3 address.

        Raises:
            ValueError: another scheme, or a bucket without a name.
        """
        scheme, found, rest = uri.partition("://")
        if found and (scheme != "s3" or not rest.strip("/")):
            raise ValueError(f"{uri} is no place we can use; give an absolute path or s3://bucket/path")
        self._uri = f"s3://{rest.strip('/')}" if found else str(Path(uri))

    @classmethod
    def of(cls, place: "Place | Path | str") -> "Place":
        """Take whatever names a place."""
        return place if isinstance(place, Place) else cls(str(place))

    def __str__(self) -> str:
        """Give the path or address."""
        return self._uri

    def __repr__(self) -> str:
        """Give a constructor call."""
        return f"Place({self._uri!r})"

    def __eq__(self, other: object) -> bool:
        """Compare by address."""
        return isinstance(other, Place) and self._uri == other._uri

    def __hash__(self) -> int:
        """Hash the address."""
        return hash(self._uri)

    def __lt__(self, other: "Place") -> bool:
        """Sort by address."""
        return self._uri < other._uri

    def __truediv__(self, name: str) -> "Place":
        """Name what lies inside."""
        return Place(f"{self._uri}/{name}")

    @property
    def name(self) -> str:
        """Last part of the path."""
        return PurePosixPath(self.path).name

    @property
    def parent(self) -> "Place":
        """The folder it lies in."""
        return Place(self._uri.rpartition("/")[0] or "/")

    @property
    def is_local(self) -> bool:
        """Whether it lies on a disk of this machine."""
        return not self._uri.startswith("s3://")

    @property
    def is_absolute(self) -> bool:
        """Whether it means the same from every working directory."""
        return not self.is_local or Path(self._uri).is_absolute()

    @property
    def local(self) -> Path:
        """The path on local disk.

        Raises:
            ValueError: it lies on S3.
        """
        if not self.is_local:
            raise ValueError(f"{self} lies on S3, but a local path is needed here; copy it to a disk first")
        return Path(self._uri)

    @property
    def path(self) -> str:
        """The path as its file system knows it: without a scheme."""
        return self._uri.removeprefix("s3://")

    @property
    def filesystem(self) -> pafs.FileSystem:
        """The file system it lies on."""
        return pafs.LocalFileSystem() if self.is_local else _s3()

    @property
    def writing(self) -> pafs.FileSystem:
        """The file system to write shards through: no half-written file ever shows under its name."""
        return pafs.PyFileSystem(WholeFiles()) if self.is_local else self.filesystem

    def exists(self) -> bool:
        """Tell whether there is a file or folder."""
        return bool(self._type() != pafs.FileType.NotFound)

    def is_dir(self) -> bool:
        """Tell whether it is a folder; on S3: whether anything lies under it."""
        return bool(self._type() == pafs.FileType.Directory)

    def is_file(self) -> bool:
        """Tell whether it is a file."""
        return bool(self._type() == pafs.FileType.File)

    def size(self) -> int:
        """Give the bytes of a file."""
        return int(self.filesystem.get_file_info(self.path).size)

    def open_input(self) -> pa.NativeFile:
        """Open a file for reading from any position."""
        return self.filesystem.open_input_file(self.path)

    def read_bytes(self) -> bytes:
        """Read a file as it was at one moment.

        On S3 not through pyarrow: it asks for the size and then for the bytes, and of an object replaced in between it
        gives neither the old nor the new.
        """
        if not self.is_local:
            return _get(self)
        with self.open_input() as stream:
            return cast("bytes", stream.read())

    def read_text(self) -> str:
        """Read a UTF-8 file."""
        return self.read_bytes().decode()

    def write_bytes(self, data: bytes) -> None:
        """Write a file so that it is either wholly there or not at all, making its folder if need be."""
        if self.is_local:
            beside = self.local.with_name(f".{self.name}.{uuid.uuid4().hex}")
            self.local.parent.mkdir(parents=True, exist_ok=True)
            with beside.open("wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            beside.replace(self.local)
            return
        with self.filesystem.open_output_stream(self.path) as stream:  # S3 shows an object only once it is whole
            stream.write(data)

    def write_text(self, text: str) -> None:
        """Write a UTF-8 file, wholly or not at all."""
        self.write_bytes(text.encode())

    def create(self, data: bytes) -> bool:
        """Write a file unless there is one, which of several writers only one can; tell whether it was this one."""
        if not self.is_local:
            return _put_if_absent(self, data)
        self.local.parent.mkdir(parents=True, exist_ok=True)
        beside = self.local.with_name(f".{self.name}.{uuid.uuid4().hex}")
        beside.write_bytes(data)
        try:
            os.link(beside, self.local)  # unlike opening with O_EXCL, shows the file only once it is whole
        except FileExistsError:
            return False
        finally:
            beside.unlink()
        return True

    def delete(self) -> None:
        """Delete a file, or a folder with all in it; nothing happens if there is none."""
        kind = self._type()
        if kind == pafs.FileType.Directory:
            self.filesystem.delete_dir(self.path)
        elif kind != pafs.FileType.NotFound:
            self.filesystem.delete_file(self.path)

    def files(self, suffix: str = "", *, recursive: bool = True) -> list["Place"]:
        """List the files under a folder by address; names beginning with ``_`` or ``.`` are nobody's business."""
        selector = pafs.FileSelector(self.path, recursive=recursive, allow_not_found=True)
        found = []
        for info in self.filesystem.get_file_info(selector):
            parts = PurePosixPath(info.path).relative_to(self.path).parts
            hidden = any(part.startswith(("_", ".")) for part in parts)
            if info.type == pafs.FileType.File and info.path.endswith(suffix) and not hidden:
                found.append(Place(info.path if self.is_local else f"s3://{info.path}"))
        return sorted(found)

    def listing(self) -> list[tuple[str, int]]:
        """List all files under a folder with their bytes, by path from it."""
        selector = pafs.FileSelector(self.path, recursive=True, allow_not_found=True)
        infos = (info for info in self.filesystem.get_file_info(selector) if info.type == pafs.FileType.File)
        return sorted((str(PurePosixPath(info.path).relative_to(self.path)), int(info.size)) for info in infos)

    def relative_to(self, folder: "Place") -> str:
        """Give the path from a folder."""
        return str(PurePosixPath(self.path).relative_to(folder.path))

    def _type(self) -> pafs.FileType:
        return self.filesystem.get_file_info(self.path).type


@cache
def _s3() -> pafs.S3FileSystem:
    """Make the S3 client, once per process: it looks for credentials and keeps connections."""
    options: dict[str, Any] = {"retry_strategy": pafs.AwsStandardS3RetryStrategy(max_attempts=S3_ATTEMPTS)}
    if endpoint := os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"):
        scheme, _, host = endpoint.rpartition("://")
        options |= {"endpoint_override": host.rstrip("/"), "scheme": scheme or "https"}
    if region := os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"):
        options["region"] = region
    return pafs.S3FileSystem(request_timeout=60, connect_timeout=10, **options)


@cache
def _boto3() -> Any:
    import boto3  # a second to import, for the few who use S3
    from botocore.config import Config

    return boto3.client("s3", config=Config(retries={"mode": "standard", "max_attempts": S3_ATTEMPTS}))


def _get(place: Place) -> bytes:
    from botocore.exceptions import BotoCoreError, ClientError
    from urllib3.exceptions import HTTPError

    bucket, _, key = place.path.partition("/")
    for attempt in range(1, S3_ATTEMPTS + 1):
        try:
            return cast("bytes", _boto3().get_object(Bucket=bucket, Key=key)["Body"].read())
        except ClientError as error:
            if error.response["Error"]["Code"] in ("NoSuchKey", "404"):
                raise FileNotFoundError(f"{place} does not exist") from error
            raise OSError(f"{place} cannot be read: {error}") from error
        except (BotoCoreError, HTTPError) as error:  # boto3 retries requests, but not a body that was cut
            if attempt == S3_ATTEMPTS:
                raise OSError(f"{place} cannot be read: {error}") from error
            time.sleep(0.1 * attempt)
    raise AssertionError("the last attempt returns or raises")


def _put_if_absent(place: Place, data: bytes) -> bool:
    from botocore.exceptions import ClientError

    bucket, _, key = place.path.partition("/")
    try:
        _boto3().put_object(Bucket=bucket, Key=key, Body=data, IfNoneMatch="*")
    except ClientError as error:
        if error.response["Error"]["Code"] in ("PreconditionFailed", "ConditionalRequestConflict"):
            return False
        raise OSError(f"{place} cannot be written: {error}") from error
    return True


class WholeFiles(pafs.FileSystemHandler):
    """The local file system, except that a file shows under its name only once it is whole, as on S3.

    Ray Data and pyarrow write straight to the final name: a writer killed in the middle leaves half a shard there.
    """

    def __init__(self) -> None:
        """Wrap the local file system."""
        self._local = pafs.LocalFileSystem()

    def __eq__(self, other: object) -> bool:
        """All of them are alike."""
        return isinstance(other, WholeFiles)

    __hash__ = None  # type: ignore[assignment]  # pyarrow compares file systems and never hashes them

    def __reduce__(self) -> tuple[type["WholeFiles"], tuple[()]]:
        """Make a new one on the other side."""
        return WholeFiles, ()

    def get_type_name(self) -> str:
        """Name the kind of file system."""
        return "whole-files"

    def normalize_path(self, path: str) -> str:
        """As the local one."""
        return str(self._local.normalize_path(path))

    def get_file_info(self, paths: list[str]) -> list[pafs.FileInfo]:
        """As the local one."""
        return cast("list[pafs.FileInfo]", self._local.get_file_info(paths))

    def get_file_info_selector(self, selector: pafs.FileSelector) -> list[pafs.FileInfo]:
        """As the local one."""
        return cast("list[pafs.FileInfo]", self._local.get_file_info(selector))

    def create_dir(self, path: str, recursive: bool) -> None:
        """As the local one."""
        self._local.create_dir(path, recursive=recursive)

    def delete_dir(self, path: str) -> None:
        """As the local one."""
        self._local.delete_dir(path)

    def delete_dir_contents(self, path: str, missing_dir_ok: bool = False) -> None:
        """As the local one."""
        self._local.delete_dir_contents(path, missing_dir_ok=missing_dir_ok)

    def delete_root_dir_contents(self) -> None:
        """Never."""
        raise io.UnsupportedOperation("deleting everything is not offered")

    def delete_file(self, path: str) -> None:
        """As the local one."""
        self._local.delete_file(path)

    def move(self, src: str, dest: str) -> None:
        """As the local one."""
        self._local.move(src, dest)

    def copy_file(self, src: str, dest: str) -> None:
        """As the local one."""
        self._local.copy_file(src, dest)

    def open_input_stream(self, path: str) -> pa.NativeFile:
        """As the local one."""
        return self._local.open_input_stream(path)

    def open_input_file(self, path: str) -> pa.NativeFile:
        """As the local one."""
        return self._local.open_input_file(path)

    def open_output_stream(self, path: str, metadata: dict[str, str] | None = None) -> pa.NativeFile:
        """Write beside, and rename when it is closed without an error."""
        return pa.PythonFile(_WholeFile(Path(path)), mode="w")

    def open_append_stream(self, path: str, metadata: dict[str, str] | None = None) -> pa.NativeFile:
        """Never: a shard is written once."""
        raise io.UnsupportedOperation("files are written once, never added to")


class _WholeFile(io.RawIOBase):
    def __init__(self, path: Path) -> None:
        self._path = path
        self._beside = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
        self._stream = self._beside.open("wb")
        self._failed = False

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        try:
            return self._stream.write(data)
        except OSError:
            self._failed = True  # a full disk: what is there is no file, and close() must not make it one
            raise

    def tell(self) -> int:
        return self._stream.tell()

    def __del__(self) -> None:
        if hasattr(self, "_stream"):  # else it could not be opened
            self._failed = True  # let go of, by an exception or the end of the process, and not closed: half a file
            self.close()

    def close(self) -> None:
        if self.closed:
            return
        super().close()
        try:
            if not self._failed:
                self._stream.flush()
                os.fsync(self._stream.fileno())
        except OSError:
            self._failed = True
            raise
        finally:
            self._stream.close()
            if self._failed:
                self._beside.unlink()
            else:
                self._beside.replace(self._path)
