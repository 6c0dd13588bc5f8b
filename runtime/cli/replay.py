"""`microturn replay`: dumped sessions run again, bit for bit."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from microturn.runtime.cli.errors import usage_errors


def replay_all(dump: Path, console: Console, *, threads: int = 1) -> bool:
    """Replays each session of a dump and says what came of it; whether all were bit-identical.

    Raises DumpError when a dump cannot be read, UsageError when its model cannot be loaded.
    """
    from microturn.model.interaction import load_family
    from microturn.runtime import dumped_sessions, read_header, replay

    exact = True
    for folder in dumped_sessions(dump):
        config = read_header(folder).config
        checkpoint = config.get("checkpoint")
        with usage_errors(OSError, MemoryError, ValueError, KeyError):
            family = load_family(
                None if checkpoint else config["preset"],
                checkpoint,
                tick_ms=config["tick_ms"],
                seed=config["seed"],
            )
        report = replay(folder, family, threads=threads)
        exact = exact and report.exact
        verdict = "bit-identical" if report.exact else f"differs at {report.difference}"
        tags = "" if family.trained else "  (untrained)"
        cut = "" if report.end else "; the recording was cut off"
        console.print(
            f"{folder.name}: {report.ticks} ticks, {verdict}{cut}{tags}",
            highlight=False,
            soft_wrap=True,
        )
        for note in report.notes:
            console.print(f"  {note}", highlight=False, soft_wrap=True)
    return exact
