"""The encoding of the empty prompt: read from files, made once by the folder's umT5 encoder, or asked for in one sentence."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import UMT5Config, UMT5EncoderModel

from teacher import load_teacher, prompt
from teacher.prompt import empty_prompt, encode_empty_prompt, load_prompt, stored_prompt
from tests.teacher.wan_folders import TEXT_DIM, small_transformer, write_wan
from vega_artifact import UserError

ROOT = Path(__file__).parent.parent.parent
NATIVE_NAMES = [  # transformers' name -> Wan's own, of one umT5 layer
    ("layer.0.SelfAttention.relative_attention_bias", "pos_embedding.embedding"),
    ("layer.0.SelfAttention", "attn"),
    ("layer.0.layer_norm", "norm1"),
    ("layer.1.DenseReluDense.wi_0", "ffn.gate.0"),
    ("layer.1.DenseReluDense.wi_1", "ffn.fc1"),
    ("layer.1.DenseReluDense.wo", "ffn.fc2"),
    ("layer.1.layer_norm", "norm2"),
]


@pytest.fixture(scope="module")
def encoder() -> UMT5EncoderModel:
    torch.manual_seed(0)
    config = UMT5Config(vocab_size=32, d_model=TEXT_DIM, d_kv=4, d_ff=24, num_heads=3, num_layers=2)
    return UMT5EncoderModel(config).to(torch.bfloat16).eval()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(prompt.CACHE_ENV, str(tmp_path / "user-cache"))
    return tmp_path / "user-cache"


def write_encoder(folder: Path, layout: str, model: UMT5EncoderModel) -> Path:
    folder.mkdir(exist_ok=True)
    if layout == "diffusers":
        model.save_pretrained(folder / "text_encoder")
        return folder
    state = {}
    for name, value in model.state_dict().items():
        name = name.replace("encoder.block.", "blocks.").replace("encoder.final_layer_norm", "norm")
        for theirs, wan in NATIVE_NAMES:
            name = name.replace(f".{theirs}.", f".{wan}.")
        if name != "encoder.embed_tokens.weight":
            state[name.replace("shared.", "token_embedding.")] = value.clone()
    torch.save(state, folder / "models_t5_umt5-xxl-enc-bf16.pth")
    return folder


class TestEncoder:
    @pytest.mark.parametrize("layout", ("diffusers", "native"))
    def test_gives_the_first_row_of_the_padded_prompt(self, tmp_path: Path, encoder: UMT5EncoderModel, layout: str) -> None:
        """What the pipelines do: end-of-sequence token, padding to 512 under a mask, then cut to the mask's length."""
        tokens, mask = torch.zeros(1, 512, dtype=torch.long), torch.zeros(1, 512, dtype=torch.long)
        tokens[0, 0] = mask[0, 0] = 1
        with torch.no_grad():
            expected = encoder(tokens, attention_mask=mask).last_hidden_state[0, :1]
        found = encode_empty_prompt(write_encoder(tmp_path / "wan", layout, encoder))
        assert found.shape == (1, TEXT_DIM)
        assert found.dtype == torch.bfloat16
        assert torch.allclose(found.float(), expected.float(), atol=2e-2)
        assert float(found.float().abs().max()) > 0.1

    def test_both_layouts_give_the_same(self, tmp_path: Path, encoder: UMT5EncoderModel) -> None:
        rows = [encode_empty_prompt(write_encoder(tmp_path / layout, layout, encoder)) for layout in ("diffusers", "native")]
        assert torch.equal(*rows)

    def test_runs_once_and_writes_beside_the_weights(
        self, tmp_path: Path, encoder: UMT5EncoderModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = write_encoder(tmp_path / "wan", "native", encoder)
        first = empty_prompt(folder, TEXT_DIM)
        assert stored_prompt(folder) == folder / "empty_prompt.safetensors"
        assert not list(folder.glob(".*")), "the temporary file is gone"
        monkeypatch.setattr(prompt, "encode_empty_prompt", lambda _: pytest.fail("encoded twice"))
        assert torch.equal(empty_prompt(folder, TEXT_DIM), first)

    def test_a_folder_that_cannot_be_written_uses_the_user_cache(
        self, tmp_path: Path, cache: Path, encoder: UMT5EncoderModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = write_encoder(tmp_path / "wan", "native", encoder)
        monkeypatch.setattr("teacher.prompt.os.access", lambda *_: False)
        first = empty_prompt(folder, TEXT_DIM)
        assert not (folder / "empty_prompt.safetensors").exists()
        assert stored_prompt(folder) == next((cache / "prompts").iterdir())
        monkeypatch.setattr(prompt, "encode_empty_prompt", lambda _: pytest.fail("encoded twice"))
        assert torch.equal(empty_prompt(folder, TEXT_DIM), first)

    @pytest.mark.parametrize("layout", ("diffusers", "native"))
    def test_a_teacher_folder_with_an_encoder_needs_no_file(
        self, tmp_path: Path, encoder: UMT5EncoderModel, layout: str
    ) -> None:
        root = write_encoder(write_wan(tmp_path / "wan", layout, small_transformer(), prompt=False), layout, encoder)
        options: dict[str, Any] = {"blocks": (1,), "size": (32, 32)}
        made = load_teacher(root, **options)
        given = load_teacher(root, **options, prompt_embeds=encode_empty_prompt(root))
        again = load_teacher(root, **options)
        assert made.fingerprint == given.fingerprint == again.fingerprint

    @pytest.mark.parametrize(
        ("layout", "damage", "sentence"),
        [
            ("diffusers", "truncated", "does not load as a umT5 encoder"),
            ("diffusers", "absent", "is missing or misshaped"),
            ("diffusers", "gone", "no encoding of the empty prompt and no umT5 encoder"),
            ("native", "truncated", "cannot be read"),
            ("native", "absent", "is missing"),
            ("native", "foreign", "no umT5 encoder of Wan"),
        ],
    )
    def test_a_damaged_encoder_is_named(
        self, tmp_path: Path, encoder: UMT5EncoderModel, layout: str, damage: str, sentence: str
    ) -> None:
        folder = write_encoder(tmp_path / "wan", layout, encoder)
        native = layout == "native"
        path = folder / ("models_t5_umt5-xxl-enc-bf16.pth" if native else "text_encoder/model.safetensors")
        if damage == "truncated":
            path.write_bytes(path.read_bytes()[:-200])
        elif damage == "gone":
            path.unlink()
        elif damage == "foreign":
            torch.save({"weight": torch.ones(1)}, path)
        else:
            state = torch.load(path, weights_only=True) if native else load_file(path)
            state.pop("blocks.1.attn.o.weight" if native else "encoder.block.1.layer.0.SelfAttention.o.weight")
            torch.save(state, path) if native else save_file(state, path, metadata={"format": "pt"})
        with pytest.raises(UserError, match=sentence) as caught:
            empty_prompt(folder, TEXT_DIM)
        assert str(folder) in str(caught.value)
        assert not (folder / "empty_prompt.safetensors").exists()


class TestFiles:
    @pytest.mark.parametrize("wrap", [lambda t: t, lambda t: {"context": t}, lambda t: {"embedding": [t]}, lambda t: t[None]])
    def test_all_published_forms_are_read(self, tmp_path: Path, wrap: Any) -> None:
        rows = torch.randn(1, TEXT_DIM, generator=torch.Generator().manual_seed(0)).bfloat16()
        torch.save(wrap(rows), tmp_path / "wan_t2v_null_prompt.pt")
        assert torch.equal(empty_prompt(tmp_path, TEXT_DIM), rows)
        assert torch.equal(load_prompt(tmp_path / "wan_t2v_null_prompt.pt"), rows)

    def test_what_is_given_goes_before_what_lies_there(self, tmp_path: Path) -> None:
        save_file({"prompt_embeds": torch.zeros(1, TEXT_DIM)}, tmp_path / "empty_prompt.safetensors")
        save_file({"prompt_embeds": torch.ones(2, TEXT_DIM)}, tmp_path / "other.safetensors")
        assert torch.equal(empty_prompt(tmp_path, TEXT_DIM, tmp_path / "other.safetensors"), torch.ones(2, TEXT_DIM))
        assert torch.equal(empty_prompt(tmp_path, TEXT_DIM, torch.full((1, TEXT_DIM), 2.0)), torch.full((1, TEXT_DIM), 2.0))
        assert torch.equal(empty_prompt(tmp_path, TEXT_DIM), torch.zeros(1, TEXT_DIM))

    def test_nothing_there_says_how_to_make_it(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="no encoding of the empty prompt and no umT5 encoder") as caught:
            empty_prompt(tmp_path, 4096)
        assert str(tmp_path) in str(caught.value)
        assert "python -m teacher.prompt" in str(caught.value)

    @pytest.mark.parametrize(
        ("content", "sentence"),
        [
            ({"prompt_embeds": torch.ones(1, 8)}, r"\(1 to 512 rows, 16\) expected, found \(1, 8\)"),
            ({"prompt_embeds": torch.ones(513, TEXT_DIM)}, r"found \(513, 16\)"),
            ({"prompt_embeds": torch.ones(0, TEXT_DIM)}, r"found \(0, 16\)"),
            ({"prompt_embeds": torch.full((1, TEXT_DIM), float("nan"))}, "holds NaN"),
            ({"prompt_embeds": torch.ones(TEXT_DIM)}, r"shape \(rows, text_dim\) expected, found \(16,\)"),
            ({"prompt_embeds": torch.ones(2, 1, TEXT_DIM)}, r"found \(2, 1, 16\)"),
            ({"weights": torch.ones(1, TEXT_DIM)}, "'prompt_embeds' expected, found"),
        ],
    )
    def test_a_wrong_file_is_named(self, tmp_path: Path, content: dict[str, torch.Tensor], sentence: str) -> None:
        path = tmp_path / "empty_prompt.safetensors"
        save_file(content, path)
        with pytest.raises(UserError, match=re.escape(str(path)) + ".*" + sentence):
            empty_prompt(tmp_path, TEXT_DIM)

    @pytest.mark.parametrize("name", ("empty_prompt.safetensors", "empty_prompt.pt"))
    def test_an_unreadable_file_is_named(self, tmp_path: Path, name: str) -> None:
        (tmp_path / name).write_bytes(b"\x00" * 40)
        with pytest.raises(UserError, match=f"{name}: cannot be read"):
            empty_prompt(tmp_path, TEXT_DIM)
        with pytest.raises(UserError, match=r"gone\.(pt|safetensors): "):
            empty_prompt(tmp_path, TEXT_DIM, tmp_path / f"gone{Path(name).suffix}")


def test_the_command_writes_the_file(tmp_path: Path, encoder: UMT5EncoderModel) -> None:
    folder, out = write_encoder(tmp_path / "wan", "native", encoder), tmp_path / "empty_prompt.safetensors"
    command = [sys.executable, "-m", "teacher.prompt", str(folder), str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert torch.equal(load_prompt(out), encode_empty_prompt(folder))
    with pytest.raises(UserError, match="no umT5 encoder here"):
        prompt.make(tmp_path / "empty", out)
