"""Background models: what they are asked, what they answer, and one behind HTTP. No torch."""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from microturn.runtime.conversation import Line, lines_from_json
from microturn.runtime.errors import BackgroundError, ConfigError


@dataclass(frozen=True)
class DelegationRequest:
    """What a background model is asked.

    offset_ms  the session's media time of the `<delegate>` that asked
    context    the conversation until then
    cancelled  set when nobody waits for the answer any more
    """

    id: str
    session_id: str
    offset_ms: float
    context: tuple[Line, ...]
    cancelled: threading.Event = field(default_factory=threading.Event, compare=False)

    def to_json(self) -> dict[str, Any]:
        """As HttpBackground sends it."""
        return {
            "id": self.id,
            "session": self.session_id,
            "offset_ms": self.offset_ms,
            "context": [line._asdict() for line in self.context],
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> DelegationRequest:
        """What `to_json` gave. Raises KeyError, ValueError."""
        context = lines_from_json(values["context"])
        return cls(values["id"], values["session"], values["offset_ms"], context)


@dataclass(frozen=True)
class Answer:
    """Text that enters the session's context; speak asks its model to voice it, otherwise the model
    knows it and says it when it fits.
    """

    text: str
    speak: bool = False


Background = Callable[[DelegationRequest], Answer | str]
"""Called in a thread of its own, several at once. A str is an Answer that need not be voiced."""


class HttpBackground:
    """A background model behind HTTP.

        runtime = Runtime(background=HttpBackground("http://127.0.0.1:9000/delegate"))

    POSTs {"id", "session", "offset_ms", "context": [{"ms", "source", "text"}, ...]} as JSON and
    expects {"text": "...", "speak": false} back with status 200.

    timeout_s  for the whole exchange; headers go with every request
    """

    def __init__(
        self,
        url: str,
        *,
        timeout_s: float = 30.0,
        max_bytes: int = 1_000_000,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Raises ConfigError."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise ConfigError(f"a background model's url must be http(s)://host/..., got {url!r}")
        if not timeout_s > 0 or max_bytes < 1:
            raise ConfigError(
                f"timeout_s and max_bytes must be above 0, got {timeout_s} and {max_bytes}"
            )
        self._url = url
        self._timeout = timeout_s
        self._max_bytes = max_bytes
        self._headers = {"Content-Type": "application/json", **(headers or {})}

    def __call__(self, request: DelegationRequest) -> Answer:
        """Raises BackgroundError."""
        body = json.dumps(request.to_json()).encode()
        ask = urllib.request.Request(self._url, body, self._headers, method="POST")
        try:
            reply = self._exchange(ask)
        except urllib.error.HTTPError as error:
            error.close()
            raise BackgroundError(
                f"{self._url} answered {error.code} {error.reason}, 200 is wanted"
            ) from None
        except OSError as error:
            raise BackgroundError(f"{self._url} gave no answer: {error}") from None
        return _answer(self._url, reply)

    def _exchange(self, ask: urllib.request.Request) -> bytes:
        """urllib's timeout is for each read; a server that drips must end in time too."""
        end = time.monotonic() + self._timeout
        reply = b""
        with urllib.request.urlopen(ask, timeout=self._timeout) as response:
            while part := response.read1(min(65_536, self._max_bytes + 1 - len(reply))):
                reply += part
                if len(reply) > self._max_bytes:
                    raise BackgroundError(
                        f"{self._url} answered with more than {self._max_bytes} bytes"
                    )
                if time.monotonic() > end:
                    raise TimeoutError(f"not done after {self._timeout:g} s")
        return reply


def _answer(url: str, reply: bytes) -> Answer:
    try:
        values = json.loads(reply)
    except ValueError:
        raise BackgroundError(f"{url} answered with something that is not JSON") from None
    text = values.get("text") if isinstance(values, dict) else None
    speak = values.get("speak", False) if isinstance(values, dict) else None
    if not isinstance(text, str) or not isinstance(speak, bool):
        raise BackgroundError(f'{url} must answer {{"text": "...", "speak": false}}, both typed so')
    return Answer(text, speak)
