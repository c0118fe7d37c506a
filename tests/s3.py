"""A real S3 server for tests: moto's, as a child process on a free port of this machine."""

import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import boto3
from botocore.config import Config

_STARTED = re.compile(r"Running on (http://127\.0\.0\.1:\d+)")
_START_S = 60.0


class Emulator(NamedTuple):
    """A running server."""

    environment: Mapping[str, str]
    """What a process needs to be told to find it."""
    client: Any
    """A client for the tests' own hands: boto3's, not the one under test."""


@contextlib.contextmanager
def emulator(log: Path, *, bucket: str) -> Iterator[Emulator]:
    """A server with one empty bucket, gone afterwards. It writes to ``log``."""
    argv = [sys.executable, "-W", "ignore", "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
    with log.open("wb") as output, subprocess.Popen(argv, stdout=output, stderr=subprocess.STDOUT) as server:
        try:
            url = _address(server, log)
            client = boto3.client("s3", endpoint_url=url, config=Config(retries={"max_attempts": 1}), **_KEYS)
            client.create_bucket(Bucket=bucket)
            yield Emulator(environment={**_ENVIRONMENT, "AWS_ENDPOINT_URL": url}, client=client)
            client.close()
        finally:
            server.kill()


_KEYS = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing", "region_name": "us-east-1"}

_ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    "AWS_EC2_METADATA_DISABLED": "true",
    "NO_PROXY": "127.0.0.1",
}
"""Nothing of the machine's own: a test that finds another account's keys would use them."""


def _address(server: subprocess.Popen[bytes], log: Path) -> str:
    """Where the server listens, once it does."""
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline and server.poll() is None:
        if found := _STARTED.search(log.read_text()):
            return found[1]
        time.sleep(0.05)
    raise RuntimeError(f"the S3 server did not start: {log.read_text()}")
