"""URLs that carry secrets are told from those that do not, and are never repeated."""

from pathlib import Path

import pytest

from pipeline.recipe import Request
from stages.confidential import holds_secret, refuse
from stages.errors import ConfigError
from stages.places import place_of

SECRET = (
    "s3://name:hunter2@bucket/videos",
    "s3://:hunter2@bucket",
    "https://me:hunter2@host/video.mp4",
    "https://bucket.example/video.mp4?X-Amz-Signature=hunter2",
    "https://account.example/video.mp4?sv=1&sig=hunter2",
    "gs://bucket/video?X-Goog-Credential=hunter2",
)
HARMLESS = (
    "s3://bucket/name",
    "s3://bucket/a:b@c.mp4",
    "abfs://container@account/videos",
    "/videos/me:you@home.mp4",
    "videos/?token",
    "1:2@3",
)


@pytest.mark.parametrize("url", SECRET)
def test_a_secret_is_refused_wherever_it_comes_in_and_not_repeated(url: str, tmp_path: Path) -> None:
    (tmp_path / "_mine.yaml").write_text(f"shard: {{source: {{name: folder, path: '{url}'}}}}\n")
    ways = (
        Request(recipe="lvmae", source=url),
        Request(recipe="lvmae", overrides=(f"shard.source.path={url}",)),
        Request(recipe="lvmae", overlays=(str(tmp_path / "_mine.yaml"),)),
    )
    for request in ways:
        with pytest.raises(ConfigError, match="a password or a signature") as caught:
            request.load()
        assert "hunter2" not in str(caught.value)
    with pytest.raises(ConfigError) as caught:
        place_of(url)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("text", HARMLESS)
def test_what_only_looks_like_one_is_none(text: str) -> None:
    assert not holds_secret(text)


def test_the_message_says_at_which_key_it_is() -> None:
    with pytest.raises(ConfigError, match=r"^shard\.source\.path, list\[1\]: "):
        refuse({"shard": {"source": {"path": SECRET[0]}}, "seed": 1, "list": ["a", SECRET[1]]})
