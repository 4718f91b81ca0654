"""Where teachers run and where their weights come from: several devices, and the hub's local cache before the network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from teacher import load_teacher
from teacher.devices import parse_devices, spread
from teacher.hub import fetch, is_hub_id
from tests.teacher.wan_folders import SMALL, small_transformer, write_transformer, write_wan
from vega_artifact import UserError

FRAMES = torch.linspace(0, 1, 2 * 3 * 32 * 32).view(2, 3, 32, 32)
OPTIONS: dict[str, Any] = {"blocks": (0, 2), "size": (32, 32), "grid": None}


class TestDevices:
    @pytest.mark.parametrize("mode", ("frame", "clip"))
    def test_spreading_changes_no_value(self, mode: str) -> None:
        maps = [
            load_teacher("tiny", blocks=(0, -1), mode=mode, device=device).features(FRAMES.numpy()).blocks
            for device in ("cpu", "cpu,cpu", ["cpu", torch.device("cpu"), "cpu"])
        ]
        for other in maps[1:]:
            assert all(torch.equal(maps[0][block], other[block]) for block in maps[0])

    def test_blocks_go_to_the_devices_in_equal_runs(self) -> None:
        blocks = spread(
            torch.nn.ModuleList(torch.nn.Linear(2, 2) for _ in range(5)), [torch.device("cpu"), torch.device("meta")]
        )
        places = [block.weight.device.type for block in blocks]
        assert places == ["cpu", "cpu", "cpu", "meta", "meta"]
        hidden = torch.ones(1, 2)
        for block in blocks:
            hidden = block(hidden)  # the fourth fetches its input from the other device
        assert hidden.device.type == "meta"

    def test_everything_but_the_blocks_stays_on_the_first_device(self) -> None:
        teacher = load_teacher("tiny", device="cpu,cpu")
        assert teacher.device == torch.device("cpu")
        assert all(block._forward_pre_hooks for block in teacher.simulator.blocks)

    @pytest.mark.parametrize(
        ("device", "sentence"),
        [("cuda:99", "device cuda:99: this machine has"), ("gpu", "'cpu', 'cuda', 'cuda:1'"), ("", "'cpu'")],
    )
    def test_unknown_devices(self, device: str, sentence: str) -> None:
        with pytest.raises(UserError, match=sentence):
            parse_devices(device)

    @pytest.mark.gpu
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
    def test_cuda_and_cpu_together(self) -> None:
        alone = load_teacher("tiny", device="cpu").features(FRAMES)
        mixed = load_teacher("tiny", device="cuda:0,cpu").features(FRAMES)
        for block, value in alone.blocks.items():
            assert float((mixed.blocks[block] - value).abs().max() / value.abs().max()) < 1e-2


class Hub:
    """Stands in for huggingface_hub: a cache folder, and a remote folder that is copied from on demand."""

    def __init__(self, cache: Path, publish: Any) -> None:
        self.cache, self.publish, self.asked = cache, publish, []

    def __call__(self, hub_id: str, local_files_only: bool = False, **options: Any) -> str:
        from huggingface_hub.errors import LocalEntryNotFoundError

        self.asked.append((hub_id, local_files_only, options))
        if local_files_only and not self.cache.exists():
            raise LocalEntryNotFoundError("not cached")
        if not local_files_only:
            self.publish(self.cache, options)
        return str(self.cache)

    @property
    def online(self) -> list[dict[str, Any]]:
        return [options for _, local, options in self.asked if not local]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    def refuse(folder: Path, options: dict[str, Any]) -> None:
        raise ConnectionError("offline")

    stand_in = Hub(tmp_path / "cache", refuse)
    monkeypatch.setattr("teacher.hub.snapshot_download", stand_in)
    return stand_in


class TestHub:
    def test_a_complete_cache_is_used_without_asking(self, hub: Hub) -> None:
        write_wan(hub.cache, "diffusers", small_transformer())
        teacher = load_teacher("somebody/small-wan", **OPTIONS)
        assert teacher.wanted == [0, 2]
        assert hub.online == []

    def test_an_interrupted_download_is_completed(self, hub: Hub) -> None:
        write_wan(hub.cache, "native", small_transformer(), shards=2)
        next(hub.cache.glob("*00002-of-00002*")).unlink()

        def publish(folder: Path, options: dict[str, Any]) -> None:
            write_transformer(folder, "native", small_transformer(), shards=2)

        hub.publish = publish
        assert load_teacher("somebody/small-wan", **OPTIONS).wanted == [0, 2]
        assert hub.online

    def test_the_encoder_is_fetched_only_where_no_encoding_is_given(self, hub: Hub) -> None:
        def publish(folder: Path, options: dict[str, Any]) -> None:
            if not folder.exists():
                write_wan(folder, "diffusers", small_transformer(), prompt=False)

        hub.publish = publish
        load_teacher("somebody/small-wan", **OPTIONS, prompt_embeds=torch.ones(1, SMALL["text_dim"]))
        assert not any("text_encoder/*" in options["allow_patterns"] for options in hub.online)
        with pytest.raises(UserError, match="no encoding of the empty prompt"):
            load_teacher("somebody/small-wan", **OPTIONS)
        assert "text_encoder/*" in hub.online[-1]["allow_patterns"]

    @pytest.mark.parametrize(("sigma", "unused"), [(0.3, "transformer/*"), (0.9, "transformer_2/*")])
    def test_the_expert_that_is_not_needed_is_not_fetched(self, hub: Hub, sigma: float, unused: str) -> None:
        def publish(folder: Path, options: dict[str, Any]) -> None:
            for name in ("transformer", "transformer_2"):
                write_transformer(folder / name, "diffusers", small_transformer())
                if "vae/*" not in options["allow_patterns"] and "*diffusion_pytorch_model*" not in options["allow_patterns"]:
                    (folder / name / "diffusion_pytorch_model.safetensors").unlink()
            if not (folder / "vae").exists():
                write_wan(folder, "diffusers", small_transformer())

        hub.publish = publish
        load_teacher("somebody/small-a14b", **OPTIONS, sigma=sigma)
        assert hub.online[-1]["ignore_patterns"] == [unused]

    def test_offline_is_one_sentence(self, hub: Hub) -> None:
        with pytest.raises(UserError, match=r"somebody/absent: no such folder here, .*ConnectionError.*give its folder"):
            load_teacher("somebody/absent")
        with pytest.raises(UserError, match="could not be fetched"):
            load_teacher("wan2.1-t2v-1.3b")
        with pytest.raises(UserError, match="could not be fetched"):
            fetch("somebody/absent", ["*"])

    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("Wan-AI/Wan2.1-T2V-14B-Diffusers", True),
            ("tests/missing", False),
            ("/abs/path", False),
            ("./a", False),
            ("a/b/c", False),
        ],
    )
    def test_what_reads_as_a_hub_id(self, name: str, expected: bool) -> None:
        assert is_hub_id(name) is expected
