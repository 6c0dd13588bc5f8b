"""What can go wrong at the public door, by type: what came, what is wanted, what to do."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class CloseCode(StrEnum):
    """Why a session ended."""

    CLOSED = "closed"
    RUNTIME_CLOSED = "runtime_closed"
    INPUT_OVERFLOW = "input_overflow"
    SLOW_READER = "slow_reader"
    INPUT_FAILED = "input_failed"
    NOT_FINITE = "not_finite"
    STEP_FAILED = "step_failed"
    OUT_OF_MEMORY = "out_of_memory"
    OVERLOADED = "overloaded"
    INTERNAL = "internal"


@dataclass(frozen=True)
class CloseReason:
    """`code` for programs, `detail` for people."""

    code: CloseCode
    detail: str

    def __str__(self) -> str:
        return f"{self.code}: {self.detail}"


class MicroturnError(Exception):
    """Base of every error that this package raises on purpose."""


class ConfigError(MicroturnError, ValueError):
    """A configuration value is wrong."""


class InputError(MicroturnError, ValueError):
    """Input was refused. The session lives on, and nothing it had accepted is lost."""


class AudioError(InputError):
    """Samples of a wrong shape, dtype, range, rate or length."""


class ImageError(InputError):
    """An image that cannot be decoded, or of a wrong shape, dtype or size."""


class ContextError(InputError):
    """Context text that cannot be tokenized."""


class QueueFull(MicroturnError):
    """A bounded queue has no room for this now; nothing of it was taken."""


class SessionClosed(MicroturnError):
    """The session has ended; `reason` says why."""

    def __init__(self, session_id: str, reason: CloseReason) -> None:
        super().__init__(f"session {session_id} is closed ({reason}); open a new one")
        self.reason = reason


class RuntimeFull(MicroturnError):
    """A session is refused. `reason` says for want of what: "slots", "time" (its ticks, or others',
    are predicted to be late) or "memory"; `retry_after_ms` hints when asking again makes sense.
    """

    def __init__(self, reason: str, detail: str, retry_after_ms: int) -> None:
        super().__init__(f"{detail}; try again in {retry_after_ms} ms")
        self.reason = reason
        self.retry_after_ms = retry_after_ms


class RuntimeClosed(MicroturnError):
    """The runtime was closed, or its clock thread died of the error it was raised from."""


class EngineLost(MicroturnError):
    """An engine cannot go on: raised by its step, it ends the clock thread and every session."""


class DumpError(MicroturnError, ValueError):
    """A dump that cannot be read, or not by this version, or not with this model."""


class SnapshotError(MicroturnError, ValueError):
    """A snapshot that cannot be taken now, or cannot be read, or not by this version or model."""


class BackgroundError(MicroturnError):
    """A background model that gave no answer, or none of the form that is wanted."""
