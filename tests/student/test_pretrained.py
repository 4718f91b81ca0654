"""Where a backbone's first weights come from: files and the hub, and everything that must be refused.

python -m pytest tests/student/test_pretrained.py
"""

import huggingface_hub
import pytest
import torch
from safetensors.torch import save_file

from student.pretrained import HUB_FILE, check_arrival
from student.registry import create_backbone
from vega_artifact import UserError

SIZE = (64, 64)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Files of weights as they are published, classifier included, by the network's name."""
    folder = tmp_path_factory.mktemp("weights")
    import timm

    torch.manual_seed(0)
    for name in ("deit_tiny_patch16_224", "mobilenetv4_conv_small", "repvit_m1"):
        save_file(timm.create_model(name).state_dict(), folder / f"{name}.safetensors")
    return folder


def test_a_pyramid_takes_published_weights_although_its_classifier_is_gone(weights):
    path = weights / "mobilenetv4_conv_small.safetensors"
    first, second = (create_backbone("mobilenetv4_conv_small", SIZE, path)[0] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters()))
    fresh, _ = create_backbone("mobilenetv4_conv_small", SIZE)
    assert not torch.equal(next(first.parameters()), next(fresh.parameters()))


@pytest.mark.parametrize("name", ["repvit_m1", "deit_tiny"])
def test_weights_of_another_network_are_refused_instead_of_ignored(weights, name):
    path = weights / "mobilenetv4_conv_small.safetensors"
    with pytest.raises(UserError, match=rf"mobilenetv4_conv_small.safetensors: holds 0 of the \d+ weight tensors of .*{name}"):
        create_backbone(name, SIZE, path)


def test_arrival_allows_renamed_and_reshaped_tensors_but_not_too_many_strangers():
    model = torch.nn.Sequential(*(torch.nn.Linear(3, 4) for _ in range(10)))
    state = {f"other.{key}": value.clone().flatten() for key, value in model.state_dict().items()}
    check_arrival("x", "file", model, state)
    for index in range(2):
        del state[f"other.{index}.weight"]
    check_arrival("x", "file", model, state)
    del state["other.2.weight"]
    with pytest.raises(UserError, match="file: holds 7 of the 10 weight tensors of student 'x'"):
        check_arrival("x", "file", model, state)


@pytest.mark.parametrize(
    ("source", "repository", "revision"),
    [
        ("hub", "timm/deit_tiny_patch16_224.fb_in1k", None),
        ("hub:timm/deit_tiny_patch16_224.fb_in1k@0123abc", "timm/deit_tiny_patch16_224.fb_in1k", "0123abc"),
        ("hub:somebody/deit-of-mine", "somebody/deit-of-mine", None),
    ],
)
def test_the_hub_is_asked_only_for_what_was_named(weights, monkeypatch, source, repository, revision):
    asked = []

    def download(repo_id, filename, revision=None):
        asked.append((repo_id, filename, revision))
        return str(weights / "deit_tiny_patch16_224.safetensors")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    create_backbone("deit_tiny", SIZE)
    assert asked == []
    loaded, _ = create_backbone("deit_tiny", SIZE, source)
    assert asked == [(repository, HUB_FILE, revision)]
    tagged, _ = create_backbone("timm:deit_tiny_patch16_224.fb_in1k", SIZE, source)
    assert torch.equal(tagged.model.blocks[2].attn.qkv.weight, loaded.model.blocks[2].attn.qkv.weight)
    same, _ = create_backbone("deit_tiny", SIZE, weights / "deit_tiny_patch16_224.safetensors")
    assert torch.equal(loaded.model.blocks[2].attn.qkv.weight, same.model.blocks[2].attn.qkv.weight)


def test_without_a_network_the_error_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        UserError, match=r"hub: timm/deit_tiny_patch16_224.fb_in1k cannot be fetched .*give the path of the file"
    ):
        create_backbone("deit_tiny", SIZE, "hub")


@pytest.mark.parametrize(
    ("name", "source", "message"),
    [
        (
            "deit_tiny",
            "hub:timm/deit_small_patch16_224.fb_in1k",
            "weights of deit_small_patch16_224, but student 'deit_tiny' is",
        ),
        ("timm:convnext_atto_rms", "hub", "timm knows no pretrained weights for student 'timm:convnext_atto_rms'"),
        ("deit_tiny", "hub:not a name", "hub:not a name: .* cannot be fetched"),
        ("deit_tiny", "hub.safetensors", "hub.safetensors: no such weight file for student 'deit_tiny'"),
    ],
)
def test_sources_that_cannot_fit_are_refused(monkeypatch, name, source, message):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=message):
        create_backbone(name, SIZE, source)
