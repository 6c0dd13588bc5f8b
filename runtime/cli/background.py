"""The background model of `--background`: a URL, or a callable by its import path."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any, cast

from microturn.runtime.cli.errors import UsageError

if TYPE_CHECKING:
    from microturn.runtime.background import Background

HELP = (
    "Who is asked when the model delegates: http(s)://HOST/PATH, or PACKAGE.MODULE:NAME of a "
    "callable that takes a DelegationRequest and gives an Answer or a str. Modules of the current "
    "folder are found too."
)


def load_background(where: str) -> Background:
    """Raises UsageError when it is neither, or cannot be imported; ConfigError for a bad URL."""
    from microturn.runtime.background import HttpBackground

    if "://" in where:
        return HttpBackground(where)
    module, colon, path = where.partition(":")
    if not (module and colon and path):
        raise UsageError(
            f"--background must be http(s)://HOST/PATH or PACKAGE.MODULE:NAME, got {where!r}"
        )
    # Last, so that no file here takes the place of a library.
    if (here := os.getcwd()) not in sys.path:
        sys.path.append(here)
    try:
        found: Any = import_module(module)
    except Exception as error:
        raise UsageError(
            f"--background: {module} cannot be imported: {type(error).__name__}: {error}"
        ) from error
    for name in path.split("."):
        if not hasattr(found, name):
            raise UsageError(f"--background: {module} has no {path}; name a callable of it")
        found = getattr(found, name)
    if isinstance(found, type) or not callable(found):
        kind = "a class, whose instances answer" if isinstance(found, type) else "not callable"
        raise UsageError(
            f"--background: {where} is {kind}; name a function, or an object that can be called "
            f"with a DelegationRequest"
        )
    return cast("Background", found)
