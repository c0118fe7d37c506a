"""Secrets in what is recorded: URLs that carry a password or a signature. A recipe lies beside every artifact, in Prefect
and in MLflow, so they are refused where they come in; and no message repeats them.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from stages.errors import ConfigError

PASSWORD = r"://[^/?#\s@]*:[^/?#\s@]*@"
"""A name and a password before a host, as in ``s3://name:password@bucket``. Azure's ``abfs://container@account`` is none."""
SIGNATURE = r"[?&](?:X-Amz-[A-Za-z]+|X-Goog-[A-Za-z]+|AWSAccessKeyId|Signature|sig|token|access_token)="
"""What signs an URL, for S3, Google and Azure: whoever has the URL has what it names."""

_SECRET = re.compile(f"{PASSWORD}|{SIGNATURE}", re.IGNORECASE)
_REMEDY = "credentials come from the environment, for S3 AWS_ACCESS_KEY_ID and others, and URLs name objects alone"


def holds_secret(text: str) -> bool:
    """Whether an URL in a text carries a password or a signature."""
    return bool(_SECRET.search(text))


def refuse(plain: Any) -> None:
    """Nothing, when no text in a recipe holds a secret.

    Raises:
        ConfigError: some do; the message says at which keys, and not what.
    """
    if found := list(_keys(plain)):
        raise ConfigError(f"{', '.join(found)}: an URL with a password or a signature; {_REMEDY}")


def refuse_url(url: str) -> None:
    """Nothing, when an URL holds no secret.

    Raises:
        ConfigError: it does; the message gives its scheme alone.
    """
    if holds_secret(url):
        raise ConfigError(f"{url.partition('://')[0]}://...: an URL with a password or a signature; {_REMEDY}")


def _keys(value: Any, path: str = "") -> Iterator[str]:
    """Where in nested mappings and lists the texts with secrets are, spelled ``shard.source.path``."""
    if isinstance(value, str):
        if holds_secret(value):
            yield path
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield from _keys(each, f"{path}.{key}" if path else str(key))
    elif isinstance(value, Sequence):
        for place, each in enumerate(value):
            yield from _keys(each, f"{path}[{place}]")
