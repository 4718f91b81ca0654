"""Trains and packs the embedded teacher bundle, stage by stage; every stage resumes.

python -m teacher.tiny train --work runs/tiny            all stages in order, then the bundle
python -m teacher.tiny train --work runs/tiny --stage generative
python -m bench.select --teacher tiny --out runs/tiny/settings-tiny.json     choose block and sigma before `fit`
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from transformers import PreTrainedTokenizerFast, SiglipModel, SiglipVisionModel

from teacher.tiny import fit, generator, rooms, school
from teacher.tiny.bundle import BUNDLE, save_half
from teacher.tiny.codec import CodecConfig, train_codec
from teacher.tiny.semantic import SemanticConfig, class_prompts, patch_f1, train_semantic
from teacher.tiny.vocabulary import build_tokenizer
from vega_artifact import UserError, canonical, read_json, unknown_name, write_json, write_manifest

FIRST_SETTINGS = {"blocks": [4], "sigma": 0.1, "draws": 4}  # until bench.select has chosen on validation rooms
VARIANTS = {"generative": "tiny", "geometry": "tiny-geometry"}


@dataclass(frozen=True, kw_only=True)
class TinyConfig:
    """The whole recipe; recorded in the bundle's manifest."""

    rooms: rooms.RoomsConfig = field(default_factory=rooms.RoomsConfig)
    codec: CodecConfig = field(default_factory=CodecConfig)
    generator: generator.GeneratorConfig = field(default_factory=generator.GeneratorConfig)
    semantic: SemanticConfig = field(default_factory=SemanticConfig)
    fit: fit.FitConfig = field(default_factory=fit.FitConfig)


def stage_rooms(work: Path, config: TinyConfig) -> None:
    rooms.render(work, config.rooms)


def stage_codec(work: Path, config: TinyConfig) -> None:
    train_codec(np.asarray(rooms.load(work, "video")), work, config.codec).save_pretrained(work / "vae")


def stage_generative(work: Path, config: TinyConfig) -> None:
    generator.train_generator(_latents(work), work, config.generator).save_pretrained(work / "generative")


def stage_geometry(work: Path, config: TinyConfig) -> None:
    start = WanTransformer3DModel.from_pretrained(work / "generative")
    generator.train_geometry(start, _latents(work), work, config.generator).save_pretrained(work / "geometry")


def stage_semantic(work: Path, config: TinyConfig) -> None:
    tokenizer = build_tokenizer(_texts(work))
    tokenizer.save_pretrained(work / "tokenizer")
    frames, coverage = _flat(work, "train_rgb"), _flat(work, "train_coverage")
    model = train_semantic(frames, coverage, rooms.class_names(), tokenizer, work, config.semantic)
    model.save_pretrained(work / "semantic_full")


def stage_fit(work: Path, config: TinyConfig) -> None:
    """Fusion and readers; needs the packed bundle, whose settings say which features feed the fusion."""
    for part in school.PARTS.values():
        part(work, config.fit)


def stage_pack(work: Path, config: TinyConfig) -> None:
    """Write what `work` holds so far into the bundle."""
    for name in ("vae", *VARIANTS):
        if (work / name).exists():
            _pack_diffusers(work / name, BUNDLE / name)
    if (work / "semantic_full").exists():
        _pack_semantic(work)
    for name in ("tokenizer", "fusion", "readers"):
        if (work / name).exists():
            shutil.copytree(work / name, BUNDLE / name, dirs_exist_ok=True)
    curves = {path.stem: _curve(path) for path in sorted(work.glob("*.jsonl")) if not path.stem.endswith("questions")}
    write_json(BUNDLE / "curves.json", curves)
    settings = {variant: _settings(work, name) for variant, name in VARIANTS.items() if (work / variant).exists()}
    files = [str(p.relative_to(BUNDLE)) for p in BUNDLE.rglob("*") if p.is_file() and p.name != "manifest.json"]
    minutes = {name: rows[-1]["minutes"] for name, rows in curves.items()}
    last = {name: {key: value for key, value in rows[-1].items() if key != "minutes"} for name, rows in curves.items()}
    extra: dict[str, Any] = {"settings": settings, "cpu_minutes": minutes, "last": last, "classes": rooms.class_names()}
    if (work / "semantic_f1.json").exists():
        extra["semantic_f1"] = read_json(work / "semantic_f1.json")
    extra["selection"] = {path.stem: read_json(path)["rows"] for path in sorted(work.glob("settings-*.json"))}
    write_manifest(BUNDLE, "teacher", config, {}, files, **extra)
    print(f"{BUNDLE}: {sum(p.stat().st_size for p in BUNDLE.rglob('*') if p.is_file()) / 2**20:.1f} MiB")


STAGES: dict[str, Callable[[Path, TinyConfig], None]] = {
    "rooms": stage_rooms,
    "codec": stage_codec,
    "generative": stage_generative,
    "geometry": stage_geometry,
    "semantic": stage_semantic,
    "pack": stage_pack,
    "fit": stage_fit,
}


def _flat(work: Path, name: str) -> np.ndarray:
    array = rooms.load(work, name)
    return array.reshape(-1, *array.shape[2:])


def _texts(work: Path) -> list[str]:
    texts = [f"a photo of a {name}" for name in rooms.class_names()] * 2
    for room in rooms.load_questions(work, "train"):
        texts += [text for task in ("scanqa", "vsibench") for record in room[task] for text in fit.item(record, task)[:2]]
    return texts


def _latents(work: Path) -> generator.LatentVideos:
    """Latents of all training rooms, encoded once."""
    video, images = work / "latents_video.npy", work / "latents_images.npy"
    if not (video.exists() and images.exists()):
        vae = AutoencoderKLWan.from_pretrained(work / "vae").eval()
        tours = rooms.load(work, "train_rgb")
        chunks = [
            rooms.small_frames(np.asarray(tours[i : i + 50, ::2]).reshape(-1, *tours.shape[2:]))
            for i in range(0, len(tours), 50)
        ]
        np.save(images, generator.encode_images(vae, np.concatenate(chunks)))
        np.save(video, generator.encode_videos(vae, np.asarray(rooms.load(work, "video"))))
    of_images = np.asarray(rooms.load(work, "train_geometry")[:, ::2])
    of_images = of_images.reshape(-1, *of_images.shape[2:])
    return generator.LatentVideos(np.load(video), np.load(images), np.asarray(rooms.load(work, "video_geometry")), of_images)


def _pack_diffusers(source: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    shutil.copy(source / "config.json", target / "config.json")
    model = {"vae": AutoencoderKLWan}.get(source.name, WanTransformer3DModel).from_pretrained(source)
    save_half(model, target / "diffusion_pytorch_model.safetensors")


def _pack_semantic(work: Path) -> None:
    model = SiglipModel.from_pretrained(work / "semantic_full")
    vision = SiglipVisionModel(model.config.vision_config)  # the text tower was needed for training only
    prefix = "vision_model."
    state = {key.removeprefix(prefix): value for key, value in model.state_dict().items() if key.startswith(prefix)}
    vision.load_state_dict(state)
    (BUNDLE / "semantic").mkdir(parents=True, exist_ok=True)
    vision.config.save_pretrained(BUNDLE / "semantic")
    save_half(vision, BUNDLE / "semantic" / "model.safetensors")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(work / "tokenizer")
    frames, coverage = _flat(work, "val_rgb")[:480], _flat(work, "val_coverage")[:480]
    prompts = class_prompts(rooms.class_names(), tokenizer)
    scores = patch_f1(model.eval(), np.asarray(frames), np.asarray(coverage), prompts, SemanticConfig().covered)
    write_json(work / "semantic_f1.json", dict(zip(rooms.class_names(), scores, strict=True)))


def _settings(work: Path, name: str) -> dict[str, Any]:
    path = work / f"settings-{name}.json"
    if not path.exists():
        return FIRST_SETTINGS
    best = read_json(path)["best"]
    return {"blocks": [best["block"]], "sigma": best["sigma"], "draws": best["draws"]}


def _curve(path: Path) -> list[dict[str, Any]]:
    import json

    rows = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    return rows[:: max(1, len(rows) // 100)] + rows[-1:]


@dataclass(frozen=True, kw_only=True)
class Train:
    """Train one stage, or all of them in order."""

    work: Path = Path("runs/tiny")
    """Folder of renderings, checkpoints and curves (about 5 GB)."""
    stage: str | None = None
    """One stage; none: all in order."""
    config: TinyConfig = field(default_factory=TinyConfig)

    def run(self) -> None:
        if self.stage is not None and self.stage not in STAGES:
            raise unknown_name("stage", self.stage, STAGES)
        for name in [self.stage] if self.stage else [*STAGES, "pack"]:
            STAGES[name](self.work, self.config)


def main() -> None:
    command = tyro.cli(Annotated[Train, tyro.conf.subcommand("train")] | Annotated[None, tyro.conf.subcommand("recipe")])  # type: ignore[arg-type]
    try:
        command.run() if command else print(canonical(TinyConfig()))
    except UserError as error:
        print(f"teacher.tiny: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
