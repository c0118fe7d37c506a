"""The parameters of the flows, so that Prefect shows a form that a person understands and refuses what cannot be meant.

What stands in a type here is in the form, and the server refuses a value that does not fit before there is a run. What a form
cannot say, such as a key that no section has, fails when the run begins. Empty text means that nothing is given.
"""

import json
from collections.abc import Callable, Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

from pipeline.plan import order
from pipeline.recipe import Request
from pipeline.recipe_files import overlay_names, path_of, recipe_names
from stages.confidential import PASSWORD, SIGNATURE
from stages.errors import ConfigError

STAGES = order()
FIRST, LAST = STAGES[0], STAGES[-1]

_LONGEST_PATH = 4096
_MOST_CHANGES = 100
_TOP_KEYS = ("name", "description")
_NO_SECRET = rf"^(?![\s\S]*({PASSWORD}|{SIGNATURE}))"
"""Refused by the server before there is a run that would be stored with it; for the schema alone, pydantic has no lookahead."""
_OVERRIDE = rf"^(({'|'.join(STAGES)})(\.[A-Za-z0-9_]+)+|{'|'.join(_TOP_KEYS)})=[\s\S]*$"


def _shown(title: str, description: str, **more: Any) -> Any:
    """How the form shows a field; ``more`` goes into its JSON schema."""
    return Field(json_schema_extra={"title": title, "description": description, **more})


def _known(names: Callable[[], list[str]], kind: str) -> Callable[[str], str]:
    """Refuses what is neither one of the names nor spelled like a path; the form offers the names alone."""

    def check(spelled: str) -> str:
        try:
            path_of(spelled, names(), kind)
        except ConfigError as error:
            raise ValueError(str(error)) from error
        return spelled

    return check


_or_empty = BeforeValidator(lambda value: "" if value is None else value)
_or_none_of_it = BeforeValidator(lambda value: [] if value is None else list(value) if isinstance(value, tuple) else value)


def _or(default: str) -> BeforeValidator:
    return BeforeValidator(lambda value: default if value is None else value)


_Path = Annotated[str, Field(max_length=_LONGEST_PATH)]
_YamlPath = Annotated[str, Field(pattern=r"^$|\.ya?ml$", max_length=_LONGEST_PATH)]

RecipeName = Annotated[
    str,
    AfterValidator(_known(recipe_names, "recipe")),
    _shown("Recipe", "One method with all its settings; `lvmae recipes NAME` prints one.", enum=recipe_names()),
]
RecipeFile = Annotated[
    _YamlPath,
    _or_empty,
    _shown("Recipe file", "Path of a YAML file on the worker, to take instead of the recipe chosen above. Empty: none."),
]
Overlays = Annotated[
    list[
        Annotated[
            str,
            AfterValidator(_known(overlay_names, "overlay")),
            Field(json_schema_extra={"enum": overlay_names()}),
        ]
    ],
    Field(max_length=_MOST_CHANGES),
    _or_none_of_it,
    _shown("Overlays", "What changes the recipe, in this order. `demo` makes everything so small that a processor is enough."),
]
OverlayFiles = Annotated[
    list[_YamlPath],
    Field(max_length=_MOST_CHANGES),
    _or_none_of_it,
    _shown("Overlay files", "Paths of YAML files on the worker that change the recipe, after the overlays."),
]
Source = Annotated[
    _Path,
    _or_empty,
    _shown(
        "Source of videos",
        "A folder on the worker, a glob, or s3://bucket/prefix, to take instead of the recipe's source. Empty: the recipe's.",
        pattern=_NO_SECRET,
    ),
]
DatasetName = Annotated[
    str,
    Field(pattern=r"^[A-Za-z0-9_-]*$", max_length=100),
    _or_empty,
    _shown(
        "Dataset", "Name under which the clips are kept; letters, digits, _ and -. Empty: as the recipe or the source says."
    ),
]
Root = Annotated[
    _Path,
    _or_empty,
    _shown("Root", "Folder on the worker where artifacts lie. Empty: LVMAE_ROOT of the worker, or workspace where it works."),
]
Snapshot = Annotated[
    str,
    Field(pattern=r"^([0-9]{1,6}|[0-9a-f]{7,64})?$"),
    _or_empty,
    _shown(
        "Snapshot of the clips",
        "Read it and do not look at the source: its number, or the beginning of its digest. Empty: look at the source.",
    ),
]
FromStage = Annotated[
    str,
    Field(pattern=rf"^({'|'.join(STAGES)})$"),
    _or(FIRST),
    _shown("Begin with stage", "What this stage reads must be there.", enum=list(STAGES)),
]
ToStage = Annotated[
    str,
    Field(pattern=rf"^({'|'.join(STAGES)})$"),
    _or(LAST),
    _shown("End with stage", "Later stages are left as they are.", enum=list(STAGES)),
]
Overrides = Annotated[
    list[
        Annotated[
            str,
            Field(
                pattern=_OVERRIDE,
                max_length=_LONGEST_PATH,
                json_schema_extra={"pattern": _NO_SECRET + _OVERRIDE.removeprefix("^")},
            ),
        ]
    ],
    Field(max_length=_MOST_CHANGES),
    _or_none_of_it,
    _shown("Single values", "Each spelled section.key=value, such as pretrain.seed=1; they win over the recipe and overlays."),
]
PlanOnly = Annotated[
    bool,
    _shown("Plan only", "Show what would run, what is reused and why, with units, bytes and minutes; run nothing."),
]
Landed = Annotated[
    str,
    Field(max_length=200),
    _or_empty,
    _shown("Landed", "Why the run was started: the digest of the landing area. Automations fill it in; leave it empty."),
]
Tracking = Annotated[bool, _shown("Record in MLflow", "Whether what is executed is recorded in MLflow.")]


def asked(
    recipe: str,
    recipe_file: str,
    overlays: Sequence[str],
    overlay_files: Sequence[str],
    source: str,
    dataset: str,
    overrides: Sequence[str],
    snapshot: str,
) -> Request:
    """What the form asks for."""
    named = (f"shard.dataset={json.dumps(dataset)}",) if dataset else ()
    return Request(
        recipe=recipe_file or recipe,
        overlays=(*overlays, *overlay_files),
        source=source or None,
        overrides=(*named, *overrides),
        snapshot=snapshot or None,
    )
