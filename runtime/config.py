"""One configuration object, from keywords or a TOML file."""

from __future__ import annotations

import dataclasses
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from microturn.runtime.errors import ConfigError
from microturn.runtime.lateness import LatenessPolicy

_POSITIVE = (
    "tick_ms",
    "max_sessions",
    "threads",
    "input_queue_ms",
    "output_queue_ticks",
    "context_queue_rows",
    "image_queue_rows",
    "max_step_failures",
    "snapshot_every_s",
    "background_workers",
    "background_timeout_s",
)
_CHOICES = {
    "device": ("cpu", "cuda"),
    "dtype": ("auto", "float32", "bfloat16", "fp8"),
    "loop": ("plain", "overlapped"),
    "input_overflow": ("drop_oldest", "close"),
    "output_overflow": ("close", "drop_oldest"),
    "admission": ("auto", "predict", "slots"),
}


@dataclass(frozen=True)
class RuntimeConfig:
    """What a runtime is made of.

    preset, checkpoint  a preset's name, or the folder of a checkpoint, which goes before it
    device, dtype       "cpu" computes in float32; "cuda" in bfloat16, from weights of 16 bits
                        ("auto", "bfloat16") or of 8 ("fp8")
    loop                "plain": a tick's outputs within its period; "overlapped": within the next,
                        while the device runs that one already (a GPU that is busy nearly always)
    tick_ms             one period of the clock
    max_sessions        slots: memory for so many sessions is taken at the start
    byte_budget         bytes that the state of sessions may take: as many slots as fit, at most
                        max_sessions; None: max_sessions, if the machine has the memory
    window, num_sink_tokens  keys that global layers see, and first keys of a session that stay
                        visible beside them; None: the model's own
    admission           "predict" refuses a session whose ticks are predicted to be late, "slots"
                        only for want of a slot; "auto" predicts where a clock runs, but lets the
                        first session in whatever it says, with a warning
    admission_margin_ms the predicted p99 of a tick must leave this much of its period
    seed                of untrained weights, and of sessions opened without a seed
    threads             torch threads of the stepping thread
    input_queue_ms      audio a session may have waiting; input_overflow says what happens to more:
                        "drop_oldest" (counted, and marked on the next output) or "close"
    output_queue_ticks  outputs that may wait to be read; output_overflow likewise, "close" (a slow
                        reader ends its own session) or "drop_oldest"
    context_queue_rows  context tokens that may wait
    image_queue_rows    image patches that may wait
    max_step_failures   ticks in a row in which a session's row may raise before it is closed
    lateness            the rungs of LatenessPolicy; a table of the same name in a file
    dump                folder to record every session in, for replay; None records nothing
    snapshots           folder to save every session in, every snapshot_every_s seconds, for restore
    background_workers  calls of background models at one time; background_timeout_s is how long a
                        delegation may take, waiting included

    Raises ConfigError.
    """

    preset: str = "interaction-tiny"
    checkpoint: str | None = None
    device: str = "cpu"
    dtype: str = "auto"
    loop: str = "plain"
    tick_ms: int = 100
    max_sessions: int = 4
    byte_budget: int | None = None
    window: int | None = None
    num_sink_tokens: int | None = None
    admission: str = "auto"
    admission_margin_ms: int = 5
    seed: int = 0
    threads: int = 1
    input_queue_ms: int = 500
    output_queue_ticks: int = 50
    context_queue_rows: int = 4096
    image_queue_rows: int = 2048
    input_overflow: str = "drop_oldest"
    output_overflow: str = "close"
    max_step_failures: int = 3
    lateness: LatenessPolicy = dataclasses.field(default_factory=LatenessPolicy)
    dump: str | None = None
    snapshots: str | None = None
    snapshot_every_s: int = 10
    background_workers: int = 4
    background_timeout_s: int = 60

    def __post_init__(self) -> None:
        for name in ("checkpoint", "dump", "snapshots"):
            value = getattr(self, name)
            if isinstance(value, os.PathLike):
                object.__setattr__(self, name, os.fspath(value))
        if isinstance(self.lateness, Mapping):
            object.__setattr__(self, "lateness", _policy(self.lateness))
        for field in dataclasses.fields(self):
            value, wanted = getattr(self, field.name), str(field.type)
            kinds: dict[str, tuple[type, ...]] = {
                "str": (str,),
                "int": (int,),
                "str | None": (str, type(None)),
                "int | None": (int, type(None)),
                "LatenessPolicy": (LatenessPolicy,),
            }
            if not isinstance(value, kinds[wanted]) or isinstance(value, bool):
                raise ConfigError(f"{field.name} must be {wanted}, got {value!r}")
        for name in _POSITIVE:
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name, least in (("byte_budget", 1), ("window", 1), ("num_sink_tokens", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                wanted = f"at least {least}" if least else "0 or more"
                raise ConfigError(f"{name} must be {wanted}, got {value}")
        if not 0 <= self.admission_margin_ms < self.tick_ms:
            raise ConfigError(
                f"admission_margin_ms must be 0 or more and less than a tick of {self.tick_ms} ms, "
                f"got {self.admission_margin_ms}"
            )
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"seed must be in [0, 2**63), got {self.seed}")
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                raise ConfigError(f"{name} must be one of {known}, got {getattr(self, name)!r}")
        if self.input_queue_ms < self.tick_ms:
            raise ConfigError(
                f"input_queue_ms must hold a tick of {self.tick_ms} ms, got {self.input_queue_ms}"
            )

    @classmethod
    def from_file(cls, path: str | os.PathLike[str], **overrides: Any) -> RuntimeConfig:
        """The TOML file's keys are the field names; overrides go before them.

        Raises ConfigError on unknown keys or bad values, OSError when the file cannot be read.
        """
        try:
            values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} is not TOML: {error}") from None
        return build_config(None, {**values, **overrides}, where=str(path))


def _policy(rungs: Mapping[str, Any]) -> LatenessPolicy:
    known = [field.name for field in dataclasses.fields(LatenessPolicy)]
    if unknown := sorted(set(rungs) - set(known)):
        raise ConfigError(f"lateness: unknown {', '.join(unknown)}; known: {', '.join(known)}")
    return LatenessPolicy(**rungs)


def build_config(
    config: RuntimeConfig | None, overrides: dict[str, Any], where: str = "Runtime"
) -> RuntimeConfig:
    """`config` (or the defaults) with overrides. Raises ConfigError naming unknown ones."""
    known = [field.name for field in dataclasses.fields(RuntimeConfig)]
    if unknown := sorted(set(overrides) - set(known)):
        raise ConfigError(f"{where}: unknown {', '.join(unknown)}; known: {', '.join(known)}")
    return dataclasses.replace(config or RuntimeConfig(), **overrides)
