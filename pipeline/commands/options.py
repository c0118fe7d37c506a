"""Options that several commands share, and how a command ends."""

import contextlib
import logging
import sys
import traceback
from collections.abc import Iterator
from typing import Annotated

import typer

from pipeline import logs
from stages.errors import NoRoom, PipelineError

Root = Annotated[
    str, typer.Option("--root", metavar="PATH", envvar="LVMAE_ROOT", help="Where artifacts lie; made when first needed.")
]
Json = Annotated[bool, typer.Option("--json", help="Write JSON to stdout, one object per line, and the rest to stderr.")]
Verbose = Annotated[bool, typer.Option("--verbose", help="Show log messages, and the traceback of an error.")]


@contextlib.contextmanager
def reporting(verbose: bool) -> Iterator[None]:
    """Turn an error into one message and an exit code: 2 for what a person must change, 1 for a disk or network that failed,
    130 for an interrupt.
    """
    logs.begin(verbose=verbose)
    try:
        yield
    except NoRoom as error:
        if verbose:
            traceback.print_exc()
        _say(f"error: {error}")
        raise typer.Exit(1) from None
    except PipelineError as error:
        if verbose:
            traceback.print_exc()
        _say(f"error: {error}")
        raise typer.Exit(2) from None
    except OSError as error:  # the disk or the network, and nothing that was decided here
        if verbose:
            traceback.print_exc()
        _say(f"error: {error}; what is committed stays, and the same command continues from there")
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        _say("interrupted: what is committed stays; the same command continues from there")
        raise typer.Exit(130) from None


def _say(text: str) -> None:
    if logs.is_json():
        logging.getLogger(__name__).error(text)
    else:
        sys.stderr.write(f"{text}\n")
