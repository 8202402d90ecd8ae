"""Objects in S3. Endpoint, region and credentials come from the environment, as boto3 reads them.

    store = Store.at("s3://bucket/prefix")
    for key in store.keys(): store.read(key)         keys are relative to the prefix
    store.write(key, data)                           with its SHA-256, which every read checks
    store.put_if(key, data, {"IfMatch": tag})        only if the object still has this tag (ETag)

Errors name the s3:// URL. A missing bucket, prefix or object is a ValueError. A store that does not
answer is an OSError; refused access or missing credentials are a PermissionError. An object is
always complete: S3 shows an upload, including a multipart one, only when it has finished.
"""

import hashlib
import mimetypes
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from posixpath import splitext
from typing import Any

import boto3
from boto3.exceptions import Boto3Error
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import (
    ClientError,
    IncompleteReadError,
    ReadTimeoutError,
    ResponseStreamingError,
)

from gdpo.files import sha256
from tasks.store.errors import CONFLICT, NO_KEY, Conflict, code_of, errors, reason

CONNECTIONS = 16
ATTEMPTS = 5
# Content types that Python's table lacks on some or all systems.
TYPES = {
    ".parquet": "application/vnd.apache.parquet",
    ".safetensors": "application/octet-stream",
    ".webp": "image/webp",
}


@dataclass(frozen=True)
class Store:
    """A bucket and a prefix in it. Safe to use from several threads."""

    bucket: str
    prefix: str
    client: Any = field(repr=False, compare=False)

    @classmethod
    def at(cls, url: str) -> "Store":
        """The store at s3://bucket/prefix. Makes no request.

        ValueError if `url` has another form, or AWS_ENDPOINT_URL is malformed.
        """
        bucket, _, prefix = url.removeprefix("s3://").partition("/")
        prefix = prefix.removesuffix("/")
        if not url.startswith("s3://") or not bucket:
            raise ValueError(f"{url}: must look like s3://bucket/prefix")
        try:
            with errors(url):
                return cls(bucket, prefix, _client())
        except ValueError:
            # botocore's own message shows the endpoint, including any user and password in it.
            raise ValueError(
                f"{url}: AWS_ENDPOINT_URL is no address of a server, such as https://s3.example.org"
            ) from None

    def url(self, key: str = "") -> str:
        """The address of an object, or of the store itself."""
        return "s3://" + "/".join(part for part in (self.bucket, self.prefix, key) if part)

    def keys(self, under: str = "") -> Iterator[str]:
        """The keys below `under` in byte order; one request per 1000 keys."""
        return (key for key, _ in self.sizes(under))

    def sizes(self, under: str = "") -> Iterator[tuple[str, int]]:
        """The keys below `under` in byte order, each with its object's bytes; as `keys`."""
        base = self._name("")
        with errors(self.url(under)):
            pages = self.client.get_paginator("list_objects_v2").paginate(
                Bucket=self.bucket, Prefix=base + under
            )
            for page in pages:
                for entry in page.get("Contents", []):
                    yield entry["Key"].removeprefix(base), entry["Size"]

    def folders(self, under: str) -> Iterator[str]:
        """The names of the folders directly below `under` (which ends with "/")."""
        base = self._name(under)
        with errors(self.url(under)):
            pages = self.client.get_paginator("list_objects_v2").paginate(
                Bucket=self.bucket, Prefix=base, Delimiter="/"
            )
            for page in pages:
                yield from (
                    entry["Prefix"].removeprefix(base).rstrip("/")
                    for entry in page.get("CommonPrefixes", [])
                )

    def read(self, key: str) -> bytes:
        """The bytes of one object, checked against the SHA-256 it was written with, if any."""
        return self.fetch(key)[0]

    def fetch(self, key: str) -> tuple[bytes, str]:
        """(bytes, tag) of one object; the bytes are checked as by `read`."""
        body, answer = self._get(key)
        # The ETag of an upload in parts is no hash of the content, hence a SHA-256 of our own.
        self._verify(key, answer.get("Metadata", {}), hashlib.sha256(body).hexdigest())
        return body, str(answer["ETag"])

    def _get(self, key: str) -> tuple[bytes, Any]:
        """Get one object. boto3 retries failed requests, but not interrupted reads: this does."""
        with errors(self.url(key)):
            # An interrupted body cannot be resumed safely: the object may have changed in between.
            for left in reversed(range(ATTEMPTS)):
                try:
                    answer = self.client.get_object(Bucket=self.bucket, Key=self._name(key))
                    return answer["Body"].read(), answer
                except (IncompleteReadError, ReadTimeoutError, ResponseStreamingError):
                    if not left:
                        raise
        raise AssertionError("the last attempt returns or raises")

    def tag(self, key: str) -> str | None:
        """The current tag of one object, without reading it; None if there is no such object."""
        with errors(self.url(key)):
            try:
                return str(self.client.head_object(Bucket=self.bucket, Key=self._name(key))["ETag"])
            except ClientError as error:
                if code_of(error) not in NO_KEY:
                    raise
                return None

    def tag_if_holds(self, key: str, data: bytes) -> str | None:
        """The object's tag if it holds `data` and the SHA-256 that `write` stores with it.

        None if it does not, or if there is no such object.
        """
        try:
            body, answer = self._get(key)
        except ValueError:
            return None
        return (
            str(answer["ETag"])
            if (body, answer["Metadata"]) == (data, _extra(key, data)["Metadata"])
            else None
        )

    def size(self, key: str) -> int:
        """The bytes of one object, without reading it."""
        with errors(self.url(key)):
            return int(
                self.client.head_object(Bucket=self.bucket, Key=self._name(key))["ContentLength"]
            )

    def download(self, key: str, path: Path) -> None:
        """Stream one object into the file `path`, so that a large object need not fit into memory.

        A failure leaves no file.
        """
        with errors(self.url(key)):
            try:
                metadata = self.client.head_object(Bucket=self.bucket, Key=self._name(key)).get(
                    "Metadata", {}
                )
                self.client.download_file(self.bucket, self._name(key), str(path))
            except Boto3Error as error:
                # Transfers retry interrupted reads themselves, then raise boto3's own error class.
                raise OSError(
                    f"{self.url(key)}: the download was interrupted ({reason(error)})"
                ) from error
        try:
            self._verify(key, metadata, sha256(path))
        except ValueError:
            path.unlink()
            raise

    def _verify(self, key: str, metadata: dict[str, str], actual: str) -> None:
        wanted = metadata.get("sha256", actual)
        if wanted != actual:
            raise ValueError(
                f"{self.url(key)}: damaged, its SHA-256 is {actual[:12]}... and was written as "
                f"{wanted[:12]}..."
            )

    def write(self, key: str, data: bytes | Path, *, threads: bool = True) -> None:
        """Upload bytes or a file with content type and SHA-256; replaces an existing object.

        A large file is uploaded in parts. threads: several at once. Their threads keep a process
        from ending before the upload does.
        """
        with errors(self.url(key)):
            try:
                if isinstance(data, bytes):
                    self.client.put_object(
                        Bucket=self.bucket, Key=self._name(key), Body=data, **_extra(key, data)
                    )
                else:
                    self.client.upload_file(
                        str(data),
                        self.bucket,
                        self._name(key),
                        ExtraArgs=_extra(key, data),
                        Config=TransferConfig(use_threads=threads),
                    )
            except Boto3Error as error:
                raise OSError(
                    f"{self.url(key)}: the upload was interrupted ({reason(error)})"
                ) from error

    def put_if(self, key: str, data: bytes, condition: dict[str, str]) -> str:
        """Conditional write; returns the new tag.

        condition: {"IfNoneMatch": "*"} or {"IfMatch": tag}. `Conflict` if the condition fails and
        the object does not already hold `data`. Some servers ignore the condition:
        `supports_cas` in tasks/store/conditional.py tests for it.
        """
        with errors(self.url(key)):
            try:
                answer = self.client.put_object(
                    Bucket=self.bucket,
                    Key=self._name(key),
                    Body=data,
                    **_extra(key, data),
                    **condition,
                )
                return str(answer["ETag"])
            except ClientError as error:
                if code_of(error) not in CONFLICT | NO_KEY:
                    raise
                refused = error
        # "Not found" answers a write with If-Match when the object is gone: a conflict as well.
        # If the answer to the first write was lost, botocore repeated the write, and the repetition
        # failed because of our own object.
        tag = self.tag_if_holds(key, data)
        if tag is None:
            raise Conflict(f"{self.url(key)}: another process wrote it first") from refused
        return tag

    def delete(self, key: str) -> None:
        """Remove one object; nothing happens if there is none."""
        with errors(self.url(key)):
            self.client.delete_object(Bucket=self.bucket, Key=self._name(key))

    def link(self, key: str, seconds: int) -> str:
        """An address that a browser can open without credentials, for `seconds`."""
        with errors(self.url(key)):
            parameters = {"Bucket": self.bucket, "Key": self._name(key)}
            return str(
                self.client.generate_presigned_url(
                    "get_object", Params=parameters, ExpiresIn=seconds
                )
            )

    def _name(self, key: str) -> str:
        return f"{self.prefix}/{key}" if self.prefix else key


def content_type(key: str) -> str:
    """The Content-Type of an object, from its suffix."""
    suffix = splitext(key)[1].lower()
    guessed = TYPES.get(suffix) or mimetypes.guess_type(key)[0] or "application/octet-stream"
    return f"{guessed}; charset=utf-8" if guessed.startswith("text/") else guessed


def _extra(key: str, data: bytes | Path) -> dict[str, Any]:
    digest = hashlib.sha256(data).hexdigest() if isinstance(data, bytes) else sha256(data)
    return {"ContentType": content_type(key), "Metadata": {"sha256": digest}}


@cache
def _client() -> Any:
    """One client per process; boto3 retries transient errors itself."""
    retries = {"mode": "standard", "max_attempts": ATTEMPTS}
    # Many servers refuse links signed with the older signature version, which is boto3's default in
    # some regions.
    config = Config(retries=retries, max_pool_connections=CONNECTIONS, signature_version="s3v4")
    return boto3.client("s3", config=config)
