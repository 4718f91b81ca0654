"""How the embedded teacher is trained and packed: resumable stages, the codec's two paths, the tokenizer, the bundle."""

from __future__ import annotations

import shutil
import sys
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d
from torch import Tensor, nn

from teacher import load_teacher
from teacher.backbones import BACKBONES
from teacher.latents import LatentEncoder, fold_single_frame
from teacher.reader import Reader
from teacher.tiny import bundle, codec, generator
from teacher.tiny.__main__ import main
from teacher.tiny.loop import Stage, constant_then_linear, muon_and_adamw, split_parameters, step_rng
from teacher.tiny.vocabulary import FIXED_SENTENCES, build_tokenizer
from vega_artifact import UserError, read_json, read_manifest, verify_files

MEGABYTES = 24
SMALL = codec.CodecConfig(base_dim=4, image_steps=2, image_batch=2, video_steps=2, video_batch=1)


class Toy(nn.Module):
    """A matrix for Muon, the rest for AdamW, and dropout, whose draws must follow the step too."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(12, 12)])
        self.drop, self.out = nn.Dropout(0.5), nn.Linear(12, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.drop(self.layers[0](x).relu()))


def train_toy(work: Path, steps: int = 8, die_at: int | None = None, spoil_at: int | None = None) -> tuple[Toy, list[dict]]:
    torch.manual_seed(0)
    toy = Toy()

    def loss(step: int) -> dict[str, Tensor]:
        if step == die_at:
            raise KeyboardInterrupt
        x = torch.from_numpy(step_rng(0, step).standard_normal((16, 12), dtype=np.float32))
        value = (toy(x) - x[:, :1]).square().mean()
        return {"loss": value * float("nan") if step == spoil_at else value}

    curve = Stage("toy", work, {"toy": toy}, muon_and_adamw(toy)).run(loss, steps, log_every=2)
    return toy, curve


@pytest.fixture
def checkpoint_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("teacher.tiny.loop.CHECKPOINT_SECONDS", -1.0)


@pytest.mark.usefixtures("checkpoint_every_step")
@pytest.mark.parametrize("deaths", [(5,), (1, 2, 7)], ids=str)
def test_killed_and_resumed_training_gives_the_same_weights(tmp_path: Path, deaths: tuple[int, ...]) -> None:
    whole, curve = train_toy(tmp_path / "whole")
    for step in deaths:
        with pytest.raises(KeyboardInterrupt):
            train_toy(tmp_path / "killed", die_at=step)
        torch.rand(7)  # the next process has another global random state
    resumed, again = train_toy(tmp_path / "killed")
    for name, value in whole.state_dict().items():
        assert value.dtype == torch.float32 and torch.equal(resumed.state_dict()[name], value), name
    assert [{k: v for k, v in row.items() if k != "minutes"} for row in again] == [
        {k: v for k, v in row.items() if k != "minutes"} for row in curve
    ]
    assert [row["step"] for row in curve] == [0, 2, 4, 6, 7]
    assert len((tmp_path / "killed" / "toy.jsonl").read_text().splitlines()) == len(curve)


def test_death_before_any_checkpoint_starts_anew(tmp_path: Path) -> None:
    whole, _ = train_toy(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train_toy(tmp_path / "killed", die_at=5)
    assert not (tmp_path / "killed" / "toy.pt").exists()
    resumed, _ = train_toy(tmp_path / "killed")
    assert torch.equal(resumed.out.weight, whole.out.weight)


def test_finished_stage_is_not_trained_again(tmp_path: Path) -> None:
    whole, curve = train_toy(tmp_path)
    stamp = (tmp_path / "toy.pt").stat().st_mtime_ns
    again, found = train_toy(tmp_path, die_at=0)
    assert torch.equal(again.out.weight, whole.out.weight) and found == curve
    assert (tmp_path / "toy.pt").stat().st_mtime_ns == stamp


@pytest.mark.usefixtures("checkpoint_every_step")
def test_loss_that_is_not_finite_stops_and_leaves_the_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="stage toy met a non-finite loss or gradient at step 3; lower its learning rate"):
        train_toy(tmp_path, spoil_at=3)
    assert torch.load(tmp_path / "toy.pt", weights_only=True)["step"] == 3
    resumed, _ = train_toy(tmp_path)
    assert all(torch.isfinite(value).all() for value in resumed.parameters())


def test_muon_gets_the_matrices_of_blocks_alone() -> None:
    toy = Toy()
    matrices, others = split_parameters(toy)
    assert [id(p) for p in matrices] == [id(toy.layers[0].weight)]
    assert {id(p) for p in matrices + others} == {id(p) for p in toy.parameters()}


def test_learning_rate_rises_stays_and_falls_to_zero() -> None:
    factors = [constant_then_linear(step, 100, warmup=10) for step in range(101)]
    assert factors[0] == 0.1 and factors[9:60] == [1.0] * 51 and factors[100] == 0
    assert all(a > b for a, b in pairwise(factors[60:]))


@pytest.fixture(scope="module")
def clips() -> np.ndarray:
    """(2, 9, 32, 32, 3) uint8: smooth pictures that move."""
    y, x, t = np.meshgrid(np.arange(32), np.arange(32), np.arange(9), indexing="ij")
    values = [np.stack([np.sin((x + 2 * t + s) / 5), np.cos((y - t) / 4 + s), np.sin((x + y) / 9 * s)], -1) for s in (1, 2)]
    return np.stack([(127 * np.moveaxis(value, 2, 0) + 128).astype(np.uint8) for value in values])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, clips: np.ndarray) -> tuple[AutoencoderKLWan, Path]:
    """A VAE after two steps on images, and the folder with the checkpoint of its folded form."""
    work = tmp_path_factory.mktemp("codec")
    torch.manual_seed(0)
    vae = AutoencoderKLWan(base_dim=SMALL.base_dim, z_dim=16)
    codec._train_images(vae, clips.reshape(-1, 32, 32, 3), work, SMALL)
    return vae.eval(), work


def unit(frames: np.ndarray) -> Tensor:
    return torch.from_numpy(frames).movedim(-1, 1).float() / 255


def untrained() -> AutoencoderKLWan:
    torch.manual_seed(0)
    return AutoencoderKLWan(base_dim=SMALL.base_dim, z_dim=16).eval()


@torch.no_grad()
def folded_by_hand(work: Path, images: Tensor) -> tuple[Tensor, Tensor]:
    """Latent means and pictures of the folded model as it was saved by its training, before anything was inflated."""
    fresh = untrained()
    names = ("encoder", "quant_conv", "post_quant_conv", "decoder")
    flat = nn.ModuleDict({name: fold_single_frame(getattr(fresh, name)) for name in names})
    flat.load_state_dict(torch.load(work / "codec_image.pt", weights_only=True)["modules"]["flat"])
    means = flat["quant_conv"](flat["encoder"](images[:, :, None] * 2 - 1)).chunk(2, dim=1)[0]
    return means, flat["decoder"](flat["post_quant_conv"](means))


@torch.no_grad()
def test_inflated_vae_sees_one_frame_as_the_image_model_did(trained: tuple[AutoencoderKLWan, Path], clips: np.ndarray) -> None:
    vae, work = trained
    images = unit(clips[0, :3])
    means, pictures = folded_by_hand(work, images)
    for index in range(3):
        video = vae.encode(images[index][None, :, None] * 2 - 1).latent_dist.mode()
        torch.testing.assert_close(video, means[index : index + 1], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(vae.decode(video).sample, pictures[index : index + 1].clamp(-1, 1), rtol=1e-3, atol=1e-3)
    before = untrained().encode(images[:1, :, None] * 2 - 1).latent_dist.mode()
    assert (means[:1] - before).abs().max() > 1e-3, "training had an effect"


def test_inflation_keeps_1x1x1_kernels_and_empties_the_past(trained: tuple[AutoencoderKLWan, Path]) -> None:
    """A 1x1x1 kernel and its folded form share their storage: emptying the one must not empty the other."""
    kinds = {1: 0, 3: 0}
    for name, module in trained[0].named_modules():
        if isinstance(module, WanCausalConv3d) and "time_conv" not in name:
            kinds[module.kernel_size[0]] += 1
            assert module.weight[:, :, -1].abs().max() > 0, name
            assert (module.weight[:, :, :-1] == 0).all(), name
    assert min(kinds.values()) > 0, "both kinds of kernels were there"


def test_frames_of_a_video_are_seen_as_images_before_temporal_training(
    trained: tuple[AutoencoderKLWan, Path], clips: np.ndarray
) -> None:
    """The first latent of a clip is its first frame alone, through either path."""
    encoder = LatentEncoder(trained[0])
    alone = encoder.frames(unit(clips[0, :1]))
    torch.testing.assert_close(encoder.clip(unit(clips[0, :1])), alone, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(encoder.clip(unit(clips[0, :5]))[:, :, :1], alone, rtol=1e-4, atol=1e-4)


def test_temporal_training_leaves_single_frames_bit_equal(
    trained: tuple[AutoencoderKLWan, Path], clips: np.ndarray, tmp_path: Path
) -> None:
    vae = untrained()
    vae.load_state_dict(trained[0].state_dict())
    images = unit(clips[1])

    def single() -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            latents = LatentEncoder(vae).frames(images)
            return latents, vae.decode(latents[:1]).sample

    codec._start_temporal(vae)
    start = {name: value.clone() for name, value in vae.state_dict().items()}
    latents, picture = single()
    codec._train_video(vae.train(), clips, tmp_path, SMALL)
    assert all(parameter.requires_grad for parameter in vae.parameters()), "left as it was found"
    vae.eval()
    after = single()
    assert torch.equal(after[0], latents) and torch.equal(after[1], picture)
    moved = {name for name, value in vae.state_dict().items() if not torch.equal(value, start[name])}
    assert any("time_conv" in name for name in moved) and any("time_conv" not in name for name in moved)


def test_latent_statistics_are_those_of_the_latents(trained: tuple[AutoencoderKLWan, Path], clips: np.ndarray) -> None:
    vae = untrained()
    vae.load_state_dict(trained[0].state_dict())
    codec._measure_latents(vae, clips.reshape(-1, 32, 32, 3), SMALL)
    normalised = LatentEncoder(vae).frames(unit(clips.reshape(-1, 32, 32, 3))).transpose(0, 1).flatten(1)
    assert normalised.mean(1).abs().max() < 0.25 and (normalised.std(1) - 1).abs().max() < 0.25


@pytest.mark.parametrize("extra", [0, 4])
def test_flow_loss_shapes(extra: int) -> None:
    model = generator.build(generator.GeneratorConfig(heads=2, head_dim=16, ffn_dim=32, layers=1), out_channels=16 + extra)
    clean, noise = torch.randn(2, 3, 16, 4, 4), torch.randn(2, 3, 16, 4, 4)
    error, rest = generator.flow_loss(model, clean, torch.rand(2, 3), noise)
    assert error.shape == (2, 3) and error.dtype == torch.float32 and (error > 0).all()
    assert rest.shape == (2, 3, extra, 4, 4)
    error.mean().backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())


def test_flow_loss_wants_noise_minus_clean_at_each_frames_own_level() -> None:
    clean, noise = torch.randn(2, 3, 16, 4, 4), torch.randn(2, 3, 16, 4, 4)
    sigmas = torch.tensor([[0.0, 0.5, 1.0], [0.25, 0.25, 0.75]])
    seen: list[Tensor] = []

    def perfect(noisy: Tensor, timestep: Tensor, context: Tensor) -> SimpleNamespace:
        seen.extend((noisy, timestep))
        return SimpleNamespace(sample=(noise - clean).transpose(1, 2))

    error, _ = generator.flow_loss(perfect, clean, sigmas, noise)  # type: ignore[arg-type]
    assert (error == 0).all()
    noisy, timestep = seen[0].transpose(1, 2), seen[1]
    assert torch.equal(noisy[0, 0], clean[0, 0]) and torch.equal(noisy[0, 2], noise[0, 2])
    assert timestep.shape == (2, 3 * 16)
    assert torch.equal(timestep.reshape(2, 3, 16)[..., 5], 1000 * sigmas)


def test_frame_sigmas_lie_in_0_to_1_and_images_have_no_context() -> None:
    config = generator.GeneratorConfig(context_fraction=1.0)
    video = generator.frame_sigmas(step_rng(0, 0), 200, 5, config)
    image = generator.frame_sigmas(step_rng(0, 0), 1000, 1, config)
    assert video.shape == (200, 5) and video.dtype == np.float32
    assert 0 <= min(video.min(), image.min()) and max(video.max(), image.max()) < 1
    assert 0.4 < (video < 0.1).mean() < 0.6 and (image < 0.1).mean() < 0.1


@pytest.fixture(scope="module", params=["bundle", "new"])
def tokenizer(request: pytest.FixtureRequest):
    if request.param == "bundle":
        return bundle.load_tokenizer()
    return build_tokenizer(["What is the length of the chair?", "What is the chair? A. 1"])


@pytest.mark.parametrize("number", ["3.4", "142", "0.05", "10", "2000.75"])
def test_numbers_survive_the_tokenizer(tokenizer, number: str) -> None:
    ids = tokenizer(number, add_special_tokens=False).input_ids
    assert len(ids) == len(number) and tokenizer.unk_token_id not in ids
    said = Reader._decode(SimpleNamespace(tokenizer=tokenizer), [*ids, tokenizer.eos_token_id, ids[0]])
    assert said == number


@pytest.mark.parametrize("sentence", FIXED_SENTENCES, ids=lambda text: text[:24])
def test_fixed_sentences_are_one_token_wherever_they_stand(tokenizer, sentence: str) -> None:
    (token,) = tokenizer(sentence, add_special_tokens=False).input_ids
    assert token not in (tokenizer.unk_token_id, tokenizer.pad_token_id)
    around = tokenizer(f"What is the chair? {sentence}\nWhat", add_special_tokens=False).input_ids
    words = tokenizer("What is the chair? What", add_special_tokens=False).input_ids
    assert around.count(token) == 1 and [i for i in around if i != token] == words


def test_rare_words_are_unknown_and_case_is_none(tokenizer) -> None:
    assert tokenizer("zeppelin", add_special_tokens=False).input_ids == [tokenizer.unk_token_id]
    upper, lower = (tokenizer(text, add_special_tokens=False).input_ids for text in ("CHAIR", "chair"))
    assert upper == lower and tokenizer.unk_token_id not in upper


def test_half_precision_survives_the_tied_weights(tmp_path: Path) -> None:
    """Tied embeddings are stored once and still come back in both places."""
    reader = bundle.new_reader(bundle.load_tokenizer(), "blind", 7)
    (tmp_path / "tokenizer").symlink_to(bundle.BUNDLE / "tokenizer")
    bundle.save_half(reader, tmp_path / "readers" / "blind-0.safetensors")
    found = bundle.load_reader("blind", 0, tmp_path)
    for name, value in reader.state_dict().items():
        assert torch.equal(found.state_dict()[name], value.half().float()), name


class TestBundle:
    def test_is_small_enough_for_a_repository(self) -> None:
        size = sum(path.stat().st_size for path in bundle.BUNDLE.rglob("*") if path.is_file())
        assert size <= MEGABYTES * 10**6

    def test_is_what_its_manifest_says(self) -> None:
        manifest = read_manifest(bundle.BUNDLE, "teacher")
        verify_files(bundle.BUNDLE, manifest)
        there = {str(p.relative_to(bundle.BUNDLE)) for p in bundle.BUNDLE.rglob("*") if p.is_file()}
        assert there == {*manifest["files"], "manifest.json"}

    def test_holds_no_pickle(self) -> None:
        assert {path.suffix for path in bundle.BUNDLE.rglob("*") if path.is_file()} == {".json", ".safetensors"}

    def test_altered_file_is_named(self, tmp_path: Path) -> None:
        copy = tmp_path / "bundle"
        shutil.copytree(bundle.BUNDLE, copy)
        (copy / "vae" / "config.json").write_text("{}")
        with pytest.raises(UserError, match=r"vae/config.json: content differs from the manifest"):
            verify_files(copy, read_manifest(copy, "teacher"))

    def test_every_embedded_teacher_that_is_packed_loads(self) -> None:
        packed = read_manifest(bundle.BUNDLE, "teacher")["settings"]
        assert "generative" in packed
        for name, known in BACKBONES.items():
            if known.embedded and known.source in packed:
                teacher = load_teacher(name)
                assert list(teacher.config.blocks) == packed[known.source]["blocks"]
                features = teacher.features(np.zeros((2, 128, 128, 3), np.uint8)).blocks
                assert [value.shape for value in features.values()] == [(2, bundle.WIDTH, *bundle.GRID)]

    def test_settings_may_be_overruled(self) -> None:
        teacher = load_teacher("tiny", blocks=(1, 2), sigma=0.77, draws=1, size=(32, 32))
        assert (teacher.config.blocks, teacher.config.sigma, teacher.config.draws) == ((1, 2), 0.77, 1)
        assert teacher.config.size == (32, 32) and teacher.config.grid == bundle.GRID

    def test_readers_and_their_tokens_load(self) -> None:
        visual = torch.randn(2, bundle.WIDTH, *bundle.GRID)
        for condition in bundle.CONDITIONS:
            for seed in bundle.READER_SEEDS:
                reader = bundle.load_reader(condition, seed)
                assert (reader.connector is None) is (condition == "blind")
                assert all(torch.isfinite(value).all() for value in reader.parameters())
                assert len(reader.answer(visual, ["How many chair(s)?"], max_new_tokens=1)) == 1
        mixer = bundle.load_mixer("tiny")
        assert mixer is not None and mixer(visual, visual).shape == visual.shape
        assert bundle.load_semantic_tokens()(visual).shape == visual.shape
        assert bundle.load_semantic_tower().grid == bundle.GRID

    def test_every_reader_was_trained_by_itself(self) -> None:
        """A bundle packed half-way holds copies or fresh weights; their hashes and their embeddings give them away."""
        files = read_json(bundle.BUNDLE / "manifest.json")["files"]
        hashes = [record["sha256"] for name, record in files.items() if name.startswith("readers/")]
        assert len(hashes) == len(set(hashes)) == len(bundle.CONDITIONS) * len(bundle.READER_SEEDS)
        for condition in bundle.CONDITIONS:
            fresh = bundle.new_reader(bundle.load_tokenizer(), condition, 0).model.get_input_embeddings().weight
            trained = bundle.load_reader(condition, 0).model.get_input_embeddings().weight
            assert float((trained - fresh).abs().mean()) > 0.01

    def test_curves_are_there_for_the_report(self) -> None:
        curves = bundle.curves()
        assert all({"step", "loss", "minutes"} <= set(row) for rows in curves.values() for row in rows) and curves

    @pytest.mark.parametrize(
        "load",
        [
            lambda folder: bundle.load_bundle_wan("generative", folder),
            bundle.load_semantic_tower,
            bundle.load_tokenizer,
            bundle.load_semantic_tokens,
            lambda folder: bundle.load_reader("fused", 0, folder),
        ],
        ids=["generator", "semantic tower", "tokenizer", "projector", "reader"],
    )
    def test_missing_part_is_named(self, tmp_path: Path, load) -> None:
        with pytest.raises(UserError, match=r"missing from the embedded bundle; restore it .* or run: python -m teacher.tiny"):
            load(tmp_path)

    def test_missing_reader_seed_and_fusion(self) -> None:
        with pytest.raises(UserError, match=r"readers/fused-99.safetensors: missing from the embedded bundle"):
            bundle.load_reader("fused", 99)
        assert bundle.load_mixer("no-such-teacher") is None


def test_unknown_stage_lists_the_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["teacher.tiny", "train", "--work", str(tmp_path / "work"), "--stage", "codex"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "unknown stage 'codex'. Did you mean 'codec'? Known: codec, fit, " in said
    assert not (tmp_path / "work").exists()
