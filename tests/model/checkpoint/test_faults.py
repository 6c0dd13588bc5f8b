"""60 faults planted into a sharded release: each ends in words that name the file and the tensor.

A seed picks the tensor and the place. None may load, and none may raise anything else.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from microturn.model.checkpoint import INDEX, Checkpoint, CheckpointError
from microturn.model.inkling.names import load_released
from microturn.model.interaction import load

SEEDS = range(3)


class Folder:
    """A copy of a release, to be broken."""

    def __init__(self, path: Path, seed: int) -> None:
        self.path, self.random = path, random.Random(seed)
        self.index = json.loads((path / INDEX).read_text())
        self.tensor = self.random.choice(sorted(self.index["weight_map"]))
        self.shard = self.index["weight_map"][self.tensor]

    @property
    def file(self) -> Path:
        return self.path / self.shard

    def write_index(self) -> None:
        (self.path / INDEX).write_text(json.dumps(self.index))

    def header(self) -> tuple[dict[str, Any], bytes]:
        raw = self.file.read_bytes()
        length = int.from_bytes(raw[:8], "little")
        return json.loads(raw[8 : 8 + length]), raw[8 + length :]

    def rewrite(self, header: dict[str, Any] | str, data: bytes) -> None:
        text = header if isinstance(header, str) else json.dumps(header)
        self.file.write_bytes(len(text).to_bytes(8, "little") + text.encode() + data)

    def edit(self, **fields: Any) -> None:
        header, data = self.header()
        header[self.tensor].update(fields)
        self.rewrite(header, data)

    def last(self) -> str:
        """The tensor at the end of the shard becomes the one at fault."""
        header, _ = self.header()
        header.pop("__metadata__")
        self.tensor = max(header, key=lambda name: header[name]["data_offsets"][1])
        return self.tensor


def missing(f: Folder) -> list[str]:
    header, data = f.header()
    del header[f.last()]
    end = max(e["data_offsets"][1] for e in header.values() if "data_offsets" in e)
    f.rewrite(header, data[:end])
    del f.index["weight_map"][f.tensor]
    f.write_index()
    return [str(f.path), f.tensor, "is missing, wanted ["]


def extra(f: Folder) -> list[str]:
    header, data = f.header()
    name = "model.llm.layers.7.attn_norm.weight"
    header[name] = {"dtype": "BF16", "shape": [2], "data_offsets": [len(data), len(data) + 4]}
    f.rewrite(header, data + b"\0" * 4)
    f.index["weight_map"][name] = f.shard
    f.write_index()
    return [f.shard, f"{name} [2]", "is not part of this model"]


def unknown_part(f: Folder) -> list[str]:
    header, data = f.header()
    name = "model.tongue.weight"
    header[name] = {"dtype": "BF16", "shape": [2], "data_offsets": [len(data), len(data) + 4]}
    f.rewrite(header, data + b"\0" * 4)
    f.index["weight_map"][name] = f.shard
    f.write_index()
    return [f.shard, name, "is not part of this model"]


def mis_shaped(f: Folder) -> list[str]:
    header, _ = f.header()
    shape = header[f.tensor]["shape"]
    other = [1, *shape]
    f.edit(shape=other)
    return [f.shard, f.tensor, f"is {other}, wanted {shape}"]


def of_integers(f: Folder) -> list[str]:
    header, _ = f.header()
    code = {"BF16": "I16", "F32": "I32"}[header[f.tensor]["dtype"]]
    f.edit(dtype=code)
    return [f.shard, f.tensor, f"is of dtype {code}", "BF16, F16, F32"]


def of_an_unknown_dtype(f: Folder) -> list[str]:
    f.edit(dtype="F4")
    return [f.shard, f.tensor, "of dtype F4, which is unknown"]


def wrong_size(f: Folder) -> list[str]:
    header, _ = f.header()
    shape = [n + 1 for n in header[f.tensor]["shape"]]
    f.edit(shape=shape)
    return [f.shard, f.tensor, str(shape), "data_offsets"]


def negative_shape(f: Folder) -> list[str]:
    f.edit(shape=[-1, 4])
    return [f.shard, f.tensor, "-1"]


def odd_offsets(f: Folder) -> list[str]:
    f.edit(data_offsets=f.random.choice([[0], "0", [0.0, 2.0], [True, False], None]))
    return [f.shard, f.tensor, "data_offsets"]


def overlap(f: Folder) -> list[str]:
    header, _ = f.header()
    begin, end = header[f.last()]["data_offsets"]
    if begin == 0:
        pytest.fail("a shard of one tensor")
    f.edit(data_offsets=[begin - 2, end - 2])
    return [f.shard, f.tensor, "overlaps"]


def gap(f: Folder) -> list[str]:
    header, data = f.header()
    begin, end = header[f.last()]["data_offsets"]
    header[f.tensor]["data_offsets"] = [begin + 2, end + 2]
    f.rewrite(header, data + b"\0\0")
    return [f.shard, f.tensor, "leaves a gap"]


def twice_in_a_header(f: Folder) -> list[str]:
    header, data = f.header()
    again = f", {json.dumps(f.tensor)}: {json.dumps(header[f.tensor])}}}"
    f.rewrite(json.dumps(header)[:-1] + again, data)
    return [f.shard, f.tensor, "twice"]


def in_two_shards(f: Folder) -> list[str]:
    header, data = f.header()
    other = f.random.choice(sorted(set(f.index["weight_map"].values()) - {f.shard}))
    entry, home = header[f.tensor], f.shard
    begin, end = entry["data_offsets"]
    values, f.shard = data[begin:end], other
    header, data = f.header()
    header[f.tensor] = {**entry, "data_offsets": [len(data), len(data) + len(values)]}
    f.rewrite(header, data + values)
    return [f.tensor, "two shards", home, other]


def truncated_data(f: Folder) -> list[str]:
    raw = f.file.read_bytes()
    f.last()
    f.file.write_bytes(raw[: len(raw) - f.random.randrange(1, 3)])
    return [f.shard, f.tensor, "truncated"]


def truncated_header(f: Folder) -> list[str]:
    raw = f.file.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    f.file.write_bytes(raw[: f.random.randrange(10, length)])
    return [f.shard, "truncated"]


def trailing_bytes(f: Folder) -> list[str]:
    f.last()
    f.file.write_bytes(f.file.read_bytes() + b"\0" * f.random.randrange(1, 100))
    return [f.shard, f.tensor, "bytes follow"]


def no_safetensors(f: Folder) -> list[str]:
    size = f.random.choice([0, 3, 8, 1000])
    f.file.write_bytes(f.random.choice([b"\x80\x02PK", b"<html>\n", b"\xff"]) * size)
    return [f.shard, "is not a safetensors file"]


def broken_header(f: Folder) -> list[str]:
    header, data = f.header()
    text = json.dumps(header)
    at = f.random.randrange(1, len(text) - 1)
    f.rewrite(text[:at] + "\0" + text[at:], data)
    return [f.shard, "is not a safetensors file"]


def absent_shard(f: Folder) -> list[str]:
    f.file.unlink()
    return [INDEX, f.shard, "not in the folder", "puts model."]


def index_of_another_shard(f: Folder) -> list[str]:
    shards = sorted(set(f.index["weight_map"].values()) - {f.shard})
    f.index["weight_map"][f.tensor] = f.random.choice(shards)
    f.write_index()
    return [f.tensor, f.index["weight_map"][f.tensor]]


def index_names_too_much(f: Folder) -> list[str]:
    f.index["weight_map"]["model.llm.ghost"] = f.shard
    f.write_index()
    return [INDEX, "model.llm.ghost", f.shard, "has no such tensor"]


def index_knows_too_little(f: Folder) -> list[str]:
    del f.index["weight_map"][f.tensor]
    f.write_index()
    return [INDEX, f.tensor, f.shard, "does not know"]


def index_leads_away(f: Folder) -> list[str]:
    f.index["weight_map"][f.tensor] = f"../{f.path.name}/{f.shard}"
    f.write_index()
    return [INDEX, f.tensor, "file in the folder"]


FAULTS = [
    missing,
    extra,
    unknown_part,
    mis_shaped,
    of_integers,
    of_an_unknown_dtype,
    wrong_size,
    negative_shape,
    odd_offsets,
    overlap,
    gap,
    twice_in_a_header,
    in_two_shards,
    truncated_data,
    truncated_header,
    trailing_bytes,
    no_safetensors,
    broken_header,
    absent_shard,
    index_of_another_shard,
    index_names_too_much,
    index_knows_too_little,
    index_leads_away,
]


def test_there_are_at_least_sixty() -> None:
    assert len(FAULTS) * len(SEEDS) >= 60


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_planted_fault_is_named(
    released: Path, tmp_path: Path, fault: Callable[[Folder], list[str]], seed: int
) -> None:
    shutil.copytree(released, tmp_path / "model")
    folder = Folder(tmp_path / "model", 1000 * FAULTS.index(fault) + seed)
    words = fault(folder)
    with pytest.raises(CheckpointError) as caught:
        load(checkpoint=folder.path)
    text = str(caught.value)
    assert "\n" not in text
    for word in words:
        assert word in text, f"{word!r} is not in {text!r}"


def test_without_a_fault_it_loads(released: Path, tmp_path: Path) -> None:
    shutil.copytree(released, tmp_path / "model")
    folder = Folder(tmp_path / "model", 0)
    folder.rewrite(*folder.header())
    folder.write_index()
    load(checkpoint=folder.path)


@pytest.mark.parametrize("seed", range(60))
def test_a_changed_byte_of_a_header_is_an_error_or_changes_nothing(
    released: Path, tmp_path: Path, seed: int
) -> None:
    """Blindly: one byte of one header becomes another."""
    shutil.copytree(released, tmp_path / "model")
    folder = Folder(tmp_path / "model", seed)
    raw = bytearray(folder.file.read_bytes())
    length = int.from_bytes(raw[:8], "little")
    at = folder.random.randrange(8 + length)
    raw[at] = folder.random.choice([b for b in range(256) if b != raw[at]])
    folder.file.write_bytes(raw)
    try:
        opened = Checkpoint(folder.path)
        model = load(checkpoint=folder.path)
    except CheckpointError as error:
        assert folder.shard in str(error)
        return
    whole = Checkpoint(released)
    assert opened.tensors.keys() == whole.tensors.keys()
    for name, info in whole.tensors.items():
        assert (opened.tensors[name].shape, opened.tensors[name].dtype) in (
            (info.shape, info.dtype),
            # Only the numbers could tell a swap of two floating types of one size.
            (info.shape, {torch.bfloat16: torch.float16}.get(info.dtype)),
        )
    assert model is not None


@pytest.mark.parametrize("text", ["", "[]", "{", '{"weight_map": {}}', '{"weight_map": {"a": 1}}'])
def test_an_index_that_is_none(released: Path, tmp_path: Path, text: str) -> None:
    shutil.copytree(released, tmp_path / "model")
    (tmp_path / "model" / INDEX).write_text(text)
    with pytest.raises(CheckpointError, match=r"model\.safetensors\.index\.json"):
        load(checkpoint=tmp_path / "model")


def test_a_name_twice_in_the_index(released: Path, tmp_path: Path) -> None:
    shutil.copytree(released, tmp_path / "model")
    index = tmp_path / "model" / INDEX
    text = index.read_text()
    name, shard = next(iter(json.loads(text)["weight_map"].items()))
    index.write_text(text.replace('"weight_map": {', f'"weight_map": {{"{name}": "{shard}",'))
    with pytest.raises(CheckpointError, match=f"names {name} twice"):
        load(checkpoint=tmp_path / "model")


def test_two_checkpoints_in_one_folder(released: Path, tmp_path: Path) -> None:
    shutil.copytree(released, tmp_path / "model")
    shutil.copy(next(released.glob("*.safetensors")), tmp_path / "model" / "model.safetensors")
    with pytest.raises(CheckpointError, match="holds both"):
        load(checkpoint=tmp_path / "model")


def test_a_file_that_shrinks_while_it_is_read(released: Path, tmp_path: Path) -> None:
    shutil.copytree(released, tmp_path / "model")
    opened = Checkpoint(tmp_path / "model")
    name, info = max(opened.tensors.items(), key=lambda item: item[1].end)
    assert info.file is not None
    info.file.write_bytes(info.file.read_bytes()[: info.begin + 1])
    with pytest.raises(CheckpointError, match=f"{name}.*became shorter"):
        opened.rows(name)


@pytest.mark.parametrize("value", [b"\x80\x7f", b"\x80\xff", b"\xc0\x7f"])
def test_values_that_are_not_finite(released: Path, tmp_path: Path, value: bytes) -> None:
    shutil.copytree(released, tmp_path / "model")
    name = "model.llm.layers.0.attn.wo_ud.weight"
    info = Checkpoint(tmp_path / "model").tensors[name]
    assert info.file is not None
    with info.file.open("r+b") as file:
        file.seek(info.begin)
        file.write(value)
    with pytest.raises(CheckpointError, match=f"{info.file.name}: {name} holds infinities"):
        load(checkpoint=tmp_path / "model")


def test_a_fault_leaves_a_model_as_it_was(small: Any, released: Path) -> None:
    trunk = small.trunk
    before = {name: tensor.clone() for name, tensor in trunk.state_dict().items()}
    tensors = {k: torch.zeros(2) for k in Checkpoint(released).tensors if "norm" in k}
    with pytest.raises(CheckpointError):
        load_released(trunk, tensors)
    for name, tensor in trunk.state_dict().items():
        assert torch.equal(tensor, before[name]), name
