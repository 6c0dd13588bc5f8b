"""The chat format of a release: its template and its tokenizer, from messages to ids and back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from microturn.model.inkling.release_config import NAME
from microturn.model.interaction.tokenizer import FileTokenizer

TEMPLATE, LISTED = "chat_template.jinja", "tokenizer_config.json"
DEFAULT_EOS = 200_006
AUDIO, IMAGE = "audio", "image"
DEFAULT_PLACEHOLDERS = {AUDIO: 200_053, IMAGE: 200_054}
CONTENT, THINKING = "<|content_", "<|content_thinking|>"
"""What begins the name of a marker of content, and the marker of what is not for the listener."""

Message = Mapping[str, Any]


class ChatError(ValueError):
    """A folder or a chat that cannot be rendered. The text says what is wrong where."""


@dataclass(frozen=True)
class ChatFormat:
    """Made by `read_chat_format`.

    names         the tokenizer's special tokens by their roles, which templates may use
    eos_ids       any of these ends the reply
    placeholders  by kind ("audio", "image"): the id that stands for one recording or image in a
                  rendered chat, and for one of its rows in the model's input
    """

    folder: Path
    tokenizer: FileTokenizer
    template: str
    names: Mapping[str, str]
    eos_ids: frozenset[int]
    placeholders: Mapping[str, int]

    def render(self, messages: Sequence[Message]) -> str:
        """The chat as text, up to where the model's reply begins. Raises ChatError."""
        environment = _environment()
        try:
            return str(
                environment.from_string(self.template).render(
                    **self.names,
                    messages=list(messages),
                    tools=None,
                    documents=None,
                    add_generation_prompt=True,
                )
            )
        except Exception as error:  # a template may raise whatever Python does
            raise ChatError(
                f"the chat template of {self.folder} cannot be rendered: "
                f"{type(error).__name__}: {error}"
            ) from error

    def encode(self, messages: Sequence[Message], counts: Mapping[str, Sequence[int]]) -> list[int]:
        """The chat as ids, every placeholder repeated for the rows of what it stands for.

        counts: by kind, the rows of each recording or image in order. Raises ChatError, also where
        the rendered chat has not one placeholder for each.
        """
        ids = self.tokenizer.encode(self.render(messages))
        kinds = {token: kind for kind, token in self.placeholders.items()}
        waiting = {kind: list(counts.get(kind, ())) for kind in self.placeholders}
        for kind, token in self.placeholders.items():
            if ids.count(token) != len(waiting[kind]):
                raise ChatError(
                    f"the chat as {self.folder} renders it has {ids.count(token)} placeholders "
                    f"for {kind} (id {token}), {len(waiting[kind])} are wanted, one for each given"
                )
        expanded: list[int] = []
        for token in ids:
            expanded += [token] * (waiting[kinds[token]].pop(0) if token in kinds else 1)
        if not expanded:
            raise ChatError(f"the chat as {self.folder} renders it is empty")
        return expanded

    def reader(self, prompt: Sequence[int]) -> ReplyReader:
        """Of the reply to this prompt."""
        return ReplyReader(self.tokenizer, prompt)


class ReplyReader:
    """Ids of a reply, one by one, to text and to thoughts.

    Content that a marker `<|content_thinking|>` begins is thought, until another `<|content_...|>`
    comes.
    """

    def __init__(self, tokenizer: FileTokenizer, prompt: Sequence[int]) -> None:
        self._decode = tokenizer.stream()
        self._markers = tokenizer.special_tokens(CONTENT)
        self._thought = tokenizer.special_ids(THINKING)
        self.thinking = bool(prompt) and prompt[-1] in self._thought
        self.text = ""
        self.thoughts = ""

    def push(self, token: int) -> str:
        """What can be shown now, part of `thoughts` while `thinking`, else of `text`."""
        if token in self._markers:
            self.thinking = token in self._thought
        piece = self._decode(token)
        if self.thinking:
            self.thoughts += piece
        else:
            self.text += piece
        return piece


def read_chat_format(folder: Path) -> ChatFormat:
    """Reads tokenizer.json, the template (chat_template.jinja, else in tokenizer_config.json) and
    the ids that config.json and generation_config.json name; the release's where they name none.

    Raises ChatError naming the file that is missing or cannot be read.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ChatError(f"{folder} has no tokenizer.json, so it cannot read or write text")
    try:
        tokenizer = FileTokenizer(path)
    except ValueError as error:
        raise ChatError(str(error)) from error
    listed = _read(folder / LISTED)
    config = _read(folder / NAME)
    names = {k: t for k, v in listed.items() if k.endswith("_token") if (t := _token(v))}
    return ChatFormat(
        folder,
        tokenizer,
        _template(folder, listed),
        names,
        _eos(config, _read(folder / "generation_config.json")),
        {k: _id(config.get(f"{k}_token_id"), v) for k, v in DEFAULT_PLACEHOLDERS.items()},
    )


def read_image_scale(folder: Path) -> tuple[float, int | None] | None:
    """What the release's processor multiplies the sides of an image with before it is cut into
    patches, and the long edge that this may not grow beyond; None for neither.

    Raises ChatError on values that are no such numbers.
    """
    for name in ("processor_config.json", "preprocessor_config.json"):
        values = _read(folder / name)
        values = values.get("image_processor", values)
        factor = values.get("rescale_image_frac") if isinstance(values, dict) else None
        if factor is None:
            continue
        most = values.get("rescale_image_max_upscaled_long_edge", 2048)
        good = isinstance(factor, int | float) and factor > 0
        if not good or not (most is None or (type(most) is int and most > 0)):
            raise ChatError(
                f"{folder / name}: rescale_image_frac and its long edge must be positive numbers, "
                f"got {factor!r:.80} and {most!r:.80}"
            )
        return float(factor), most
    return None


def scaled_size(height: int, width: int, factor: float, most: int | None) -> tuple[int, int]:
    """Sides times `factor`, rounded half up; a long edge grows to `most` at the furthest.

    Worked example: 1500 x 1000 pixels by 2, at most 2048: 2048 x 1365.
    """
    long = max(height, width)
    wanted = long * factor if most is None else min(long * factor, max(most, long))
    tall, wide = (max(1, int(side * wanted / long + 0.5)) for side in (height, width))
    return tall, wide


def _environment() -> Any:
    try:
        import jinja2.ext
        import jinja2.sandbox
    except ImportError:
        raise ChatError(
            "chat templates are rendered by jinja2, which is not installed: "
            "pip install 'microturn[turn]'"
        ) from None

    class Generation(jinja2.ext.Extension):
        """`{% generation %}...{% endgeneration %}` marks replies for training: its body."""

        tags = {"generation"}  # noqa: RUF012  (jinja2 declares it so)

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda wanted: datetime.now().strftime(wanted)
    return environment


def _to_json(value: Any, **options: Any) -> str:
    return json.dumps(value, **{"ensure_ascii": False, **options})


def _refuse(reason: str) -> None:
    raise ChatError(reason)


def _read(path: Path) -> dict[str, Any]:
    """{} when there is no such file."""
    try:
        read = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise ChatError(f"{path} cannot be read: {error}") from error
    if not isinstance(read, dict):
        raise ChatError(f"{path} must be a JSON object, got {type(read).__name__}")
    return read


def _template(folder: Path, listed: Mapping[str, Any]) -> str:
    path = folder / TEMPLATE
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise ChatError(f"{path} cannot be read: {error}") from error
    found = listed.get("chat_template")
    if isinstance(found, list):
        named = {t.get("name"): t.get("template") for t in found if isinstance(t, dict)}
        found = named.get("default")
    if not isinstance(found, str):
        raise ChatError(
            f"{folder} has no chat template, neither {TEMPLATE} nor chat_template in {LISTED}; "
            f"take the files of an instruction-tuned release"
        )
    return found


def _token(value: Any) -> str | None:
    value = value.get("content") if isinstance(value, dict) else value
    return value if isinstance(value, str) else None


def _id(value: Any, otherwise: int) -> int:
    return value if type(value) is int else otherwise


def _eos(config: Mapping[str, Any], generation: Mapping[str, Any]) -> frozenset[int]:
    text = config.get("text_config")
    for where in (generation, config, text if isinstance(text, dict) else {}):
        value = where.get("eos_token_id")
        ids = value if isinstance(value, list) else [value]
        if value is not None and all(type(i) is int for i in ids):
            return frozenset(ids)
    return frozenset({DEFAULT_EOS})
