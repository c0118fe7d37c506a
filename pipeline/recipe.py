"""Recipes: what a person asks for, resolved into one validated configuration of all six stages.

A recipe is a YAML file that is complete in itself; an overlay (its file name starts with an underscore) changes part of
one; ``--set a.b=value`` changes single values. Later ones win. Unknown keys are refused at every depth.
"""

import shlex
from collections.abc import Iterator, Mapping
from typing import Any, Self

import yaml
from pydantic import Field, ValidationError, model_validator

from models.config import Config
from pipeline.faults import explained
from pipeline.recipe_files import overlay_names, override, path_of, read, recipe_names, section_wise
from stages import confidential, evaluate, precompute, pretrain, shard, tokenizer
from stages.errors import ConfigError
from stages.export import Config as ExportConfig

RECORD = "recipe.yaml"
"""The name under which the resolved recipe is laid beside every artifact."""


class Recipe(Config):
    """One method at one scale: the configuration of every stage."""

    name: str = Field(min_length=1)
    """What the method is called; names the MLflow experiment."""
    description: str
    """What it is and where its numbers come from, in a sentence."""
    shard: shard.Config
    """Videos to clips."""
    tokenizer: tokenizer.Config
    """Clips to a trained tokenizer."""
    precompute: precompute.Config
    """Clips and tokenizer to codes and priorities."""
    pretrain: pretrain.Config
    """Clips and targets to a pretrained encoder."""
    evaluate: evaluate.Config
    """Encoder to measured accuracies and a report."""
    export: ExportConfig = ExportConfig()
    """Encoder to forms that work elsewhere."""

    @model_validator(mode="after")
    def _sections_fit_together(self) -> Self:
        stored = self.precompute.product_names
        lacking = self.pretrain.needs - stored
        if lacking:
            raise ValueError(
                f"pretrain needs {', '.join(sorted(lacking))} per token (a masking or the target asks for "
                f"them), and precompute stores {', '.join(sorted(stored))} alone; add to precompute.products, or choose "
                "another masking or target"
            )
        if self.tokenizer.model.patching != self.pretrain.model.patching:
            raise ValueError(
                f"tokenizer.model.patching is {self.tokenizer.model.patching!r} and pretrain.model.patching is "
                f"{self.pretrain.model.patching!r}; give both the same values, or no code matches its token"
            )
        for backend in self.export.backends:
            backend.check(self.pretrain.model)
        return self

    def resolved(self) -> bytes:
        """The recipe as YAML with every default spelled out; loading it gives the same recipe."""
        plain = self.model_dump(mode="json")
        text: str = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=100)
        return text.encode()


class Request(Config):
    """What a person asks for: a recipe and what is to be changed in it."""

    recipe: str
    """Name of a recipe, or path of a YAML file."""
    overlays: tuple[str, ...] = ()
    """Names or paths of overlays, applied in this order."""
    source: str | None = None
    """Folder of videos to take instead of the recipe's own source."""
    overrides: tuple[str, ...] = ()
    """Single values, each spelled ``section.key=value`` with the value as in YAML."""
    snapshot: str | None = None
    """Snapshot of the clips that later stages read, instead of looking at the source: its number, or the beginning of its
    digest or fingerprint."""

    def load(self) -> Recipe:
        """The validated recipe.

        Raises:
            ConfigError: a name is unknown, a file is not a mapping, a value does not fit, or an URL holds a secret; the message
                lists every fault.
        """
        confidential.refuse(self.model_dump(mode="json"))
        plain = section_wise(read(path_of(self.recipe, recipe_names(), "recipe")), self._changes())
        confidential.refuse(plain)
        try:
            return Recipe.model_validate(plain)
        except ValidationError as error:
            faults = "\n".join(f"  {line}" for line in explained(Recipe, plain, error))
            raise ConfigError(
                f"recipe {self.spelled()} does not fit:\n{faults}\n"
                "Correct the recipe, the overlay or the --set that says so; "
                "`lvmae recipes NAME` prints a recipe with all its keys."
            ) from error

    def spelled(self) -> str:
        """The request as it is typed after a command."""
        source = ("--source", self.source) if self.source else ()
        changes = [part for name in self.overlays for part in ("--overlay", name)]
        values = [part for pair in self.overrides for part in ("--set", pair)]
        pinned = ("--snapshot", self.snapshot) if self.snapshot else ()
        return shlex.join([self.recipe, *changes, *source, *values, *pinned])

    def _changes(self) -> Iterator[Mapping[str, Any]]:
        for name in self.overlays:
            yield read(path_of(name, overlay_names(), "overlay"))
        if self.source:
            yield {"shard": {"source": {"name": "folder", "path": self.source}}}
        for pair in self.overrides:
            yield override(pair)
