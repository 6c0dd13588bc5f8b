"""microturn's public door: full-duplex interaction models in real time.

    from microturn.runtime import Runtime

Names are loaded when first used: importing this package imports no torch.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from microturn.model.family import Sampling as Sampling
    from microturn.runtime.background import Answer as Answer
    from microturn.runtime.background import DelegationRequest as DelegationRequest
    from microturn.runtime.background import HttpBackground as HttpBackground
    from microturn.runtime.clock import Clock as Clock
    from microturn.runtime.clock import FastClock as FastClock
    from microturn.runtime.clock import RealClock as RealClock
    from microturn.runtime.clock import VirtualClock as VirtualClock
    from microturn.runtime.config import RuntimeConfig as RuntimeConfig
    from microturn.runtime.conversation import Line as Line
    from microturn.runtime.conversation import Source as Source
    from microturn.runtime.delegation import DelegationEvent as DelegationEvent
    from microturn.runtime.delegation import DelegationFailure as DelegationFailure
    from microturn.runtime.delegation import DelegationKind as DelegationKind
    from microturn.runtime.errors import AudioError as AudioError
    from microturn.runtime.errors import BackgroundError as BackgroundError
    from microturn.runtime.errors import CloseCode as CloseCode
    from microturn.runtime.errors import CloseReason as CloseReason
    from microturn.runtime.errors import ConfigError as ConfigError
    from microturn.runtime.errors import ContextError as ContextError
    from microturn.runtime.errors import DumpError as DumpError
    from microturn.runtime.errors import ImageError as ImageError
    from microturn.runtime.errors import InputError as InputError
    from microturn.runtime.errors import MicroturnError as MicroturnError
    from microturn.runtime.errors import QueueFull as QueueFull
    from microturn.runtime.errors import RuntimeClosed as RuntimeClosed
    from microturn.runtime.errors import RuntimeFull as RuntimeFull
    from microturn.runtime.errors import SessionClosed as SessionClosed
    from microturn.runtime.errors import SnapshotError as SnapshotError
    from microturn.runtime.image_input import Video as Video
    from microturn.runtime.lateness import LatenessPolicy as LatenessPolicy
    from microturn.runtime.output import Output as Output
    from microturn.runtime.output import TextEvent as TextEvent
    from microturn.runtime.replayer import ReplayReport as ReplayReport
    from microturn.runtime.replayer import dumped_sessions as dumped_sessions
    from microturn.runtime.replayer import read_header as read_header
    from microturn.runtime.replayer import replay as replay
    from microturn.runtime.runtime import Runtime as Runtime
    from microturn.runtime.session import Session as Session
    from microturn.runtime.session import SessionStats as SessionStats
    from microturn.runtime.snapshot import SnapshotInfo as SnapshotInfo

    __version__: str

_HOMES = {
    "model.family": ("Sampling",),
    "runtime.background": ("Answer", "DelegationRequest", "HttpBackground"),
    "runtime.clock": ("Clock", "FastClock", "RealClock", "VirtualClock"),
    "runtime.config": ("RuntimeConfig",),
    "runtime.conversation": ("Line", "Source"),
    "runtime.delegation": ("DelegationEvent", "DelegationFailure", "DelegationKind"),
    "runtime.errors": (
        "AudioError",
        "BackgroundError",
        "CloseCode",
        "CloseReason",
        "ConfigError",
        "ContextError",
        "DumpError",
        "ImageError",
        "InputError",
        "MicroturnError",
        "QueueFull",
        "RuntimeClosed",
        "RuntimeFull",
        "SessionClosed",
        "SnapshotError",
    ),
    "runtime.image_input": ("Video",),
    "runtime.lateness": ("LatenessPolicy",),
    "runtime.output": ("Output", "TextEvent"),
    "runtime.replayer": ("ReplayReport", "dumped_sessions", "read_header", "replay"),
    "runtime.runtime": ("Runtime",),
    "runtime.session": ("Session", "SessionStats"),
    "runtime.snapshot": ("SnapshotInfo",),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [*sorted(_HOME), "__version__"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        try:
            return version("microturn")
        except PackageNotFoundError:
            return "unknown"
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"microturn.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
