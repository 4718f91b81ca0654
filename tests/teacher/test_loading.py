"""Loading Wan checkpoints: both layouts, sharded or not, variants and experts, and one clear sentence for every bad one."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from teacher import load_teacher
from teacher.backbones import BACKBONES, teacher_names
from teacher.loading import load_wan, open_wan, require_architecture
from teacher.weights import open_safetensors
from tests.teacher.wan_folders import (
    GOLDEN,
    edit_json,
    native_name,
    small_transformer,
    write_transformer,
    write_vae,
    write_wan,
)
from vega_artifact import UserError

LAYOUTS = ("diffusers", "native")
OPTIONS: dict[str, Any] = {"blocks": (1,), "size": (32, 32), "grid": (2, 2)}
FRAMES = torch.linspace(0, 1, 2 * 3 * 32 * 32).view(2, 3, 32, 32)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One model in both layouts, native in three shards; tests that break something copy it first."""
    root, model = tmp_path_factory.mktemp("wan"), small_transformer()
    return {layout: write_wan(root / layout, layout, model, shards) for layout, shards in zip(LAYOUTS, (1, 3))}


def features(name: Path | str, **options: Any) -> torch.Tensor:
    return load_teacher(name, **(OPTIONS | options)).features(FRAMES, scene_id="room").blocks[1]


def copy(folder: Path, to: Path) -> Path:
    shutil.copytree(folder, to / folder.name)
    return to / folder.name


def weights_file(root: Path, name: str = "blocks.0.attn1.to_q.weight") -> Path:
    """The file of the transformer's weights that holds one tensor: the only one, or a shard."""
    folder = root / "transformer" if (root / "transformer").is_dir() else root
    return open_safetensors(folder).entries[stored(root, name)].file


def stored(root: Path, name: str) -> str:
    """What a tensor is called in the files of a folder."""
    return name if (root / "transformer").is_dir() else native_name(name)


def config_file(root: Path) -> Path:
    return root / "transformer" / "config.json" if (root / "transformer").is_dir() else root / "config.json"


class TestLayouts:
    def test_both_give_the_weights_that_were_written(self, folders: dict[str, Path]) -> None:
        expected = small_transformer().state_dict()
        for layout in LAYOUTS:
            transformer, vae = load_wan(folders[layout])
            found = transformer.state_dict()
            assert found.keys() == expected.keys()
            assert all(torch.equal(found[name], expected[name]) for name in expected)
            assert vae.config.base_dim == 8

    def test_features_do_not_depend_on_the_layout(self, folders: dict[str, Path]) -> None:
        assert torch.equal(features(folders["diffusers"]), features(folders["native"]))

    def test_low_precision_keeps_norms_tables_and_time_in_float32(self, folders: dict[str, Path]) -> None:
        model = open_wan(folders["native"]).transformer(torch.bfloat16)
        dtypes = {name: value.dtype for name, value in model.named_parameters()}
        assert dtypes["blocks.0.ffn.net.0.proj.weight"] == dtypes["blocks.0.attn1.to_q.weight"] == torch.bfloat16
        kept = ("blocks.0.scale_shift_table", "blocks.0.norm2.weight", "condition_embedder.time_embedder.linear_1.weight")
        assert all(dtypes[name] == torch.float32 for name in kept)
        close = features(folders["native"], dtype=torch.bfloat16)
        assert float((close - features(folders["native"])).abs().max() / close.abs().max()) < 0.02

    def test_blocks_behind_the_last_wanted_one_are_never_read(self, folders: dict[str, Path], tmp_path: Path) -> None:
        root = copy(folders["diffusers"], tmp_path)
        state = load_file(weights_file(root))
        state["blocks.2.ffn.net.2.bias"].fill_(float("nan"))
        save_file(state, weights_file(root))
        assert torch.equal(features(root), features(folders["diffusers"]))
        with pytest.raises(UserError, match=r"blocks\.2\.ffn\.net\.2\.bias holds NaN"):
            features(root, blocks=(1, 2))

    def test_a_negative_block_counts_from_the_full_depth(self, folders: dict[str, Path]) -> None:
        assert load_teacher(folders["native"], **(OPTIONS | {"blocks": (-2,)})).wanted == [1]


class TestIdentity:
    def test_says_what_was_read_and_not_where_it_lay(self, folders: dict[str, Path], tmp_path: Path) -> None:
        root = folders["diffusers"]
        moved = copy(root, tmp_path)
        first = load_teacher(root, **OPTIONS)
        assert load_teacher(moved, **OPTIONS).fingerprint == first.fingerprint
        (moved / "README.safetensors").write_bytes(b"not read")
        assert load_teacher(moved, **OPTIONS).fingerprint == first.fingerprint
        prompt = torch.ones(1, 16)
        assert load_teacher(root, **OPTIONS, prompt_embeds=prompt).fingerprint != first.fingerprint
        write_transformer(moved / "transformer", "diffusers", small_transformer(seed=1))
        assert load_teacher(moved, **OPTIONS).fingerprint != first.fingerprint

    def test_random_weights_leave_the_files_unread(self, folders: dict[str, Path]) -> None:
        control = load_teacher(folders["native"], **OPTIONS, random_weights=3)
        assert control.config.weights == "random-3"
        again = load_teacher(folders["diffusers"], **OPTIONS, random_weights=3)
        maps = [teacher.features(FRAMES).blocks[1] for teacher in (control, again)]
        assert torch.equal(*maps)
        assert not torch.allclose(maps[0], features(folders["native"]), atol=1e-2)


class TestDamage:
    @pytest.mark.parametrize("layout", LAYOUTS)
    @pytest.mark.parametrize(
        ("damage", "sentence"),
        [
            ("truncated", "truncated or no checkpoint"),
            ("gone", "missing"),
            ("nan", r"holds NaN or infinity \(as float32\)"),
            ("overflow", r"holds NaN or infinity \(as float16\)"),
            ("shape", r"shape \(24, 24\) expected, found \(23, 24\)"),
            ("absent", "is missing"),
            ("surplus", r"extra has no place in it"),
        ],
    )
    def test_of_weights_is_one_sentence_that_names_the_file(
        self, folders: dict[str, Path], tmp_path: Path, layout: str, damage: str, sentence: str
    ) -> None:
        root = copy(folders[layout], tmp_path)
        path, options = weights_file(root), {"dtype": torch.float16} if damage == "overflow" else {}
        state, query = load_file(path), stored(root, "blocks.0.attn1.to_q.weight")
        if damage == "truncated":
            path.write_bytes(path.read_bytes()[:-100])
        elif damage == "gone":
            path.unlink()
        else:
            state[query][0, 0] = {"nan": float("nan"), "overflow": 1e6}.get(damage, 0)
            state |= {"shape": {query: state[query][:-1].contiguous()}, "surplus": {"extra": torch.ones(1)}}.get(damage, {})
            if damage == "absent":
                del state[query]
            save_file(state, path)
            if damage == "absent" and layout == "native":  # else the index would notice first
                index = root / "diffusion_pytorch_model.safetensors.index.json"
                names = json.loads(index.read_text())
                names["weight_map"].pop(query)
                index.write_text(json.dumps(names))
        with pytest.raises(UserError, match=sentence) as caught:
            load_teacher(root, **(OPTIONS | options))
        assert str(root) in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_an_index_that_names_a_tensor_its_shard_lacks(self, folders: dict[str, Path], tmp_path: Path) -> None:
        root = copy(folders["native"], tmp_path)
        path, name = weights_file(root), stored(root, "blocks.0.attn1.to_q.weight")
        save_file({key: value for key, value in load_file(path).items() if key != name}, path)
        with pytest.raises(UserError, match=f"{path.name}: {name} is missing, which"):
            open_wan(root)

    def test_a_pickle_with_code_is_refused_and_not_run(self, folders: dict[str, Path], tmp_path: Path) -> None:
        root, trace = copy(folders["native"], tmp_path), tmp_path / "ran"

        class Bomb:
            def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
                return Path.touch, (trace,)

        (root / "Wan2.1_VAE.pth").write_bytes(pickle.dumps(Bomb(), protocol=2))
        with pytest.raises(UserError, match=r"Wan2\.1_VAE\.pth: cannot be read"):
            load_teacher(root, **OPTIONS)
        assert not trace.exists()

    @pytest.mark.parametrize(
        ("content", "sentence"),
        [
            ({"conv.weight": torch.ones(2)}, r"no VAE of Wan \(encoder\.conv1\.weight is missing\)"),
            ({"encoder.conv1.weight": torch.ones(8, 3, 3, 3, 3), "conv1.weight": torch.ones(96, 96, 1, 1, 1)}, "found 48"),
            ([1, 2], "a dictionary of tensors expected, found list"),
        ],
    )
    def test_a_foreign_native_vae(self, folders: dict[str, Path], tmp_path: Path, content: Any, sentence: str) -> None:
        root = copy(folders["native"], tmp_path)
        torch.save(content, root / "Wan2.1_VAE.pth")
        with pytest.raises(UserError, match=sentence) as caught:
            load_teacher(root, **OPTIONS)
        assert "Wan2.1_VAE.pth" in str(caught.value)

    @pytest.mark.parametrize(
        ("changes", "sentence"),
        [
            ({"_class_name": "AutoencoderKL"}, "_class_name AutoencoderKLWan expected, found AutoencoderKL;"),
            ({"z_dim": 4}, "z_dim 16 expected, found 4;"),
            ({"z_dim": 48}, "z_dim 16 expected, found 48; this is Wan2.2 TI2V-5B"),
            ({"scale_factor_spatial": 16}, "scale_factor_spatial 8 expected, found 16"),
        ],
    )
    def test_a_foreign_diffusers_vae(
        self, folders: dict[str, Path], tmp_path: Path, changes: dict[str, Any], sentence: str
    ) -> None:
        root = copy(folders["diffusers"], tmp_path)
        edit_json(root / "vae" / "config.json", **changes)
        with pytest.raises(UserError, match=sentence):
            load_teacher(root, **OPTIONS)


class TestVariants:
    @pytest.mark.parametrize(
        ("layout", "changes", "sentence"),
        [
            ("diffusers", {"num_layers": 40}, "num_layers 40 expected by this config, found 3 in the weights"),
            ("native", {"num_layers": 40}, "num_layers 40 expected by this config, found 3 in the weights"),
            ("native", {"dim": 48}, "dim 48 expected by this config, found 24 in the weights"),
            ("diffusers", {"num_attention_heads": 4}, "width 48 expected by this config, found 24 in the weights"),
            ("diffusers", {"text_dim": 4096}, "text_dim 4096 expected by this config, found 16"),
            ("native", {"num_heads": 5}, "dim 24 is no multiple of num_heads 5"),
            ("native", {"num_heads": None}, "field num_heads is missing"),
            ("native", {"model_type": "i2v"}, "model_type 't2v' or 'vace' expected, found 'i2v'"),
            ("native", {"model_type": "ti2v", "in_dim": 48}, "this is Wan2.2 TI2V-5B, whose VAE has 48 channels at stride 16"),
            ("native", {"in_dim": 36}, "in_dim 16 expected, found 36; models that take an image"),
            ("diffusers", {"in_channels": 48}, "in_channels 16 expected, found 48; this is Wan2.2 TI2V-5B"),
            ("diffusers", {"in_channels": 36}, "in_channels 16 expected, found 36; models that take an image"),
            ("diffusers", {"image_dim": 1280}, "image_dim null expected, found 1280"),
            ("diffusers", {"_class_name": "UNet2DConditionModel"}, "found 'UNet2DConditionModel'"),
        ],
    )
    def test_a_wrong_config_names_the_field(
        self, folders: dict[str, Path], tmp_path: Path, layout: str, changes: dict[str, Any], sentence: str
    ) -> None:
        root = copy(folders[layout], tmp_path)
        edit_json(config_file(root), **changes)
        with pytest.raises(UserError, match=sentence) as caught:
            load_teacher(root, **OPTIONS)
        assert str(config_file(root)) in str(caught.value)

    def test_a_native_ti2v_folder_is_known_by_its_vae(self, folders: dict[str, Path], tmp_path: Path) -> None:
        root = copy(folders["native"], tmp_path)
        (root / "Wan2.1_VAE.pth").rename(root / "Wan2.2_VAE.pth")
        with pytest.raises(UserError, match=r"Wan2\.2_VAE\.pth: this is Wan2\.2 TI2V-5B"):
            load_teacher(root, **OPTIONS)

    def test_weights_of_another_model(self, folders: dict[str, Path], tmp_path: Path) -> None:
        root = copy(folders["diffusers"], tmp_path)
        save_file({"conv.weight": torch.ones(1)}, weights_file(root))
        with pytest.raises(UserError, match="no Wan transformer"):
            load_teacher(root, **OPTIONS)

    def test_a_named_variant_is_checked_against_the_folder(self, folders: dict[str, Path]) -> None:
        with pytest.raises(UserError, match=r"num_layers 40 expected for wan2\.1-t2v-14b, found 3; it is another variant"):
            load_teacher(f"wan2.1-t2v-14b={folders['native']}")
        with pytest.raises(UserError, match=r"kind vace expected for wan2\.1-vace-1\.3b, found t2v"):
            load_teacher(f"wan2.1-vace-1.3b={folders['diffusers']}")

    def test_the_advice_names_the_variant_that_fits(self, folders: dict[str, Path]) -> None:
        checkpoint = open_wan(folders["native"])
        known = {"large": {"kind": "t2v", "num_layers": 40}, "small": {"kind": "t2v", "num_layers": 3}}
        require_architecture(checkpoint, "small", known)
        with pytest.raises(UserError, match="num_layers 40 expected for large, found 3; it looks like small"):
            require_architecture(checkpoint, "large", known)

    def test_one_expert_of_two_is_not_the_older_model(self, a14b: dict[str, Path]) -> None:
        known = {"old": {"kind": "t2v", "experts": 1}, "new": {"kind": "t2v", "experts": 2}}
        require_architecture(open_wan(a14b["native"]), "new", known)
        with pytest.raises(UserError, match="experts 1 expected for old, found 2; it looks like new"):
            require_architecture(open_wan(a14b["native"]), "old", known)
        assert BACKBONES["wan2.2-t2v-a14b"].architecture["experts"] == 2

    def test_registry_has_the_published_checkpoints(self) -> None:
        expected = {"wan2.1-t2v-1.3b", "wan2.1-t2v-14b", "wan2.1-vace-1.3b", "wan2.2-t2v-a14b", "tiny"}
        assert expected <= set(BACKBONES) <= set(teacher_names())
        assert all(entry.supervision for entry in BACKBONES.values())


class TestSettings:
    @pytest.mark.parametrize("size", [(481, 832), (480, 840), (0, 32), (-32, 32)])
    def test_odd_sizes_are_refused_before_weights_are_read(
        self, folders: dict[str, Path], tmp_path: Path, size: tuple[int, int]
    ) -> None:
        root = copy(folders["diffusers"], tmp_path)
        state = load_file(weights_file(root))
        state["patch_embedding.bias"].fill_(float("nan"))
        save_file(state, weights_file(root))
        with pytest.raises(UserError, match="both sides must be positive multiples of 16"):
            load_teacher(root, blocks=(1,), size=size)
        with pytest.raises(UserError, match=r"blocks \(3,\): indices in 0\.\.2"):
            load_teacher(root, blocks=(3,))

    @pytest.mark.parametrize(
        ("name", "sentence"),
        [
            ("wan2.1-t2v-13b", "Did you mean 'wan2.1-t2v-1.3b'"),
            ("/nowhere/at/all", "unknown teacher"),
            ("tests/nowhere", "unknown teacher"),
            ("wan2.1-t2v-1.3b=/nowhere", r"/nowhere: no such folder; wan2\.1-t2v-1\.3b=FOLDER expects"),
        ],
    )
    def test_unknown_names(self, name: str, sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("teacher.hub.snapshot_download", lambda *a, **k: pytest.fail("asked the hub"))
        with pytest.raises(UserError, match=sentence):
            load_teacher(name)

    def test_the_embedded_teachers_take_no_folder(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="tiny is shipped with this program"):
            load_teacher(f"tiny={tmp_path}")

    def test_rivals_refuse_what_only_wan_has(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="dinov3-l: prompt_embeds, memory, compile and several devices"):
            load_teacher(f"dinov3-l={tmp_path}", prompt_embeds=torch.ones(1, 16))


@pytest.fixture(scope="module")
def a14b(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two experts in both layouts: seed 0 for low noise, seed 1 for high noise."""
    root = tmp_path_factory.mktemp("a14b")
    names = {"diffusers": ("transformer_2", "transformer"), "native": ("low_noise_model", "high_noise_model")}
    for layout in LAYOUTS:
        for seed, name in enumerate(names[layout]):
            write_transformer(root / layout / name, layout, small_transformer(seed=seed), shards=2)
        write_vae(root / layout, layout)
        save_file({"prompt_embeds": torch.ones(1, 16)}, root / layout / "empty_prompt.safetensors")
    (root / "diffusers" / "model_index.json").write_text(json.dumps({"boundary_ratio": 0.875}))
    return {layout: root / layout for layout in LAYOUTS}


class TestExperts:
    @pytest.mark.parametrize("layout", LAYOUTS)
    @pytest.mark.parametrize(("sigma", "seed"), [(0.3, 0), (0.87, 0), (0.88, 1), (1.0, 1)])
    def test_the_noise_level_chooses(self, a14b: dict[str, Path], layout: str, sigma: float, seed: int) -> None:
        teacher = load_teacher(a14b[layout], **OPTIONS, sigma=sigma)
        expected = small_transformer(seed=seed).state_dict()["patch_embedding.weight"]
        assert torch.equal(teacher.simulator.patch_embedding.weight, expected)

    def test_both_layouts_agree_and_experts_differ(self, a14b: dict[str, Path]) -> None:
        low = features(a14b["native"])
        assert torch.equal(low, features(a14b["diffusers"]))
        fingerprints = {load_teacher(a14b["native"], **OPTIONS, sigma=sigma).config.weights for sigma in (0.3, 0.9)}
        assert len(fingerprints) == 2

    def test_the_boundary_of_the_checkpoint_is_taken(self, a14b: dict[str, Path], tmp_path: Path) -> None:
        root = copy(a14b["diffusers"], tmp_path)
        edit_json(root / "model_index.json", boundary_ratio=0.2)
        assert open_wan(root, timestep=199).expert == "low noise"
        assert open_wan(root, timestep=200).expert == "high noise"

    @pytest.mark.parametrize(("layout", "high"), [("diffusers", "transformer"), ("native", "high_noise_model")])
    def test_the_other_expert_may_be_absent(self, a14b: dict[str, Path], tmp_path: Path, layout: str, high: str) -> None:
        root = copy(a14b[layout], tmp_path)
        shutil.rmtree(root / high)
        assert torch.equal(features(root), features(a14b[layout]))
        with pytest.raises(UserError, match=f"{high}: missing; at timestep 900 the high noise expert is needed"):
            load_teacher(root, **OPTIONS, sigma=0.9)


def test_native_names_of_the_test_are_those_of_the_golden_checkpoint() -> None:
    """Ties the small native folders to a state dict that the reference implementation wrote."""
    ours = {native_name(name) for name in load_file(GOLDEN / "diffusers/transformer/diffusion_pytorch_model.safetensors")}
    assert ours == set(load_file(GOLDEN / "native/diffusion_pytorch_model.safetensors"))
