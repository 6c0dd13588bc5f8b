"""Turn-based use of released weights, against transformers and through the command."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from typer.testing import CliRunner, Result

from microturn.model.family import Sampling
from microturn.model.inkling import turn
from microturn.model.inkling.chat import ChatError, read_chat_format, scaled_size
from microturn.model.inkling.config import TrunkConfig
from microturn.model.inkling.release import Inkling, save_release
from microturn.model.inkling.release_config import VISION, ReleaseConfig
from microturn.model.inkling.vision import VisionTower
from microturn.model.interaction import load, save
from microturn.runtime import turn as runtime_turn
from microturn.runtime.arenas import Arenas
from microturn.runtime.cli.app import app
from microturn.runtime.image_input import to_patches
from oracles.inkling import released_sizes

HIDDEN, NEW = 64, 12
SPECIAL = (
    "<|message_user|>",
    "<|message_model|>",
    "<|message_system|>",
    "<|content_text|>",
    "<|content_image|>",
    "<|content_audio_input|>",
    "<|content_thinking|>",
    "<|end_message|>",
    "<|unused_200053|>",
    "<|unused_200054|>",
    "<|end|>",
)
AUDIO_ID, IMAGE_ID, END_ID = 256 + 8, 256 + 9, 256 + 10
TEMPLATE = """\
{%- for message in messages %}
{%- if message.content is string %}
{%- set parts = [{'type': 'text', 'text': message.content}] %}
{%- else %}
{%- set parts = message.content %}
{%- endif %}
{%- for part in parts %}
{{- '<|message_' + message.role + '|>' }}
{%- if part.type == 'image' %}
{{- '<|content_image|><|unused_200054|>' }}
{%- elif part.type == 'audio' %}
{{- '<|content_audio_input|><|unused_200053|>' }}
{%- else %}
{{- '<|content_text|>' + part.text }}
{%- endif %}
{{- '<|end_message|>' }}
{%- endfor %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|message_model|>' }}{% endif %}"""
TRUNK = TrunkConfig(
    hidden_size=HIDDEN,
    num_layers=2,
    global_layers=(1,),
    num_heads=2,
    num_kv_heads=1,
    head_dim=16,
    local_num_heads=2,
    local_num_kv_heads=1,
    local_head_dim=16,
    sliding_window=8,
    global_window=512,
    d_rel=16,
    rel_extent=12,
    log_floor=16,
    log_alpha=0.1,
    num_dense_layers=1,
    dense_width=96,
    num_experts=4,
    top_k=2,
    num_shared_experts=1,
    expert_width=32,
    route_scale=8.0,
    vocab_size=288,
    unpadded_vocab_size=270,
    mup_multiplier=4.0,
    eps=1e-6,
    conv_kernel=4,
    max_rows_per_tick=128,
)


def tokenizer() -> Tokenizer:
    """Bytes, then the markers."""
    vocabulary = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    made = Tokenizer(models.BPE(vocabulary, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(name, special=True) for name in SPECIAL])
    assert made.token_to_id("<|end|>") == END_ID
    return made


def randomize(tensors: dict[str, Tensor]) -> None:
    torch.manual_seed(5)
    with torch.no_grad():
        for name, tensor in tensors.items():
            if tensor.is_floating_point():
                gain = tensor.dim() == 1 and "bias" not in name
                tensor.normal_(float(gain), 0.3 if tensor.dim() == 1 else tensor.shape[-1] ** -0.5)


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """What is heard and seen: 0.63 s at 16 kHz and a picture of two rows of three patches."""
    folder = tmp_path_factory.mktemp("given")
    rng = np.random.default_rng(0)
    samples = (0.2 * rng.standard_normal(10_080) * np.linspace(0, 1, 10_080)).astype(np.float32)
    soundfile.write(folder / "speech.wav", samples, 16_000, subtype="FLOAT")
    picture = rng.integers(0, 256, (70, 90, 3), np.uint8)
    Image.fromarray(picture).save(folder / "picture.png")
    return SimpleNamespace(
        speech=folder / "speech.wav",
        image=folder / "picture.png",
        samples=samples,
        picture=picture,
    )


def add_chat(folder: Path) -> None:
    tokenizer().save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    path = folder / "config.json"
    ids = {"audio_token_id": AUDIO_ID, "image_token_id": IMAGE_ID, "eos_token_id": END_ID}
    path.write_text(json.dumps(json.loads(path.read_text()) | ids))


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random release, saved by us."""
    model = Inkling.empty(ReleaseConfig(TRUNK, vision=VISION[1]))
    randomize({f"{p}{k}": v for p, part, _ in model.parts() for k, v in part.state_dict().items()})
    with torch.no_grad():
        model.trunk.unembedding.normal_(0, TRUNK.mup_multiplier * HIDDEN**-0.5)
    folder = tmp_path_factory.mktemp("release")
    save_release(model, folder, dtype=torch.float32)
    add_chat(folder)
    return folder


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["run", "--mode", "turn", *map(str, arguments)])


def reply(folder: Path, tmp_path: Path, *arguments: object) -> Any:
    out = tmp_path / "reply.json"
    result = invoke(
        *("--checkpoint", folder, "--out", out, "--max-tokens", NEW, "--temperature", 0),
        *arguments,
    )
    assert result.exit_code == 0, result.output
    return json.loads(out.read_text()) | {"shown": result.stdout}


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A random model that transformers saved, and its processor."""
    transformers = pytest.importorskip("transformers", minversion="5.23")
    most = {"max_position_embeddings": 1_048_576}
    text = released_sizes(TRUNK) | most | {"eos_token_id": END_ID}
    whole = transformers.InklingForConditionalGeneration(
        transformers.InklingConfig(
            text_config=text,
            audio_config={"n_mel_bins": 80, "mel_vocab_size": 16},
            vision_config={"num_hidden_layers": 1},
            image_token_id=IMAGE_ID,
            audio_token_id=AUDIO_ID,
        )
    ).eval()
    randomize(whole.state_dict())
    with torch.no_grad():
        whole.lm_head.weight.normal_(0, TRUNK.mup_multiplier * HIDDEN**-0.5)
    folder = tmp_path_factory.mktemp("saved")
    whole.save_pretrained(folder)
    add_chat(folder)
    return SimpleNamespace(
        model=whole,
        tokenizer=transformers.PreTrainedTokenizerFast(
            tokenizer_object=tokenizer(), chat_template=TEMPLATE
        ),
        extractor=transformers.InklingFeatureExtractor(),
        folder=folder,
    )


def greedy(oracle: SimpleNamespace, inputs: dict[str, Tensor]) -> list[int]:
    """Whole passes over prompt and reply so far, as transformers computes them."""
    ids: Tensor = inputs["input_ids"]
    start = ids.shape[1]
    features = {k: v for k, v in inputs.items() if k != "input_ids"}
    with torch.no_grad():
        while ids.shape[1] < start + NEW and int(ids[0, -1]) != END_ID:
            logits = oracle.model(input_ids=ids, use_cache=False, **features).logits[0, -1]
            ids = torch.cat((ids, logits.argmax()[None, None]), 1)
    return ids[0, start:].tolist()  # type: ignore[no-any-return]


@pytest.mark.oracle
@pytest.mark.parametrize("what", ["text", "audio", "image", "all"])
def test_a_greedy_reply_is_that_of_transformers(
    oracle: SimpleNamespace, given: SimpleNamespace, tmp_path: Path, what: str
) -> None:
    hears, sees = what in ("audio", "all"), what in ("image", "all")
    parts: list[dict[str, str]] = [{"type": "image"}] * sees + [{"type": "audio"}] * hears
    content: Any = [*parts, {"type": "text", "text": "Grüße, who?"}] if parts else "Grüße, who?"
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": content},
    ]
    text = oracle.tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    )
    inputs: dict[str, Tensor] = {}
    if hears:
        mels = oracle.extractor(given.samples, sampling_rate=16_000)["input_features"]
        levels = torch.as_tensor(np.asarray(mels)).clamp(-7, 2)
        centres = torch.linspace(-7, 2, 16, dtype=torch.float64).float()
        inputs["audio_input_ids"] = (levels[..., None] - centres).abs().argmin(-1)
        text = text.replace("<|unused_200053|>", "<|unused_200053|>" * levels.shape[1])
    if sees:
        patches = torch.from_numpy(to_patches(given.picture, 100))
        inputs["pixel_values"] = VisionTower(VISION[1], HIDDEN).normalize(patches)
        text = text.replace("<|unused_200054|>", "<|unused_200054|>" * len(patches))
    inputs["input_ids"] = oracle.tokenizer(text, return_tensors="pt")["input_ids"]
    made = reply(
        *(oracle.folder, tmp_path, "--prompt", "Grüße, who?", "--instructions", "Be brief."),
        *([given.speech] if hears else []),
        *(["--image", given.image] if sees else []),
    )
    assert made["prompt_ids"] == inputs["input_ids"][0].tolist()
    assert (made["rows"]["audio"], made["rows"]["image"]) == (13 * hears, 6 * sees)
    assert made["ids"] == greedy(oracle, inputs)
    assert len(set(made["ids"])) > 3


@pytest.fixture(scope="module")
def prompt(release: Path, given: SimpleNamespace) -> turn.Prompt:
    """Text, a picture and a recording in one."""
    bins = turn.audio_bins(torch.from_numpy(given.samples))
    patches = torch.from_numpy(to_patches(given.picture, 100))
    parts = [{"type": kind} for kind in ("image", "audio")]
    ids = read_chat_format(release).encode(
        [{"role": "user", "content": [{"type": "text", "text": "who? " * 40}, *parts]}],
        {"image": [len(patches)], "audio": [len(bins)]},
    )
    return turn.Prompt(torch.tensor(ids), bins, patches, AUDIO_ID, IMAGE_ID)


def ids_in_chunks_of(
    rows: int, release: Path, prompt: turn.Prompt, monkeypatch: pytest.MonkeyPatch
) -> list[int]:
    monkeypatch.setattr(runtime_turn, "MAX_ROWS", rows)
    model = runtime_turn.load_for_turn(release, len(prompt.ids) + NEW)
    how = Sampling(text_temperature=0.9, text_top_k=50)
    return runtime_turn.write(model, prompt, how=how, seed=3, eos_ids=(), max_tokens=NEW).ids


def test_a_prompt_read_in_chunks_is_answered_like_one_read_whole(
    release: Path, prompt: turn.Prompt, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = ids_in_chunks_of(len(prompt.ids), release, prompt, monkeypatch)
    for rows in (1, 7, 128):
        assert ids_in_chunks_of(rows, release, prompt, monkeypatch) == whole
    without = torch.zeros_like(prompt.bins)
    silent = turn.Prompt(prompt.ids, without, prompt.patches, AUDIO_ID, IMAGE_ID)
    assert ids_in_chunks_of(128, release, silent, monkeypatch) != whole


def test_global_layers_see_the_first_row_of_a_long_turn(release: Path, prompt: turn.Prompt) -> None:
    """Every sliding layer and the convolutions have long lost it."""
    length = len(prompt.ids)
    assert length > 8 * TRUNK.sliding_window
    model = runtime_turn.load_for_turn(release, length)
    assert model.trunk.config.attention(1).window == length
    other = prompt.ids.clone()
    other[0] = 5
    last = []
    for ids in (prompt.ids, other):
        arenas = Arenas(turn.turn_specs(model.trunk.config), 1)
        steps = turn.TurnSteps(model, arenas)
        changed = turn.Prompt(ids, prompt.bins, prompt.patches, AUDIO_ID, IMAGE_ID)
        with torch.inference_mode():
            for start in range(0, length, 128):
                stop = min(start + 128, length)
                logits = steps.append(turn.prompt_rows(model, changed, start, stop))
                arenas.commit([0], {"rows": [stop - start]}, [False])
        last.append(logits)
    assert not torch.equal(*last)


def test_an_end_id_ends_the_reply_and_the_json_says_so(
    release: Path, given: SimpleNamespace, tmp_path: Path
) -> None:
    arguments = ("--prompt", "Hello", given.speech, "--image", given.image)
    whole = reply(release, tmp_path, *arguments)
    assert (whole["ended"], len(whole["ids"])) == (False, NEW)
    assert len(whole["token_ms"]) == NEW - 1 and min(whole["prefill_ms"], *whole["token_ms"]) > 0
    # A character that the end cuts in two is left out.
    assert whole["text"].rstrip("\ufffd") == tokenizer().decode(whole["ids"]).rstrip("\ufffd")
    printed = "".join(c for c in whole["text"] if c.isprintable())
    assert len(printed) > 4 and whole["shown"].replace("\n", "").startswith(printed[:4])
    assert "cut it off" in whole["shown"]
    folder = shutil.copytree(release, tmp_path / "ending")
    end = whole["ids"][4]
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [end, 999]}))
    short = reply(folder, tmp_path, *arguments)
    assert short["ended"]
    assert short["ids"] == whole["ids"][: whole["ids"].index(end) + 1]


def test_thoughts_are_told_from_text(release: Path) -> None:
    chat = read_chat_format(release)
    made = tokenizer().encode("<|content_thinking|>häm<|end_message|><|content_text|>Já 😀").ids
    reader = chat.reader([1])
    pieces = [reader.push(token) for token in made]
    assert (reader.thoughts, reader.text) == ("häm", "Já 😀")
    assert "".join(pieces) == "hämJá 😀" and not any("\ufffd" in piece for piece in pieces)
    assert chat.reader(made[:1]).thinking


def test_pictures_take_the_size_that_the_releases_processor_gives_them(
    release: Path, given: SimpleNamespace, tmp_path: Path
) -> None:
    assert scaled_size(1500, 1000, 2.0, 2048) == (2048, 1365)
    assert scaled_size(3000, 10, 2.0, 2048) == (3000, 10)
    assert scaled_size(75, 101, 0.5, None) == (38, 51)
    folder = shutil.copytree(release, tmp_path / "scaled")
    values = {"rescale_image_frac": 2.0, "rescale_image_max_upscaled_long_edge": 2048}
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": values}))
    assert reply(folder, tmp_path, "--image", given.image)["rows"]["image"] == 4 * 5


def refusal(folder: Path, tmp_path: Path, *arguments: object) -> str:
    result = invoke("--checkpoint", folder, "--out", tmp_path / "r.json", *arguments)
    assert result.exit_code == 2, result.output
    lines = [line for line in result.stderr.splitlines() if not line.startswith("loaded ")]
    assert len(lines) == 1, result.stderr
    return str(lines[0])


def write_template(text: str) -> Any:
    return lambda folder: (folder / "chat_template.jinja").write_text(text)


def drop(name: str) -> Any:
    return lambda folder: (folder / name).unlink()


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (drop("tokenizer.json"), "has no tokenizer.json"),
        (drop("chat_template.jinja"), "has no chat template"),
        (write_template("{{ tools.first.name }}"), "UndefinedError: 'None' has no attribute"),
        (write_template("{{ messages | shout }}"), "No filter named 'shout'"),
        (write_template("{% if %}"), "TemplateSyntaxError"),
        (write_template("{{ messages.__class__.__mro__ }}"), "SecurityError"),
        (write_template("{{ raise_exception('no system') }}"), "no system"),
        (write_template("{{ messages[0].content }}<|unused_200053|>"), "1 placeholders for audio"),
        (write_template("{% generation %}{% endgeneration %}"), "is empty"),
        (lambda f: (f / "tokenizer.json").write_text("{"), "is not a readable tokenizer.json"),
        (lambda f: (f / "generation_config.json").write_text("["), "cannot be read"),
    ],
)
def test_a_chat_format_that_cannot_be_used_is_refused_in_one_line(
    release: Path, tmp_path: Path, harm: Any, says: str
) -> None:
    folder = shutil.copytree(release, tmp_path / "harmed")
    harm(folder)
    assert says in refusal(folder, tmp_path, "--prompt", "x")


def test_a_template_may_stand_in_tokenizer_config(release: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(release, tmp_path / "listed")
    (folder / "chat_template.jinja").unlink()
    template = "{{ bos_token }}{% generation %}{{ messages[0].content }}{% endgeneration %}"
    listed = {
        "bos_token": {"content": "<|message_user|>"},
        "chat_template": [{"name": "default", "template": template}],
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(listed))
    assert read_chat_format(folder).encode([{"content": "A"}], {}) == [256, 32]
    listed["chat_template"] = [{"name": "rag", "template": template}]
    (folder / "tokenizer_config.json").write_text(json.dumps(listed))
    with pytest.raises(ChatError, match="no chat template"):
        read_chat_format(folder)


def test_weights_without_towers_refuse_what_they_cannot_take(
    given: SimpleNamespace, tmp_path: Path
) -> None:
    model = Inkling.empty(ReleaseConfig(TRUNK, audio_mels=0))
    randomize(dict(model.trunk.state_dict()))
    folder = tmp_path / "bare"
    save_release(model, folder)
    add_chat(folder)
    assert "has no audio tower, it cannot hear" in refusal(folder, tmp_path, given.speech)
    assert "no vision tower that this version computes, it cannot see" in refusal(
        folder, tmp_path, "--image", given.image
    )
    assert len(reply(folder, tmp_path, "--prompt", "x")["ids"]) == NEW


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--preset", "interaction-tiny"), "--preset means nothing in --mode turn: presets have"),
        (("--fast",), "--realtime/--fast means nothing in --mode turn"),
        (("--tick-ms", 100), "--tick-ms means nothing in --mode turn"),
        (("--video", "v.mp4"), "give pictures with --image"),
        (("--text", "t.json"), "give --prompt"),
        (("--out", "reply.wav"), "cannot speak"),
        (("--image", "missing.png"), "no such file"),
        (("--seed", -1), "--seed must be in"),
        (("--max-tokens", 10**9), "this turn wants 1000000"),
    ],
)
def test_options_without_meaning_are_refused_not_ignored(
    release: Path, tmp_path: Path, arguments: tuple[object, ...], says: str
) -> None:
    assert says in refusal(release, tmp_path, "--prompt", "x", *arguments)


def test_each_mode_names_the_other_for_weights_and_options_of_the_other(
    release: Path, given: SimpleNamespace, tmp_path: Path
) -> None:
    own = tmp_path / "own"
    save(load("interaction-tiny"), own)
    assert "run them without --mode turn" in refusal(own, tmp_path, "--prompt", "x")
    arguments = ["run", str(given.speech), "--out", str(tmp_path / "r.wav")]
    listening = CliRunner().invoke(app, [*arguments, "--checkpoint", str(release)])
    assert listening.exit_code == 2 and len(listening.stderr.splitlines()) == 1
    assert "no audio head" in listening.stderr and "--mode turn" in listening.stderr
    asked = CliRunner().invoke(app, [*arguments, "--prompt", "x"])
    assert asked.exit_code == 2
    assert "--prompt means nothing without --mode turn" in asked.stderr


def test_nothing_to_answer_and_no_checkpoint_are_refused(release: Path, tmp_path: Path) -> None:
    assert "give a recording to hear" in refusal(release, tmp_path)
    result = invoke("--out", tmp_path / "r.json", "--prompt", "x")
    assert result.exit_code == 2 and "wants --checkpoint" in result.stderr


def test_memory_that_is_not_there_is_refused_before_the_weights_are_read(
    release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(release, tmp_path / "long")
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["model_max_length"] = 10**12
    (folder / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr("microturn.model.inkling.release.stream", None)
    said = refusal(folder, tmp_path, "--prompt", "x", "--max-tokens", 10**11)
    assert "GB for its state" in said and "are free" in said


def test_numbers_that_are_not_finite_end_in_words(release: Path, tmp_path: Path) -> None:
    from microturn.model.inkling.release import load_release

    model = load_release(release)
    with torch.no_grad():
        model.trunk.norm.gain.fill_(3e38)
    folder = tmp_path / "huge"
    save_release(model, folder, dtype=torch.float32)
    add_chat(folder)
    assert "are not finite" in refusal(folder, tmp_path, "--prompt", "x", "--max-tokens", 3)
