"""A store without boto3's newer checksums: the variable that tasks/store/errors.py names reaches
DVC's client and Prefect's results too.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import s3

pytestmark = pytest.mark.processes

CODE = """
import os, sys
if sys.argv[1] == "dvc":
    import s3fs
    fs = s3fs.S3FileSystem(endpoint_url=os.environ["AWS_ENDPOINT_URL"])
    fs.pipe_file("bucket/x", b"one")
else:
    from prefect_aws import AwsCredentials, S3Bucket
    S3Bucket(bucket_name="bucket", credentials=AwsCredentials()).write_path("x", b"one")
"""


@pytest.mark.parametrize("client", ["dvc", "prefect"])
def test_the_variable_reaches_every_client(tmp_path: Path, client: str) -> None:
    codes = []
    with s3.server() as url, s3.proxy(url, lambda *_: "refuse x-amz-checksum-crc32") as old:
        s3.client(url).create_bucket(Bucket="bucket")
        for variable in ({}, {"AWS_REQUEST_CHECKSUM_CALCULATION": "when_required"}):
            env = {**os.environ, **s3.environment(old), **variable, "PREFECT_HOME": str(tmp_path)}
            command = [sys.executable, "-c", CODE, client]
            codes.append(subprocess.run(command, env=env, capture_output=True).returncode)
        assert s3.client(url).get_object(Bucket="bucket", Key="x")["Body"].read() == b"one"
    assert codes == [1, 0]
