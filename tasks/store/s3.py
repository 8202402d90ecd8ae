"""Objects in S3. Endpoint, region and credentials come from the environment, as boto3 reads them.

    store = Store.at("s3://bucket/prefix")
    for key in store.keys(): store.read(key)         keys are relative to the prefix
    store.write(key, data)                           with its SHA-256, which every read checks
    store.put_if(key, data, {"IfMatch": tag})        only if nobody has written it since

A missing bucket, prefix or object is a ValueError, a store that does not answer an OSError
(PermissionError if it answers that we may not, or there are no credentials); each names the s3://
URL. An object is there whole or not at all: S3 shows a (multipart) upload when it is complete.
"""

import hashlib
import mimetypes
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import boto3
from boto3.exceptions import Boto3Error
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    IncompleteReadError,
    NoCredentialsError,
    PartialCredentialsError,
    ReadTimeoutError,
    ResponseStreamingError,
)

CONNECTIONS = 16
ATTEMPTS = 5
NO_KEY = {"NoSuchKey", "404"}
MISSING = {"NoSuchBucket", *NO_KEY}
FORBIDDEN = {"AccessDenied", "403"}
NOT_SUPPORTED = {"NotImplemented", "501"}
CONFLICT = {"PreconditionFailed", "412", "ConditionalRequestConflict", "409"}
USER = re.compile(
    "//.*(@|%40)"
)  # and password: the value may be a wrong one, so whatever is before the last @
# What Python's table does not know, or not everywhere.
TYPES = {
    ".parquet": "application/vnd.apache.parquet",
    ".safetensors": "application/octet-stream",
    ".webp": "image/webp",
}


class Conflict(ValueError):
    """Somebody else wrote the object first."""


class NotSupported(OSError):
    """The server does not know what it was asked for, such as a conditional write."""


@dataclass(frozen=True)
class Store:
    """A bucket and a prefix in it. Safe to use from several threads."""

    bucket: str
    prefix: str
    client: Any = field(repr=False, compare=False)

    @classmethod
    def at(cls, url: str) -> "Store":
        """The store at s3://bucket/prefix. ValueError if that is no such URL; no request is
        made.
        """
        bucket, _, prefix = url.removeprefix("s3://").partition("/")
        if not url.startswith("s3://") or not bucket:
            raise ValueError(f"{url}: must look like s3://bucket/prefix")
        try:
            with _errors(url):
                return cls(bucket, prefix.strip("/"), _client())
        except (
            ValueError
        ):  # botocore's own shows the endpoint with the user and password that may be in it
            raise ValueError(
                f"{url}: AWS_ENDPOINT_URL is no address of a server, such as https://s3.example.org"
            ) from None

    def url(self, key: str = "") -> str:
        """The address of an object, or of the store itself."""
        return "s3://" + "/".join(part for part in (self.bucket, self.prefix, key) if part)

    def keys(self, under: str = "") -> Iterator[str]:
        """The keys below `under`, in the order of their bytes, a page of 1000 per request."""
        base = self._name("")
        with _errors(self.url(under)):
            pages = self.client.get_paginator("list_objects_v2").paginate(
                Bucket=self.bucket, Prefix=base + under
            )
            for page in pages:
                yield from (entry["Key"].removeprefix(base) for entry in page.get("Contents", []))

    def folders(self, under: str) -> Iterator[str]:
        """The names of the folders directly below `under` (which ends with "/")."""
        base = self._name(under)
        with _errors(self.url(under)):
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
        self._verify(key, answer.get("Metadata", {}), hashlib.sha256(body).hexdigest())
        return body, str(answer["ETag"])

    def _get(self, key: str) -> tuple[bytes, Any]:
        """boto3 repeats a request that fails, but not an answer that breaks off: we do."""
        with _errors(self.url(key)):
            for left in reversed(range(ATTEMPTS)):
                try:
                    answer = self.client.get_object(Bucket=self.bucket, Key=self._name(key))
                    return answer["Body"].read(), answer
                except (IncompleteReadError, ReadTimeoutError, ResponseStreamingError):
                    if not left:
                        raise
        raise AssertionError("the last attempt returns or raises")

    def tag(self, key: str) -> str | None:
        """The present tag of one object, without reading it; None if there is no such object."""
        with _errors(self.url(key)):
            try:
                return str(self.client.head_object(Bucket=self.bucket, Key=self._name(key))["ETag"])
            except ClientError as error:
                if _code(error) not in NO_KEY:
                    raise
                return None

    def tag_if_holds(self, key: str, data: bytes) -> str | None:
        """The object's tag if it is `data`, written with the SHA-256 as we write it; else, or if
        there is none, None.
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
        with _errors(self.url(key)):
            return int(
                self.client.head_object(Bucket=self.bucket, Key=self._name(key))["ContentLength"]
            )

    def download(self, key: str, path: Path) -> None:
        """Stream one object into the file `path`: as large as it may be, it is never in memory; a
        failure leaves no file.
        """
        with _errors(self.url(key)):
            try:
                metadata = self.client.head_object(Bucket=self.bucket, Key=self._name(key)).get(
                    "Metadata", {}
                )
                self.client.download_file(self.bucket, self._name(key), str(path))
            except (
                Boto3Error
            ) as error:  # it repeats what breaks off, and then says so in a way of its own
                raise OSError(
                    f"{self.url(key)}: the download broke off ({reason(error)})"
                ) from error
        try:
            self._verify(key, metadata, sha256_of(path))
        except ValueError:
            path.unlink()
            raise

    def _verify(self, key: str, metadata: dict[str, str], found: str) -> None:
        wanted = metadata.get("sha256", found)
        if wanted != found:
            raise ValueError(
                f"{self.url(key)}: damaged, its SHA-256 is {found[:12]}... and was written as "
                f"{wanted[:12]}..."
            )

    def write(self, key: str, data: bytes | Path) -> None:
        """Upload bytes or a file, in parts if it is large, with content type and SHA-256; replaces
        what was there.
        """
        with _errors(self.url(key)):
            try:
                if isinstance(data, bytes):
                    self.client.put_object(
                        Bucket=self.bucket, Key=self._name(key), Body=data, **_extra(key, data)
                    )
                else:
                    self.client.upload_file(
                        str(data), self.bucket, self._name(key), ExtraArgs=_extra(key, data)
                    )
            except Boto3Error as error:
                raise OSError(f"{self.url(key)}: the upload broke off ({reason(error)})") from error

    def put_if(self, key: str, data: bytes, condition: dict[str, str]) -> str:
        """Write on a condition that this server may ignore (tasks/store/conditional.py knows), and
        return the new tag.

        condition: {"IfNoneMatch": "*"} or {"IfMatch": tag}. `Conflict` if it fails and the object
        is not `data` already.
        """
        with _errors(self.url(key)):
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
                if _code(error) not in CONFLICT | NO_KEY:
                    raise
                refused = error
        # If the answer to our write was lost, botocore wrote again, and it is our own object that
        # was in the way.
        tag = self.tag_if_holds(key, data)
        if tag is None:
            raise Conflict(f"{self.url(key)}: somebody else wrote it first") from refused
        return tag

    def delete(self, key: str) -> None:
        """Remove one object; nothing happens if there is none."""
        with _errors(self.url(key)):
            self.client.delete_object(Bucket=self.bucket, Key=self._name(key))

    def link(self, key: str, seconds: int) -> str:
        """An address that a browser can open without credentials, for `seconds`."""
        with _errors(self.url(key)):
            parameters = {"Bucket": self.bucket, "Key": self._name(key)}
            return str(
                self.client.generate_presigned_url(
                    "get_object", Params=parameters, ExpiresIn=seconds
                )
            )

    def _name(self, key: str) -> str:
        return f"{self.prefix}/{key}" if self.prefix else key


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_type(key: str) -> str:
    """What a browser is told about an object, by the end of its name."""
    suffix = Path(key).suffix.lower()
    guessed = TYPES.get(suffix) or mimetypes.guess_type(key)[0] or "application/octet-stream"
    return f"{guessed}; charset=utf-8" if guessed.startswith("text/") else guessed


def _extra(key: str, data: bytes | Path) -> dict[str, Any]:
    digest = hashlib.sha256(data).hexdigest() if isinstance(data, bytes) else sha256_of(data)
    return {"ContentType": content_type(key), "Metadata": {"sha256": digest}}


@cache
def _client() -> Any:
    """One client per process; boto3 retries what may pass by itself."""
    retries = {"mode": "standard", "max_attempts": ATTEMPTS}
    # Signed links in the present form: the older one, boto3's default for some places, is refused
    # by many servers.
    config = Config(retries=retries, max_pool_connections=CONNECTIONS, signature_version="s3v4")
    return boto3.client("s3", config=config)


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", "unknown error"))


@contextmanager
def _errors(url: str) -> Iterator[None]:
    """Turn what botocore says into one line that names the URL and holds no header, key or
    token.
    """
    try:
        yield
    except ClientError as error:
        code = _code(error)
        if code in MISSING:
            raise ValueError(f"{url}: there is no such object or bucket ({code})") from error
        kind = (
            PermissionError
            if code in FORBIDDEN
            else NotSupported
            if code in NOT_SUPPORTED
            else OSError
        )
        raise kind(
            f"{url}: the store refused ({code}); check credentials and endpoint in the environment"
        ) from error
    except (NoCredentialsError, PartialCredentialsError) as error:
        raise PermissionError(
            f"{url}: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
        ) from error
    except BotoCoreError as error:
        # The cause says more, and shows the endpoint as it is.
        cause = None if USER.search(str(error)) else error
        said = (
            f"the store cannot be reached ({reason(error)}); check AWS_ENDPOINT_URL and credentials"
        )
        raise OSError(f"{url}: {said}") from cause


def reason(error: Exception) -> str:
    """What boto3 says, in one line and without the user and password that may be in an address."""
    return USER.sub("//", " ".join(str(error).split()))
