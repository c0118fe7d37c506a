"""The base of every configuration: validated, immutable, and closed to unknown keys."""

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """A frozen set of parameters; the docstring under a field is its documentation.

    Raises:
        pydantic.ValidationError: a key is unknown, missing, or out of its range.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
