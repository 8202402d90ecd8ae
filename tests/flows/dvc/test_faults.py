"""Which lines speak of the network, in the words of those who write them: dvc, botocore, aiohttp,
httpx and tasks/store/s3.py.
"""

import pytest
from boto3.exceptions import S3UploadFailedError
from botocore.exceptions import (
    ClientError,
    EndpointConnectionError,
    IncompleteReadError,
    NoCredentialsError,
)

from flows.dvc.faults import is_network_fault
from tasks.store.errors import errors


@pytest.mark.parametrize(
    "line",
    [
        "ERROR: unexpected error - Could not connect to the endpoint URL: 'http://s3/dvc'",
        "botocore.exceptions.ClientError: An error occurred (503) when calling the PutObject "
        "operation: Service Unavailable",
        "An error occurred (SlowDown) when calling the UploadPart operation: Please reduce your "
        "request rate.",
        "s3://gdpo-sr/runs/x: the store refused (SlowDown); check credentials and endpoint in the "
        "environment",
        "s3://gdpo-sr/runs/x: the store refused (Throttling); check credentials and endpoint in "
        "the environment",
        "s3://gdpo-sr/runs/x: the store refused (RequestTimeout); check credentials and endpoint "
        "in the environment",
        "An error occurred (ThrottlingException) when calling the ListObjectsV2 operation: Rate "
        "exceeded",
        "ERROR: unexpected error - [Errno 16] Please reduce your request rate.",
        "aiohttp.client_exceptions.ServerDisconnectedError: Server disconnected",
        "s3://gdpo-sr/runs/x: the upload was interrupted (Connection was closed before we received "
        "a valid response)",
        "s3://gdpo-sr/runs/x: the download was interrupted (Max Retries Exceeded)",
        "[Errno -3] Temporary failure in name resolution",
        "[Errno -2] Name or service not known",
        "OSError: [Errno 101] Network is unreachable",
        "Cannot connect to host s3.example.org:443 ssl:default [No route to host]",
        "[Errno 113] No route to host",
        "[Errno 110] Connection timed out",
        "ssl.SSLError: The read operation timed out",
        "Read timeout on endpoint URL",
        "httpx.ConnectError: All connection attempts failed",
        "prefect.exceptions.PrefectHTTPStatusError: Server error '502 Bad Gateway' for url "
        "'http://head:4200/api/flow_runs/x'",
        "3 read, but total bytes expected is 7.",
    ],
)
def test_the_network_is_worth_another_try(line: str) -> None:
    assert is_network_fault(f"dvc push ended with code 1:\nuploading\n{line}")


@pytest.mark.parametrize(
    "line",
    [
        "gdpo-sr: select: none of 500 patches is fit; lower select.min_detail",
        "ERROR: failed to pull data from the cloud - Checkout failed for following targets: "
        "data/rollouts",
        "An error occurred (AccessDenied) when calling the PutObject operation: Access Denied",
        "ERROR: unexpected error - Forbidden: An error occurred (403) when calling the HeadObject "
        "operation: Forbidden",
        "ERROR: failed to connect to s3 (gdpo-sr/dvc) - Unable to locate credentials",
        "An error occurred (InvalidAccessKeyId) when calling the ListObjectsV2 operation: The AWS "
        "Access Key Id does not exist",
        "An error occurred (RequestTimeTooSkewed) when calling the PutObject operation: The "
        "difference is too large",
        "s3://gdpo-sr/x: there is no such object or bucket (NoSuchKey)",
        "step 500: loss is not finite; the last good checkpoint is "
        "work/finetune/gdpo/checkpoint.pt",
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 502.00 MiB",
    ],
)
def test_a_failing_stage_or_a_refusal_is_not(line: str) -> None:
    assert not is_network_fault(line)


def refused(code: str) -> ClientError:
    return ClientError({"Error": {"Code": code, "Message": code}}, "PutObject")


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (refused("AccessDenied"), False),
        (NoCredentialsError(), False),
        (refused("SlowDown"), True),
        (refused("InternalError"), True),
        (refused("503"), True),
        (EndpointConnectionError(endpoint_url="http://s3"), True),
        (IncompleteReadError(actual_bytes=3, expected_bytes=7), True),
    ],
    ids=repr,
)
def test_what_our_store_makes_of_an_error_hides_nothing(error: Exception, again: bool) -> None:
    """Its own words, "cannot be reached", stand before all of them."""
    with pytest.raises(OSError) as caught, errors("s3://gdpo-sr/runs/x"):
        raise error
    assert is_network_fault(f"Task run encountered unexpected exception: {caught.value!r}") == again


@pytest.mark.parametrize(("code", "again"), [("AccessDenied", False), ("SlowDown", True)])
def test_an_upload_in_parts_that_breaks_off(code: str, again: bool) -> None:
    error = S3UploadFailedError(f"Failed to upload a to b: {refused(code)}")
    assert is_network_fault(f"s3://gdpo-sr/x: the upload was interrupted ({error})") == again
