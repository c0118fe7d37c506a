"""What can go wrong, as one tree. Every message says what, where, what was expected and what to do.

PipelineError
    ConfigError             (ValueError)         a recipe, a parameter or a name is wrong
    ArtifactMissing         (FileNotFoundError)  an input artifact is not there; says which stage makes it
    ArtifactDamaged         (OSError)            bytes differ from what a manifest, index or checksum says
    ArtifactBusy            (RuntimeError)       another live run holds the same artifact
    SourceMissing           (FileNotFoundError)  the source that was named holds nothing to read
    MediaError              (ValueError)         one media file cannot become a clip; carries a ``Reason``
    TooManyFailures         (RuntimeError)       the share of quarantined sources is over ``max_failed_share``
    TrainingDiverged        (ArithmeticError)    a loss or a gradient stopped being finite
    TargetsInvalid          (ArithmeticError)    a computed target cannot be right, or came out differently the second time
    TokenizerCollapsed      (ArithmeticError)    a trained tokenizer uses too few of its codes to be published
    NoRoom                  (OSError)            the disk has, or will have, no room for what a stage writes
    ExportFailed            (RuntimeError)       an exported form of an encoder cannot be made, or is not the encoder
"""

from enum import StrEnum


class PipelineError(Exception):
    """Anything this project raises on purpose."""


class ConfigError(PipelineError, ValueError):
    """A recipe, a parameter or a name is wrong."""


class ArtifactMissing(PipelineError, FileNotFoundError):
    """An input artifact is not there."""


class ArtifactDamaged(PipelineError, OSError):
    """Stored bytes are not what their record says."""


class ArtifactBusy(PipelineError, RuntimeError):
    """Another live run is making the same artifact."""


class SourceMissing(PipelineError, FileNotFoundError):
    """The named source holds nothing to read."""


class TooManyFailures(PipelineError, RuntimeError):
    """More sources were quarantined than the recipe allows."""


class TrainingDiverged(PipelineError, ArithmeticError):
    """A loss or a gradient stopped being finite."""


class TargetsInvalid(PipelineError, ArithmeticError):
    """A computed target cannot be right, or came out differently when it was computed again."""


class TokenizerCollapsed(PipelineError, ArithmeticError):
    """A trained tokenizer uses too few of its codes to be published."""


class NoRoom(PipelineError, OSError):
    """The disk has no room for what a stage writes, or became full while it wrote."""


class ExportFailed(PipelineError, RuntimeError):
    """A form of an encoder cannot be made, or does not compute what the encoder computes."""


class Reason(StrEnum):
    """Why a source is in quarantine. A closed list: a new reason is a change of the storage layout."""

    EMPTY = "empty"
    NOT_A_FILE = "not_a_file"
    UNREADABLE = "unreadable"
    FORMAT_REFUSED = "format_refused"
    NO_VIDEO_STREAM = "no_video_stream"
    NO_FRAMES = "no_frames"
    TOO_SHORT = "too_short"
    TOO_LARGE = "too_large"
    TRUNCATED = "truncated"
    CORRUPT = "corrupt"
    TIMESTAMPS = "timestamps"
    TIMEOUT = "timeout"
    DECODER_CRASH = "decoder_crash"
    LIMIT = "limit"
    DUPLICATE = "duplicate"
    RENAMED = "renamed"
    CHANGED = "changed"
    MISSING = "missing"


class MediaError(PipelineError, ValueError):
    """One media file cannot become a clip.

    Args:
        reason: the class of the fault, one of the closed list.
        detail: what exactly was seen, for a person.
    """

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type["MediaError"], tuple[Reason, str]]:
        """How it travels between processes."""
        return MediaError, (self.reason, self.detail)
