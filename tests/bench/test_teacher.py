"""The teacher's speed bench: the reference recipe against golden values, the arithmetic, and small real measurements.

python -m pytest tests/bench/test_teacher.py
"""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from safetensors.torch import load_file

import vega_edge
from bench import peak, reference, teacher
from bench.peak import PeakMemory
from bench.reference import ReferenceRecipe
from bench.teacher import Part, Settings, measure, quick, relative, table, take_turns, total_row
from vega_artifact import UserError, read_json

GOLDEN = Path(__file__).parent.parent / "golden" / "wan-teacher"
CPU = torch.device("cpu")
LINUX = peak.PROCESS.joinpath("clear_refs").exists()


@pytest.fixture
def small_widths(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same architecture at widths a test can bear."""
    widths = {"num_attention_heads": 2, "attention_head_dim": 12, "text_dim": 16, "freq_dim": 8, "ffn_dim": 32}
    monkeypatch.setattr(reference, "WAN_1_3B", reference.WAN_1_3B | widths)
    monkeypatch.setattr(teacher, "WAN_1_3B", reference.WAN_1_3B)
    monkeypatch.setattr(reference, "AutoencoderKLWan", functools.partial(AutoencoderKLWan, base_dim=8, num_res_blocks=1))


SMALL = Settings(layers=3, block=1, size=(32, 48), frames=3, repeats=2)


def test_the_recipe_is_the_reference() -> None:
    expected = load_file(GOLDEN / "expected.safetensors")
    transformer = WanTransformer3DModel.from_pretrained(GOLDEN / "diffusers" / "transformer")
    vae = AutoencoderKLWan.from_pretrained(GOLDEN / "diffusers" / "vae")
    for k, timestep in ((300, 299), (600, 601)):
        recipe = ReferenceRecipe(transformer, vae, expected["prompt_context"], 2, timestep)
        assert relative(recipe.latents(expected["frames"]), expected["latents"]) < 2e-5
        assert relative(recipe.maps(expected[f"noisy_k{k}"]), expected[f"block2_pooled14_k{k}"]) < 2e-5
    assert not transformer.blocks[2]._forward_hooks, "the hook is gone"


def test_both_sides_agree_and_every_call_is_kept(small_widths: None) -> None:
    result = measure(SMALL)
    rows = {row["part"]: row for row in result["rows"]}
    assert list(rows) == ["vae", "dit", "total"]
    for row in rows.values():
        assert row["difference"] < 2e-5
        assert row["ratio"] == pytest.approx(row["reference_s"] / row["ours_s"]) and row["ours_s"] > 0
    assert all(len(seconds) == 2 for sides in result["samples"].values() for seconds in sides.values())
    assert result["weights_gib"]["ours"] < result["weights_gib"]["reference"]
    json.dumps(result)


def test_bfloat16_sides_are_near_each_other(small_widths: None) -> None:
    rows = measure(Settings(layers=3, block=1, size=(32, 48), frames=1, repeats=1, dtype="bfloat16"))["rows"]
    assert all(0 < row["difference"] < 5e-2 for row in rows)


def test_a_wrong_side_shows_as_a_difference(small_widths: None) -> None:
    recipe, ours = teacher.build(SMALL, CPU)
    recipe.block = 0
    (vae, dit), end_to_end = teacher.prepare(SMALL, recipe, ours)
    assert vae.difference < 2e-5
    assert dit.difference > 1e-3 and end_to_end > 1e-3


def test_both_sides_take_turns_and_who_begins_changes() -> None:
    log: list[str] = []

    def work(name: str) -> torch.Tensor:
        log.append(name)
        return torch.ones(1)

    parts = [Part(name, {side: functools.partial(work, f"{name}-{side}") for side in ("reference", "ours")}) for name in "ab"]
    take_turns(parts, 2, CPU)
    assert log == ["a-reference", "a-ours", "b-reference", "b-ours", "a-ours", "a-reference", "b-ours", "b-reference"]


def test_total_is_the_median_of_the_rounds_sums_and_the_higher_peak() -> None:
    vae = Part("vae", {}, {"reference": [4.0, 1.0, 4.0], "ours": [1.0, 1.0, 1.0]}, {"reference": 1 << 30, "ours": 1 << 29})
    dit = Part("dit", {}, {"reference": [1.0, 4.0, 8.0], "ours": [1.0, 2.0, 1.5]}, {"reference": 1 << 29, "ours": None})
    row = total_row([vae, dit], 0.0)
    assert (row["reference_s"], row["ours_s"], row["ratio"]) == (5.0, 2.5, 2.0)
    assert row["ratio_range"] == pytest.approx([5 / 3, 4.8]), "single rounds: 5/2, 5/3, 12/2.5"
    assert (row["reference_peak_gib"], row["ours_peak_gib"]) == (1.0, 0.5)


def test_quick_keeps_the_share_of_the_depth() -> None:
    short = quick(Settings(frames=8, repeats=9))
    assert (short.block + 1) / short.layers == 21 / 30
    assert (short.frames, short.repeats, short.size) == (2, 2, (240, 416))


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"frames": 0}, "at least 1"),
        ({"repeats": 0}, "at least 1"),
        ({"size": (240, 420)}, "multiples of 16"),
        ({"size": (0, 16)}, "multiples of 16"),
        ({"dtype": "float16"}, "float32 or bfloat16"),
    ],
)
def test_settings_out_of_range_are_refused(wrong: dict, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        Settings(**wrong)


def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="no CUDA device"):
        measure(Settings(device="cuda"))


@pytest.mark.skipif(not LINUX, reason="the kernel's peak is read from /proc")
def test_peak_memory_is_that_of_the_work_alone() -> None:
    kept = torch.ones(64 << 18)  # 64 MiB before
    with PeakMemory(CPU) as large:
        torch.ones(96 << 18)
    with PeakMemory(CPU) as small:
        torch.ones(16 << 18)
    assert large.bytes == pytest.approx(96 << 20, rel=0.1)
    assert small.bytes == pytest.approx(16 << 20, rel=0.3), "an earlier peak is forgotten"
    assert kept.sum() > 0


def test_without_a_kernel_that_tells_there_is_no_peak(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(peak, "PROCESS", tmp_path / "none")
    with PeakMemory(CPU) as memory:
        torch.ones(1)
    assert memory.bytes is None


def test_the_verb_prints_the_table_and_writes_the_rows(
    small_widths: None, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "teacher.json"
    assert vega_edge.main(["bench", "teacher", "--quick", "--size", "32", "48", "--repeats", "1", "--out", str(out)]) == 0
    printed, written = capsys.readouterr().out, read_json(out)
    assert table(written) == printed.strip()
    assert "7 of 10 blocks" in printed and "2 frames of 32x48, float32" in printed
    assert written["settings"]["layers"] == 10 and written["versions"]["torch"]
    assert vega_edge.main(["bench", "teacher", "--frames", "0"]) == 2
    assert "at least 1" in capsys.readouterr().err
