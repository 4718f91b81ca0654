"""Weights a backbone may start from: a file on this machine, or a repository of the Hugging Face hub when asked for by name.

`student.registry` builds the network, this file fills it. Nothing is fetched unless the source says `hub`, nothing is ever
unpickled, and a file whose values did not reach the network is refused (timm itself would go on with random weights).

    python -c "from student import create_student; create_student('deit_tiny', pretrained='deit_tiny.safetensors')"
"""

from __future__ import annotations

from pathlib import Path

import timm
import torch
from timm.models import load_state_dict
from torch import Tensor, nn

from vega_artifact import UserError, file_sha256

HUB = "hub"
HUB_FILE = "model.safetensors"
ARRIVED = 0.8  # part of a network's weight tensors that must come from the file; position embeddings may be resampled


def read_pretrained(name: str, timm_name: str, source: Path | str) -> dict[str, Tensor]:
    """The state dict behind a source.

    Args:
        name: the student's name, for messages. timm_name: the network the weights are for.
        source: path of a safetensors file or torch state dict; `hub` for timm's own default weights; `hub:REPO` or
            `hub:REPO@REVISION` for a repository of the hub that holds `model.safetensors`.

    Raises:
        UserError: no such file or repository, no network, or nothing that can be read without running code.
    """
    text = str(source)
    path = fetch(name, timm_name, text) if _of_hub(text) else Path(source)
    if not path.is_file():
        raise UserError(f"{path}: no such weight file for student {name!r}; give a safetensors or torch state dict, or `hub`")
    try:
        return load_state_dict(str(path), weights_only=True)  # never unpickles
    except Exception as error:
        raise UserError(f"{path}: no readable state dict of tensors ({first_line(error)})") from error


def weights_digest(source: Path | str | None) -> str | None:
    """SHA-256 of a weight file, because another one may come to lie at its path; None for none and for the hub, which versions.

    Raises:
        UserError: no such file.
    """
    if source is None or _of_hub(str(source)):
        return None
    if not Path(source).is_file():
        raise UserError(f"{source}: no such weight file; give a safetensors or torch state dict, or `hub`")
    return file_sha256(Path(source))


def _of_hub(source: str) -> bool:
    return source == HUB or source.startswith(f"{HUB}:")


def fetch(name: str, timm_name: str, source: str) -> Path:
    """The weight file of a hub source, from the local hub cache or downloaded into it.

    Raises:
        UserError: timm knows no weights for this network, the repository is for another one, or it cannot be reached.
    """
    repository, _, revision = source.partition(":")[2].partition("@")
    repository = repository or _default_repository(name, timm_name)
    _check_repository(name, timm_name, repository)
    import huggingface_hub  # only here: no other source needs it

    try:
        return Path(huggingface_hub.hf_hub_download(repository, HUB_FILE, revision=revision or None))
    except (OSError, ValueError, huggingface_hub.errors.HfHubHTTPError) as error:  # no network, no such name, not allowed
        advice = f"download {HUB_FILE} of it where there is a network and give the path of the file"
        raise UserError(f"{source}: {repository} cannot be fetched ({first_line(error)}); {advice}") from error


def _default_repository(name: str, timm_name: str) -> str:
    config = timm.get_pretrained_cfg(timm_name)
    if config is None or not config.hf_hub_id:
        raise UserError(
            f"hub: timm knows no pretrained weights for student {name!r} ({timm_name}); give a file or leave it out"
        )
    return config.hf_hub_id


def _check_repository(name: str, timm_name: str, repository: str) -> None:
    """Of timm's own repositories (`timm/NETWORK.TAG`) the name alone says whether they fit."""
    owner, _, full = repository.partition("/")
    network, _, tag = full.partition(".")
    if owner != "timm" or not tag:
        return
    wanted_network = timm_name.partition(".")[0]  # `timm:NETWORK.TAG` names its weights too
    if network != wanted_network:
        raise UserError(
            f"hub:{repository}: weights of {network}, but student {name!r} is {timm_name}; give those of {wanted_network}"
        )
    wanted, found = timm.get_pretrained_cfg(timm_name), timm.get_pretrained_cfg(f"{network}.{tag}", allow_unregistered=True)
    if (
        wanted and found and (wanted.mean, wanted.std) != (found.mean, found.std)
    ):  # a run records the name, not the weights' tag
        text = f"these weights want images with mean {found.mean}, student {name!r} normalises with {wanted.mean}"
        raise UserError(f"hub:{repository}: {text}; give other weights")


def check_arrival(name: str, source: Path | str, model: nn.Module, state: dict[str, Tensor]) -> None:
    """Refuse a state dict whose values did not reach the model; names and shapes may have been converted on the way.

    A tensor counts as arrived when one of as many elements with the same sum is in the file.

    Raises:
        UserError: more than a fifth of the weight tensors are not from the file.
    """
    known = {_mark(tensor) for tensor in state.values()}
    weights = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    arrived = sum(_mark(weight) in known for weight in weights)
    if arrived < ARRIVED * len(weights):
        found = f"{arrived} of the {len(weights)} weight tensors of student {name!r}"
        raise UserError(f"{source}: holds {found}, so it is for another network; give weights of this one")


def _mark(tensor: Tensor) -> tuple[int, float]:
    return tensor.numel(), float(tensor.detach().double().sum().to(torch.float32))


def first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
