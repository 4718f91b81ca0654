"""One optimiser step: accumulation, the fp16 scaler, compilation, and what a sharded module cannot do."""

import dataclasses
import json

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from distill import RunConfig, train
from distill.batches import Batch
from distill.distiller import Distiller
from distill.engine import Engine, create_accelerator
from distill.log import read_log
from distill.losses import Objective
from student import create_student
from vega_artifact import UserError


@pytest.fixture
def adamw(quick) -> RunConfig:
    return dataclasses.replace(quick, optimizer="adamw")


def engine(config: RunConfig, accelerator=None) -> Engine:
    student = create_student(heads={"fused": 3}, image_size=(32, 32), grid=(2, 2)).train()
    distiller = Distiller(student, Objective(weights={"fused": 1.0}), config.precision)
    return Engine(accelerator or Accelerator(cpu=True), distiller, config)


def batch(rows: slice = slice(None)) -> Batch:
    generator = torch.Generator().manual_seed(0)
    pixels, tokens = torch.randn(8, 3, 32, 32, generator=generator), torch.randn(8, 4, 3, generator=generator)
    return Batch(pixels[rows], {"fused": tokens[rows]})


def gradients(found: Engine) -> torch.Tensor:
    return torch.cat([parameter.grad.flatten() for parameter in found.bare.parameters()])


def test_parts_add_up_to_the_whole_batch(adamw):
    whole, parted = engine(adamw), engine(adamw)
    expected = whole.step(0, [batch()])
    found = parted.step(0, [batch(slice(0, 2)), batch(slice(2, 4)), batch(slice(4, 6)), batch(slice(6, 8))])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradients(parted), gradients(whole), rtol=1e-4, atol=1e-7)


def test_gradients_are_clipped_and_the_norm_before_is_told(adamw):
    clipped = engine(dataclasses.replace(adamw, clip=1e-3))
    norm = clipped.step(0, [batch()])[-1]
    assert norm > 1e-2 and gradients(clipped).norm().item() == pytest.approx(1e-3, rel=1e-3)
    free = engine(dataclasses.replace(adamw, clip=0.0))
    assert free.step(0, [batch()])[-1] == norm and gradients(free).norm().item() == pytest.approx(norm.item(), rel=1e-3)


def test_fp16_scales_the_loss_and_leaves_out_a_step_that_overflows(adamw):
    half = engine(dataclasses.replace(adamw, precision="fp16"))
    single = engine(adamw)
    scalars = half.step(0, [batch()])
    assert half.finite(scalars)
    torch.testing.assert_close(scalars, single.step(0, [batch()]), rtol=0.02, atol=0.01)  # unscaled before it is measured
    before = {name: value.clone() for name, value in half.weights().items()}
    half.scaler.update(2.0**60)  # a scale at which every gradient overflows
    scalars = half.step(0, [batch()])
    assert not torch.isfinite(scalars[-1]) and half.finite(scalars), "the scaler deals with it"
    half.apply(0)
    assert all(torch.equal(value, before[name]) for name, value in half.weights().items())
    assert half.scaler.get_scale() == 2.0**59
    half.scaler.update(0.5)
    assert not half.finite(scalars), "a scale that low means that no scale helps"
    assert not single.finite(scalars), "without a scaler it is a fault"


def test_a_checkpoint_brings_the_scaler_back(adamw, tmp_path):
    half = engine(dataclasses.replace(adamw, precision="fp16"))
    half.step(0, [batch()])
    half.scaler.update(1234.0)
    saved = half.checkpoint(3, 1.0)
    assert json.loads(json.dumps(saved.scaler)) == saved.scaler, "plain numbers: it is written as JSON"
    fresh = engine(dataclasses.replace(adamw, precision="fp16"))
    fresh.restore(saved, tmp_path)
    fresh.step(3, [batch()])
    assert fresh.scaler.get_scale() == 1234.0


def test_an_fp16_run_trains(adamw, cache_path, tmp_path):
    run = train(cache_path, tmp_path / "run", dataclasses.replace(adamw, precision="fp16", steps=6))
    losses = [record["loss"] for record in read_log(run / "log.jsonl") if "loss" in record]
    assert losses[-1] < 0.9 * losses[0]


def test_the_learning_rate_grows_with_the_batch(adamw):
    def rates(**changes):
        return [group["peak"] for group in engine(dataclasses.replace(adamw, **changes)).optimizers[0].param_groups]

    assert rates() == [1e-3, 1e-3]
    assert rates(rate_scaling="sqrt", batch=64, rate_batch=256) == pytest.approx([5e-4, 5e-4])
    assert rates(rate_scaling="linear", batch=64, rate_batch=256) == pytest.approx([2.5e-4, 2.5e-4])


def test_a_compiled_backbone_gives_the_same_gradients(adamw, monkeypatch):
    """Compiled without a code generator: what is checked is that the graph is caught and that names stay."""
    compile_ = nn.Module.compile
    compiled = []

    def plainly(module: nn.Module) -> None:
        compiled.append(module)
        compile_(module, backend="eager")

    monkeypatch.setattr(nn.Module, "compile", plainly)
    fused, plain = engine(dataclasses.replace(adamw, compile=True)), engine(adamw)
    torch.testing.assert_close(fused.step(0, [batch()]), plain.step(0, [batch()]))
    assert compiled == [fused.bare.student.backbone] and fused.weights().keys() == plain.weights().keys()


class Spread:
    """An accelerator that says it shards; nothing is run on it."""

    def __init__(self, kind: str) -> None:
        self.distributed_type = type("Kind", (), {"value": kind})


@pytest.mark.parametrize(
    "kind, changes, message",
    [
        ("FSDP", {"optimizer": "muon"}, "muon needs whole matrices, FSDP shards them; set optimizer=adamw"),
        ("DEEPSPEED", {"ema": 0.9}, "an average of weights that DEEPSPEED shards is not kept; set ema=0"),
        ("DEEPSPEED", {"accumulate": 2}, "DeepSpeed steps after every part; set accumulate=1"),
    ],
)
def test_what_a_sharded_module_cannot_do_is_said(kind, changes, message, adamw):
    with pytest.raises(UserError, match=message):
        engine(dataclasses.replace(adamw, **changes), Spread(kind))


def test_processes_that_do_not_find_each_other_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")  # of a launcher that gave no place to meet
    monkeypatch.setattr("accelerate.Accelerator", lambda **options: type("One", (), {"num_processes": 1}))
    with pytest.raises(UserError, match="2 processes were launched, accelerate sees 1; start them with torchrun"):
        create_accelerator()


def test_a_launcher_that_starts_one_process_where_two_were_asked_for_is_told_of(monkeypatch, capsys):
    for name, value in {"ACCELERATE_USE_CPU": "True", "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)  # what `accelerate launch --cpu --num_processes 2` leaves
    assert create_accelerator().num_processes == 1
    assert "use torchrun --nproc_per_node N, or give that flag where MPI is there" in capsys.readouterr().err
