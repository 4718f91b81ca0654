"""Reads the parts of a published checkpoint folder (diffusers or transformers layout) and says what is wrong with it.

    python -c "from pathlib import Path; from diffusers import AutoencoderKL; from teacher.rivals.folder import Folder; \
               print(Folder(Path('PATH')).part('vae', AutoencoderKL))"
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from safetensors import SafetensorError
from torch import nn

from teacher.hub import cached, fetch
from teacher.weights import identity
from vega_artifact import UserError, read_json

CONFIGS = ("config.json", "scheduler_config.json")
STEMS = ("diffusion_pytorch_model", "model")
PATTERNS = ("*.json", "*.txt", "*.model", *(f"{stem}{end}.safetensors" for stem in STEMS for end in ("", "-*")))


@dataclass(frozen=True)
class Folder:
    """A checkpoint folder and how its networks are to be read.

    Attributes:
        dtype: of the network that is tapped; autoencoders stay float32.
        random_weights: seed of fresh weights for the tapped network instead of the stored ones.
    """

    path: Path
    dtype: torch.dtype = torch.float32
    random_weights: int | None = None

    def part(self, name: str, model: type) -> Any:
        """Load a network that is not tapped: float32, evaluation mode, no gradients; errors as in `network`."""
        return self._load(name, model, torch.float32, (), {})

    def network(self, name: str, model: type, *, optional: Sequence[str] = (), **overrides: Any) -> Any:
        """Load the tapped network: in `dtype`, and with fresh weights where those are asked for.

        Args:
            name: sub-folder, or "" for the folder itself.
            model: diffusers or transformers class it must be of.
            optional: prefixes of weights that may be missing because they are never run.
            overrides: configuration fields to replace.
        Raises:
            UserError: missing part, another class, truncated, incomplete or non-finite weights; the folder is named.
        """
        if self.random_weights is None:
            return self._load(name, model, self.dtype, optional, overrides)
        folder = self._checked(name, model)
        with torch.random.fork_rng(), _silence():
            torch.manual_seed(self.random_weights)
            return _frozen(_fresh(model, folder, overrides)).to(self.dtype)

    def schedule(self, scheduler: type) -> torch.Tensor:
        """abar (steps,) of the model's training schedule, from `scheduler/scheduler_config.json`."""
        read_json(self.path / "scheduler" / "scheduler_config.json")
        return scheduler.from_pretrained(self.path / "scheduler").alphas_cumprod  # type: ignore[attr-defined]

    def text(self, pipeline: type, absent: Sequence[str], **options: Any) -> Any:
        """The folder's pipeline with only its text parts loaded, to encode the empty prompt with and then drop."""
        read_json(self.path / "model_index.json")
        nothing = dict.fromkeys(absent)
        try:
            with _silence():
                return pipeline.from_pretrained(  # type: ignore[attr-defined]
                    self.path, dtype=self.dtype, local_files_only=True, use_safetensors=True, **nothing, **options
                )
        except Exception as error:  # tokenizers, sentencepiece and safetensors share no base class
            raise UserError(
                f"{self.path}: its text encoder, needed once for the empty prompt, does not load ({_first_line(error)}); "
                "copy the text encoder and tokenizer folders too"
            ) from error

    def identity(self, parts: Sequence[str]) -> str:
        """Hash of the parts' weight files and configurations."""
        places = [self.path / part if (self.path / part).is_dir() else self.path for part in parts]
        files = sorted(path for place in places for name in (*CONFIGS, "*.safetensors") for path in place.glob(name))
        stored = identity((str(path.relative_to(self.path)), path) for path in files)
        return stored if self.random_weights is None else f"{stored}-random-{self.random_weights}"

    def _load(self, name: str, model: type, dtype: torch.dtype, optional: Sequence[str], overrides: dict[str, Any]) -> Any:
        folder = self._checked(name, model)
        try:
            with _silence():
                loaded, info = model.from_pretrained(  # type: ignore[attr-defined]
                    folder, dtype=dtype, local_files_only=True, use_safetensors=True, output_loading_info=True, **overrides
                )
        except (SafetensorError, OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{folder}: does not load as {model.__name__} ({_first_line(error)}); copy it again") from error
        missing = sorted(key for key in info["missing_keys"] if not key.startswith(tuple(optional)))
        if missing:
            raise UserError(
                f"{folder}: {len(missing)} weights of {model.__name__} are missing, {missing[0]} first; "
                "the checkpoint is cut or of another variant, copy it again"
            )
        for key, weight in loaded.named_parameters():
            if not torch.stack(weight.aminmax()).isfinite().all() and not key.startswith(tuple(optional)):
                raise UserError(f"{folder}: weight {key} holds NaN or infinity; the checkpoint is damaged, copy it again")
        return _frozen(loaded)

    def _checked(self, name: str, model: type) -> Path:
        folder = self.path / name
        if not (folder / "config.json").exists():
            raise UserError(f"{folder}: no config.json, but a {model.__name__} is expected there; copy that part too")
        config = read_json(folder / "config.json")
        if issubclass(model, diffusers.ModelMixin):
            found, expected = config.get("_class_name"), model.__name__
        else:
            found, expected = config.get("model_type"), model.config_class.model_type  # type: ignore[attr-defined]
        if found != expected:
            raise UserError(f"{folder}: a {expected} expected, config.json says {found}; give the folder of the model named")
        return folder


def hub_folder(hub_id: str, parts: Sequence[str]) -> Path:
    """The parts of a published checkpoint from the local hub cache, or downloaded (full-precision safetensors only)."""
    places = [f"{part}/" if part else "" for part in parts]
    patterns = ["model_index.json", *(place + pattern for place in places for pattern in PATTERNS)]
    found = cached(hub_id, lambda folder: all(_complete(folder / part) for part in parts))
    return found if found is not None else fetch(hub_id, patterns)


def _complete(part: Path) -> bool:
    """Whether a part holds its configuration and, if it is a network, all of its weights."""
    if not (part / "config.json").exists():
        return any(part.glob("*.json"))  # tokenizers and schedulers have no weights
    named = {file for index in part.glob("*.safetensors.index.json") for file in read_json(index)["weight_map"].values()}
    return all((part / file).exists() for file in named) if named else any(part.glob("*.safetensors"))


def _fresh(model: Any, folder: Path, overrides: dict[str, Any]) -> nn.Module:
    if issubclass(model, diffusers.ModelMixin):
        return model.from_config(model.load_config(folder), **overrides)
    return model(model.config_class.from_pretrained(folder, **overrides))


def _frozen(model: nn.Module) -> nn.Module:
    return model.eval().requires_grad_(False)


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:200]


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """No reports of surplus weights (a published head, say): what is missing is checked here, and told once."""
    libraries = (diffusers.utils.logging, transformers.utils.logging)
    levels = [library.get_verbosity() for library in libraries]
    for library in libraries:
        library.set_verbosity_error()
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library, level in zip(libraries, levels):
            library.set_verbosity(level)
