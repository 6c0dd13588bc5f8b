"""A process that measures what it is told to, one JSON line a request, and may die of it.

Started by `bench.isolated`. Requests on stdin: a dict of `Start`, then `{"item": [op, case, dtype],
"providers": [names]}`. Replies: `{"ready": ...}`; of an item `{"begin": provider}` and
`{"row": ...}` for each, then `{"done": true}`; `{"lost": why}` when the device is gone, and
`{"refused": why}` when the request makes no sense here.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def main() -> None:
    """Serves stdin until it ends."""
    # What libraries print must not stand between the replies.
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def reply(**fields: Any) -> None:
        replies.write(json.dumps(fields) + "\n")
        replies.flush()

    bench: Any = None
    for line in sys.stdin:
        request = json.loads(line)
        if "item" not in request:
            bench = _start(request, reply)
        elif not _measure(bench, request, reply):
            # A lost context hangs in some libraries' clean-up.
            os._exit(3)


def _start(request: dict[str, Any], reply: Callable[..., None]) -> Any:
    import torch

    from microturn.bench.ops import Bench
    from microturn.kernels import registry
    from microturn.runtime.ceilings import Ceilings, measure
    from microturn.runtime.timing import timer

    root = request["root"]
    if root is not None and not _below(registry.__file__, root):
        reply(refused=f"kernels come from {registry.__file__}, not from {root}")
    clock = timer(torch.device(request["device"]), request["seconds"])
    given = request["ceilings"]
    ceilings = measure(clock) if given is None else Ceilings(**given)
    bench = Bench(clock, ceilings, request["seed"], announce=lambda provider: reply(begin=provider))
    reply(ready={"ceilings": ceilings.as_json(), "overhead": clock.overhead()})
    return bench


def _below(file: str | None, root: str) -> bool:
    return file is not None and Path(file).resolve().is_relative_to(Path(root).resolve())


def _measure(bench: Any, request: dict[str, Any], reply: Callable[..., None]) -> bool:
    """False when the device is lost."""
    from microturn.bench.ops import DeviceLost
    from microturn.bench.providers.every import pick
    from microturn.bench.subjects import Item

    try:
        for row in bench.measure(Item(*request["item"]), pick(request["providers"])):
            reply(row=row)
    except KeyError as error:
        reply(refused=str(error.args[0]))
        return True
    except DeviceLost as error:
        reply(lost=str(error))
        return False
    reply(done=True)
    return True


if __name__ == "__main__":
    main()
