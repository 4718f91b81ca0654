"""A step that is not finite is explained: which target, weight, module or gradient, and which frames."""

import pytest
import torch
from torch import nn

from distill.batches import Batch
from distill.distiller import Distiller
from distill.guard import find_fault
from distill.losses import Objective
from student import create_student

NAMES = [f"scene/{k}" for k in range(8)]


@pytest.fixture
def distiller() -> Distiller:
    student = create_student(heads={"fused": 3}, image_size=(32, 32), grid=(2, 2)).train()
    return Distiller(student, Objective(weights={"fused": 1.0}), "fp32")


@pytest.fixture
def batch() -> Batch:
    generator = torch.Generator().manual_seed(0)
    pixels, tokens = torch.randn(8, 3, 32, 32, generator=generator), torch.randn(8, 4, 3, generator=generator)
    return Batch(pixels, {"fused": tokens})


def test_a_healthy_step_has_no_fault_and_leaves_no_trace(distiller, batch):
    assert find_fault(distiller, batch) is None
    assert all(parameter.grad is None for parameter in distiller.parameters())
    assert not any(module._forward_hooks for module in distiller.modules())


def test_a_bad_target_names_its_frames(distiller, batch):
    batch.targets["fused"][[2, 5], 1] = float("inf")
    told = find_fault(distiller, batch).told(NAMES)
    assert told == "the target 'fused' is not finite (frames scene/2, scene/5); extract the cache again"


def test_a_bad_weight_is_named(distiller, batch):
    with torch.no_grad():
        distiller.student.backbone.model.blocks[1].mlp.fc1.bias[0] = float("nan")
    assert find_fault(distiller, batch).what == "the weight backbone.model.blocks.1.mlp.fc1.bias is not finite before the step"


def test_the_first_bad_module_is_the_innermost_and_its_frames_are_named(distiller, batch):
    class Burst(nn.Module):
        def forward(self, x):
            return x.index_fill(0, torch.tensor([3]), float("inf"))

    distiller.student.backbone.model.blocks[2].mlp.act = Burst()
    fault = find_fault(distiller, batch)
    assert fault.what == "the output of module backbone.model.blocks.2.mlp.act is not finite" and fault.rows == [3]
    assert "(frames scene/3); lower the learning rates" in fault.told(NAMES)


def test_a_bad_gradient_alone_is_found(distiller, batch):
    class Cliff(nn.Module):
        """The identity, whose slope is nowhere finite."""

        def forward(self, x):
            return x + (torch.zeros_like(x) * x).sqrt() * 0

    distiller.student.heads["fused"].append(Cliff())
    fault = find_fault(distiller, batch)
    assert fault.what == "the gradient of heads.fused.3.bias is not finite"
    assert fault.told(NAMES).startswith(
        f"{fault.what} (frames scene/0, scene/1, scene/2, scene/3, scene/4, scene/5 and 2 more)"
    )


def test_a_loss_that_overflows_is_named_by_its_stream(distiller, batch):
    class Huge(nn.Module):
        def forward(self, x):
            return x * 0 + 3e38

    distiller.student.heads["fused"].append(Huge())
    assert find_fault(distiller, batch).what == "the loss of stream 'fused' is not finite"
