"""From a preset's name or a checkpoint folder to a family the runtime can step."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from microturn.model.interaction.config import InteractionConfig
from microturn.model.interaction.model import InteractionModel
from microturn.model.interaction.presets import preset as preset_config
from microturn.model.interaction.step import InteractionFamily
from microturn.model.interaction.tokenizer import FileTokenizer

FORMAT = 1
CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer.json"


def num_parameters(config: InteractionConfig) -> int:
    """Stored values of a model of these sizes; nothing is allocated."""
    with torch.device("meta"):
        return sum(t.numel() for t in InteractionModel(config).state_dict().values())


def load(
    preset: str | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    *,
    tick_ms: int = 100,
    seed: int = 0,
) -> InteractionFamily:
    """A model on the CPU in fp32: a preset with seeded random weights ("untrained"), or a
    checkpoint.

    Exactly one of preset and checkpoint. Raises ValueError on an unknown preset, a tick that does
    not fit or a checkpoint that does not match; FileNotFoundError; MemoryError when it cannot fit.
    """
    if (preset is None) == (checkpoint is None):
        raise ValueError("give exactly one of preset and checkpoint")
    if checkpoint is not None:
        return _load_checkpoint(Path(checkpoint), tick_ms)
    assert preset is not None
    config = preset_config(preset)
    config.tick_shape(tick_ms)
    _check_memory(config)
    model = InteractionModel(config)
    model.reset_parameters(torch.Generator().manual_seed(seed))
    return InteractionFamily(model, tick_ms=tick_ms, tokenizer=_packaged_tokenizer(config))


def save(family: InteractionFamily, folder: str | os.PathLike[str]) -> None:
    """Writes config.json, model.safetensors (fp16) and tokenizer.json; the folder is made if
    need be.
    """
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    header = {
        "format": FORMAT,
        "family": "interaction",
        "trained": family.trained,
        "model": family.config.to_dict(),
    }
    (path / CONFIG).write_text(json.dumps(header, indent=1) + "\n")
    weights = {k: v.half().contiguous() for k, v in family.model.state_dict().items()}
    save_file(weights, str(path / WEIGHTS))
    if family.tokenizer is not None:
        family.tokenizer.save(path / TOKENIZER)


def _load_checkpoint(folder: Path, tick_ms: int) -> InteractionFamily:
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{folder} is not a checkpoint: it has no {name}; a checkpoint folder holds "
                f"{CONFIG}, {WEIGHTS} and, for text, {TOKENIZER}"
            )
    header = json.loads((folder / CONFIG).read_text())
    if header.get("family") != "interaction" or header.get("format") != FORMAT:
        raise ValueError(
            f"{folder / CONFIG}: family {header.get('family')!r} format {header.get('format')!r} "
            f"cannot be read; this version reads family 'interaction' format {FORMAT}"
        )
    config = InteractionConfig.from_dict(header["model"])
    config.tick_shape(tick_ms)
    _check_memory(config)
    model = InteractionModel(config)
    tensors = load_file(str(folder / WEIGHTS))
    want = model.state_dict()
    for name in sorted(want.keys() | tensors.keys()):
        if name not in tensors:
            raise ValueError(f"{folder / WEIGHTS} lacks {name} {list(want[name].shape)}")
        if name not in want:
            raise ValueError(f"{folder / WEIGHTS} has an extra {name} {list(tensors[name].shape)}")
        if tensors[name].shape != want[name].shape:
            raise ValueError(
                f"{folder / WEIGHTS}: {name} is {list(tensors[name].shape)}, "
                f"the config asks for {list(want[name].shape)}"
            )
    model.load_state_dict(tensors)
    tokenizer = folder / TOKENIZER
    return InteractionFamily(
        model,
        tick_ms=tick_ms,
        trained=bool(header.get("trained")),
        tokenizer=FileTokenizer(tokenizer) if tokenizer.is_file() else None,
    )


def _packaged_tokenizer(config: InteractionConfig) -> FileTokenizer | None:
    if config.tokenizer is None:
        return None
    return FileTokenizer(Path(__file__).parent / config.tokenizer)


def _check_memory(config: InteractionConfig) -> None:
    need = 4 * num_parameters(config)
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    have = int(fields["MemAvailable"].split()[0]) * 1024
    if need > have:
        raise MemoryError(
            f"{config.name} needs {need / 1e9:,.1f} GB of memory in fp32, {have / 1e9:,.1f} GB are "
            f"free; take a smaller preset"
        )
