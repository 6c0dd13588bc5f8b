"""The caller's mistakes: one line on stderr and exit code 2, never a traceback."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from typer.core import TyperGroup

from microturn.runtime.errors import MicroturnError


class UsageError(MicroturnError):
    """Something the caller gave is wrong. The text says what came and what is wanted."""


class OneLineErrors(TyperGroup):
    """A command group: what a command raises on purpose ends it with one line.

    Late and skipped ticks are in the view and the numbers of a command, so their log lines stay
    out of its way.
    """

    def invoke(self, ctx: Any) -> Any:
        log = logging.getLogger("microturn")
        before = log.level
        log.setLevel(logging.ERROR)
        try:
            return super().invoke(ctx)
        except MicroturnError as error:
            typer.echo(f"error: {' '.join(str(error).split())}", err=True)
            raise typer.Exit(2) from None
        finally:
            log.setLevel(before)


@contextmanager
def usage_errors(*kinds: type[Exception]) -> Iterator[None]:
    """Inside, these exceptions mean the caller's mistake."""
    try:
        yield
    except kinds as error:
        # A KeyError's str is the repr of its argument.
        text = error.args[0] if isinstance(error, KeyError) and error.args else error
        raise UsageError(str(text)) from error
