"""tokenizer.json to ids and back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path


class FileTokenizer:
    """A `tokenizer.json` of the Hugging Face format; ids it does not know (output specials) are
    silent.
    """

    def __init__(self, path: Path) -> None:
        """Raises ValueError when the file cannot be read as a tokenizer."""
        from tokenizers import Tokenizer as _Tokenizer  # a model without text does without it

        try:
            self._tokenizer = _Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise ValueError(f"{path} is not a readable tokenizer.json: {error}") from error
        self._size = self._tokenizer.get_vocab_size()

    def save(self, path: Path) -> None:
        self._tokenizer.save(str(path))

    def encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int]) -> str:
        known = [i for i in ids if 0 <= i < self._size]
        return str(self._tokenizer.decode(known, skip_special_tokens=True)) if known else ""

    def piece(self, token_id: int) -> str:
        """The token as it joins a transcript: a leading space where it opens a word."""
        token = self._tokenizer.id_to_token(token_id) if 0 <= token_id < self._size else None
        if token is None:
            return ""
        if token.startswith("##"):
            return str(token[2:])
        text = self.decode([token_id])
        return text if text[:1] in {"", " ", *".,?!;:')"} else " " + text

    def stream(self) -> Callable[[int], str]:
        """Call it with one id after the other: the text that is whole with it. Added tokens are
        silent.
        """
        from tokenizers.decoders import DecodeStream

        stream = DecodeStream(skip_special_tokens=True)

        def push(token: int) -> str:
            known = self._tokenizer.id_to_token(token) is not None
            return (stream.step(self._tokenizer, token) or "") if known else ""

        return push

    def special_tokens(self, prefix: str) -> frozenset[int]:
        """The ids of added tokens whose names begin with `prefix`."""
        added = self._tokenizer.get_added_tokens_decoder()
        return frozenset(i for i, token in added.items() if token.content.startswith(prefix))

    def special_ids(self, token: str) -> tuple[int, ...]:
        """The id of an added token, empty when the vocabulary has none."""
        found = self._tokenizer.token_to_id(token)
        return () if found is None else (int(found),)
