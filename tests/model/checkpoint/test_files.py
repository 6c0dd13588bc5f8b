"""Files: the safetensors library reads what we write and we read what it writes, by slices."""

from __future__ import annotations

import json
import resource
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from microturn.model.checkpoint import (
    INDEX,
    Checkpoint,
    CheckpointError,
    Item,
    Slot,
    held_items,
    stream,
    streaming,
    write_checkpoint,
    write_file,
)
from microturn.model.checkpoint.shard import CODES, DTYPES


def of_every_kind() -> dict[str, Tensor]:
    """Every dtype, sizes that leave the next one unaligned, no rows, no values."""
    tensors = {
        code: torch.randint(0, 2, (3, 5)).to(dtype)
        for code, dtype in DTYPES.items()
        if code != "F8_E8M0"
    }
    scales = torch.tensor([1, 127, 254], dtype=torch.uint8).view(torch.float8_e8m0fnu)
    return {
        **tensors,
        "F8_E8M0": scales,
        "scalar": torch.tensor(3.5),
        "empty": torch.empty(0, 4),
        "no columns": torch.empty(4, 0),
    }


def same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.float(), b.float())


def test_the_library_reads_what_we_write(tmp_path: Path) -> None:
    tensors = of_every_kind()
    write_file(tmp_path / "x.safetensors", held_items(tensors))
    read = load_file(tmp_path / "x.safetensors")
    assert read.keys() == tensors.keys()
    assert all(same(read[name], tensor) for name, tensor in tensors.items())


def test_we_read_what_the_library_writes(tmp_path: Path) -> None:
    tensors = of_every_kind()
    save_file(tensors, tmp_path / "x.safetensors", metadata={"format": "pt"})
    read = Checkpoint(tmp_path / "x.safetensors")
    assert read.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert same(read.rows(name), tensor), name
        if tensor.dim():
            assert same(read.rows(name, 1, 3), tensor[1:3]), name
            assert same(read.rows(name, -1), tensor[-1:]), name


def test_values_that_are_not_aligned_are_read(tmp_path: Path) -> None:
    values = torch.arange(6, dtype=torch.float32)
    header = {
        "bytes": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]},
        "floats": {"dtype": "F32", "shape": [2, 3], "data_offsets": [3, 27]},
    }
    text = json.dumps(header).encode()
    data = b"abc" + values.numpy().tobytes()
    (tmp_path / "x.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)
    read = Checkpoint(tmp_path / "x.safetensors")
    assert torch.equal(read.rows("floats", 1), values.view(2, 3)[1:])


def test_shards_hold_no_more_than_asked_and_load_as_one(tmp_path: Path) -> None:
    tensors = {f"t{i}": torch.randn(i + 1, 100) for i in range(12)}
    write_checkpoint(tmp_path, held_items(tensors), shard_bytes=8000)
    files = sorted(tmp_path.glob("model-*"))
    assert [f.name for f in files] == [
        f"model-{i + 1:05d}-of-{len(files):05d}.safetensors" for i in range(len(files))
    ]
    assert len(files) > 3
    assert all(f.stat().st_size <= 8000 + 1000 for f in files)
    index = json.loads((tmp_path / INDEX).read_text())
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in tensors.values())
    read = Checkpoint(tmp_path)
    assert read.nbytes == index["metadata"]["total_size"]
    assert all(torch.equal(read.rows(name), tensor) for name, tensor in tensors.items())
    write_checkpoint(tmp_path, held_items(tensors), shard_bytes=8000)
    with pytest.raises(CheckpointError, match=r"holds model-00001-of-.* another checkpoint"):
        write_checkpoint(tmp_path, held_items(tensors))


def test_slices_make_the_whole_and_progress_counts_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "SLICE_BYTES", 1000)
    tensors = {"a": torch.randn(33, 7, 3).bfloat16(), "b": torch.tensor(2.0), "c": torch.randn(9)}
    written: list[tuple[int, int]] = []
    items = held_items(tensors)
    write_checkpoint(tmp_path, items, progress=lambda *n: written.append(n))
    into = {name: torch.empty(tensor.shape) for name, tensor in tensors.items()}
    seen: list[tuple[int, int]] = []
    slots = [Slot(name, target) for name, target in into.items()]
    stream(Checkpoint(tmp_path), slots, progress=lambda *n: seen.append(n))
    assert all(torch.equal(into[name], tensor.float()) for name, tensor in tensors.items())
    total = sum(tensor.nbytes for tensor in tensors.values())
    for calls in (seen, written):
        assert len(calls) >= 4
        assert [done for done, _ in calls] == sorted({done for done, _ in calls})
        assert calls[-1] == (total, total) and {whole for _, whole in calls} == {total}


def test_opening_reads_no_values_and_a_column_slice_reads_its_part(tmp_path: Path) -> None:
    """256 MB are mapped; the memory of this process grows by a few."""

    def resident() -> int:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * resource.getpagesize()

    rows, columns = 8192, 16384
    line = torch.arange(columns).remainder(251).to(torch.bfloat16)
    item = Item("w", torch.bfloat16, (rows, columns), lambda a, b: line.expand(b - a, columns))
    write_checkpoint(tmp_path, [item])
    before = resident()
    mapped = Checkpoint(tmp_path).rows("w")
    assert mapped.nbytes == 268_435_456
    assert resident() - before < 4e6
    mine = mapped[:256, 4096:8192].clone()
    assert torch.equal(mine, line[4096:8192].expand(256, -1))
    assert resident() - before < 40e6
    del mapped
    assert resident() - before < 8e6


def test_writing_to_a_mapping_changes_no_file(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, held_items({"w": torch.ones(4)}))
    read = Checkpoint(tmp_path)
    read.rows("w").zero_()
    assert torch.equal(read.rows("w"), torch.ones(4))


def test_a_folder_without_a_checkpoint_says_what_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no model\.safetensors and no model"):
        Checkpoint(tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        Checkpoint(tmp_path / "absent.safetensors")


def test_a_write_that_fails_leaves_no_file_under_its_name(tmp_path: Path) -> None:
    item = Item("w", torch.float32, (2, 3), lambda a, b: torch.zeros(b - a, 4))
    with pytest.raises(ValueError, match=r"w gave rows of \[2, 4\], wanted \[2, 3\]"):
        write_checkpoint(tmp_path, [item])
    assert not (tmp_path / "model.safetensors").exists()
    twice = [*held_items({"w": torch.zeros(2)}), *held_items({"w": torch.zeros(2)})]
    with pytest.raises(ValueError, match="w is to be written twice"):
        write_checkpoint(tmp_path, twice)


def test_codes_and_dtypes_are_one_to_one() -> None:
    assert {CODES[dtype]: dtype for dtype in CODES} == dict(DTYPES)
