"""Presets carry the sizes and ids that spec/interaction.md decides; files round-trip."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from microturn.model.interaction import (
    InteractionConfig,
    InteractionModel,
    load,
    preset,
    save,
)
from microturn.model.interaction.presets import TINY_CODEC
from microturn.model.mimi import load_mimi


def test_small_has_the_published_sizes() -> None:
    config = preset("interaction-small")
    with torch.device("meta"):
        model = InteractionModel(config)

    def stored(part: torch.nn.Module | None) -> int:
        assert part is not None
        return sum(t.numel() for t in part.state_dict().values())

    assert stored(model.trunk) == 263_655_199_274
    assert stored(model.visual) == 64_080_384
    assert stored(model.audio) == 5_246_976
    heads = stored(model) - stored(model.trunk) - stored(model.visual) - stored(model.audio)
    assert heads == stored(model.depth) + stored(model.codec) + 8 * 2049 * 4096 + 4096
    assert (config.listen_id, config.delegate_id, config.start_id) == (200_058, 200_059, 200_060)
    assert config.trunk.global_layers == (5, 11, 17, 23, 29, 35, 41)
    assert (config.codec.num_codebooks, config.codec.codebook_size) == (8, 2048)


@pytest.mark.parametrize("name", ["interaction-tiny", "interaction-mini", "interaction-small"])
def test_a_tick_is_whole_slots(name: str) -> None:
    config = preset(name)
    shape = config.tick_shape(100)
    assert (shape.frames, shape.input_samples, shape.output_samples) == (2, 1600, 2400)
    assert config.tick_shape(200).frames == 4
    assert config.codec.frame_size == 1200
    for wrong in (0, -50, 75, 3200):
        with pytest.raises(ValueError, match="tick_ms"):
            config.tick_shape(wrong)


def test_tiny_fits_its_file_size() -> None:
    """24 MB in fp16 is what ships (spec/interaction.md); the codec's encoder stays at home."""
    with torch.device("meta"):
        model = InteractionModel(preset("interaction-tiny"))
    assert 2 * sum(t.numel() for t in model.state_dict().values()) <= 23.9e6


def test_unknown_preset_lists_the_known() -> None:
    with pytest.raises(ValueError, match=r"'tiny'; known: interaction-tiny, interaction-mini"):
        load(preset="tiny")
    with pytest.raises(ValueError, match="exactly one"):
        load()


def test_the_published_size_does_not_fit_here_and_says_so() -> None:
    with pytest.raises(MemoryError, match="interaction-small needs"):
        load(preset="interaction-small")


def test_parts_that_do_not_fit_are_named() -> None:
    tiny = preset("interaction-tiny")
    depth = dataclasses.replace(tiny.depth, num_codebooks=3)
    with pytest.raises(ValueError, match=r"depth.num_codebooks must be 2 here, got 3"):
        dataclasses.replace(tiny, depth=depth)


def test_config_survives_json() -> None:
    tiny = preset("interaction-tiny")
    again = InteractionConfig.from_dict(json.loads(json.dumps(tiny.to_dict())))
    assert again == tiny
    broken = tiny.to_dict() | {"tongue": 1}
    with pytest.raises(ValueError, match="unknown fields"):
        InteractionConfig.from_dict(broken)


def test_tiny_speaks_with_the_codec_that_ships() -> None:
    """Whatever the seed, trained or not; the rest of it follows the seed unless it is trained."""
    one, other = (
        load(preset="interaction-tiny", seed=seed, trained=False).model for seed in (0, 1)
    )
    shipped = load_mimi(TINY_CODEC, config=preset("interaction-tiny").codec).decoder
    for name, value in shipped.state_dict().items():
        assert torch.equal(one.codec.state_dict()[name], value), name
        assert torch.equal(other.codec.state_dict()[name], value), name
    assert not torch.equal(one.code_table, other.code_table)


def test_saved_weights_load_again(tmp_path: Path) -> None:
    family = load(preset="interaction-tiny", seed=3)
    save(family, tmp_path)
    again = load(checkpoint=tmp_path)
    for (name, a), (_, b) in zip(
        family.model.state_dict().items(), again.model.state_dict().items(), strict=True
    ):
        assert torch.equal(a.half().float(), b.float()), name
    assert again.tokenizer is not None
    assert again.tokenizer.encode("<speak>stop") == family.tokenizer.encode("<speak>stop")  # type: ignore[union-attr]


def test_a_checkpoint_that_is_none_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no config\.json"):
        load(checkpoint=tmp_path)


def test_text_goes_to_ids_and_back() -> None:
    tokenizer = load(preset="interaction-tiny").tokenizer
    assert tokenizer is not None
    text = "remind me every 14 seconds, until i ask zurich to stop!"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    family = load(preset="interaction-tiny")
    assert list(family.speak_ids) == tokenizer.encode("<speak>")
    assert tokenizer.decode([family.listen_id, family.delegate_id]) == ""
