"""Errors of the object store: one line that names the URL, and nothing of the credentials.

with errors(url): ...       botocore's errors as ValueError, PermissionError or OSError
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    NoCredentialsError,
    PartialCredentialsError,
)

from gdpo.errors import one_line

NO_KEY = {"NoSuchKey", "404"}
MISSING = {"NoSuchBucket", *NO_KEY}
FORBIDDEN = {"AccessDenied", "403"}
NOT_SUPPORTED = {"NotImplemented", "501"}
# What stores answer to a write with a header, a trailer or a length that they do not know.
NOT_UNDERSTOOD = {
    *NOT_SUPPORTED,
    "InvalidArgument",
    "InvalidRequest",
    "BadRequest",
    "400",
    "MissingContentLength",
    "411",
    "XAmzContentSHA256Mismatch",
}
# The variable that takes boto3's checksums out of an operation.
WRITTEN, READ = "AWS_REQUEST_CHECKSUM_CALCULATION", "AWS_RESPONSE_CHECKSUM_VALIDATION"
CHECKSUMS = {
    "PutObject": WRITTEN,
    "UploadPart": WRITTEN,
    "CreateMultipartUpload": WRITTEN,
    "GetObject": READ,
}
CONFLICT = {"PreconditionFailed", "412", "ConditionalRequestConflict", "409"}
# User and password in an address: everything before the last @, as the address may be malformed.
USER = re.compile("//.*(@|%40)")


class Conflict(ValueError):
    """Another process wrote the object first."""


class NotSupported(OSError):
    """The server does not support the request, such as a conditional write."""


def code_of(error: ClientError) -> str:
    """The code in a server's answer, such as NoSuchKey; a server without one says the status."""
    return str(error.response.get("Error", {}).get("Code", "unknown error"))


@contextmanager
def errors(url: str) -> Iterator[None]:
    """Turn botocore's errors into one line that names the URL and has no header, key or token."""
    try:
        yield
    except ClientError as error:
        code = code_of(error)
        if code in MISSING:
            raise ValueError(f"{url}: there is no such object or bucket ({code})") from error
        kind = (
            PermissionError
            if code in FORBIDDEN
            else NotSupported
            if code in NOT_SUPPORTED
            else OSError
        )
        raise kind(f"{url}: the store refused ({code}); {_advice(error)}") from error
    except (NoCredentialsError, PartialCredentialsError) as error:
        raise PermissionError(
            f"{url}: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
        ) from error
    except BotoCoreError as error:
        # Keep the cause for its details, unless it shows a user and password in the endpoint.
        cause = None if USER.search(str(error)) else error
        advice = (
            f"the store cannot be reached ({reason(error)}); check AWS_ENDPOINT_URL and credentials"
        )
        raise OSError(f"{url}: {advice}") from cause


def _advice(error: ClientError) -> str:
    """What to do about a refusal: boto3 adds checksums to requests, which older stores refuse."""
    variable = CHECKSUMS.get(error.operation_name)
    if (
        variable is not None
        and code_of(error) in NOT_UNDERSTOOD
        and os.environ.get(variable, "").lower() != "when_required"
    ):
        return (
            "it may not know the checksums that boto3 asks for since 1.36: set "
            f"{variable}=when_required in the environment"
        )
    return "check credentials and endpoint in the environment"


def reason(error: Exception) -> str:
    """boto3's message in one line, without any user and password in an address."""
    return USER.sub("//", one_line(error))
