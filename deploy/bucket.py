"""The bucket of a fleet: made if it is missing, versions kept, what a broken upload left removed
after a day, and copies of checkpoints after a month.

    .venv/bin/python deploy/bucket.py s3://gdpo-sr

Endpoint, region and credentials come from the environment; the credentials must be allowed to make
buckets and to read and write their settings. Run it again at any time: lifecycle rules with other
names than ours stay.
"""

import sys
from contextlib import suppress
from typing import Any
from urllib.parse import urlparse

import boto3
from botocore.exceptions import BotoCoreError, ClientError

from tasks.store.s3 import reason

OURS = [
    {
        "ID": "end broken uploads",
        "Status": "Enabled",
        "Filter": {"Prefix": ""},
        "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 1},
    },
    # A training deletes them when it is pushed; one that nobody goes on with does not.
    {
        "ID": "end copies of checkpoints",
        "Status": "Enabled",
        "Filter": {"Prefix": "results/checkpoints/"},
        "Expiration": {"Days": 30},
        "NoncurrentVersionExpiration": {"NoncurrentDays": 1},
    },
]


def make(bucket: str) -> None:
    """Bring the bucket to this state. ClientError, BotoCoreError or ValueError (no such endpoint)
    as boto3 raises them.
    """
    s3 = boto3.client("s3")
    with suppress(s3.exceptions.BucketAlreadyOwnedByYou):
        s3.create_bucket(Bucket=bucket, **_place(s3.meta.region_name))
    s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    s3.put_bucket_lifecycle_configuration(Bucket=bucket, **_lifecycle(s3, bucket))


def _lifecycle(s3: Any, bucket: str) -> dict[str, Any]:
    """The bucket's lifecycle as it is, but for our rules: it can only be written as a whole."""
    try:
        found = s3.get_bucket_lifecycle_configuration(Bucket=bucket)
    except ClientError as error:
        if error.response["Error"]["Code"] != "NoSuchLifecycleConfiguration":
            raise
        return {"LifecycleConfiguration": {"Rules": OURS}}
    names = {rule["ID"] for rule in OURS}
    others = [rule for rule in found["Rules"] if rule.get("ID") not in names]
    size = "TransitionDefaultMinimumObjectSize"  # of everybody's rules; not every server has it
    kept = {size: found[size]} if size in found else {}
    return {"LifecycleConfiguration": {"Rules": [*others, *OURS]}, **kept}


def _place(region: str) -> dict[str, Any]:
    """S3 wants every region named but its first, which it refuses."""
    return (
        {}
        if region == "us-east-1"
        else {"CreateBucketConfiguration": {"LocationConstraint": region}}
    )


def main(argv: list[str]) -> int:
    """Make the bucket that is named; 0, or 1 with one line, or 2 for a wrong call."""
    url = urlparse(argv[0] if len(argv) == 1 else "")
    if url.scheme != "s3" or not url.netloc or url.path.strip("/"):
        sys.stderr.write("usage: python deploy/bucket.py s3://BUCKET\n")
        return 2
    try:
        make(url.netloc)
    except (ClientError, BotoCoreError) as error:
        sys.stderr.write(
            f"s3://{url.netloc}: {reason(error)}; check endpoint, region and credentials\n"
        )
        return 1
    except (
        ValueError
    ):  # boto3's own shows the endpoint with the user and password that may be in it
        sys.stderr.write(
            f"s3://{url.netloc}: AWS_ENDPOINT_URL is no address of a server, such as https://s3.example.org\n"
        )
        return 1
    sys.stdout.write(f"s3://{url.netloc} is there, with versions\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
