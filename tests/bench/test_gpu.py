"""The GPU checks as far as a machine without a GPU can run them: the refusal and the arithmetic.

python -m pytest tests/bench/test_gpu.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from bench import gpu
from bench.gpu import Check, block_flops, checks, folded_flops, main, matmul_rate, share_of_rate, summary
from bench.teacher import Settings
from vega_artifact import UserError, read_json, read_manifest, verify_files

LARGE = Settings(size=(720, 1280), frames=32, dtype="bfloat16")


def result(total_ratio: float, dit_seconds: float) -> dict[str, Any]:
    return {"rows": [{"part": "dit", "ours_s": dit_seconds}, {"part": "total", "ratio": total_ratio}]}


def test_without_cuda_it_refuses_and_writes_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["--out", str(tmp_path / "results")]) == 2
    assert "no CUDA device" in capsys.readouterr().err
    assert not (tmp_path / "results").exists()


def test_flops_of_a_block_are_those_of_the_fact_sheet() -> None:
    assert block_flops(3600) / 1e12 == pytest.approx(0.396, abs=5e-4)
    assert block_flops(1560) / 1e12 == pytest.approx(0.155, abs=5e-4)


def test_folding_the_text_saves_its_products_alone() -> None:
    saved = block_flops(1560) - folded_flops(1560)
    text = 2 * (512 * 2 * 1536**2 + 2 * 1560 * 512 * 1536)  # keys and values of 512 rows, attention to them
    assert saved == text + 2 * 1560 * (1536**2 - 2 * 2 * 12 * 1536)  # and the output projection, but for 24 columns


def test_share_counts_only_what_is_computed() -> None:
    work = folded_flops(3600) * 21 * 32
    assert share_of_rate(LARGE, 1.0, work) == pytest.approx(1.0)
    assert share_of_rate(LARGE, 2.0, work) == pytest.approx(0.5)


@pytest.mark.parametrize(("ratio", "share", "passed"), [(2.6, 0.5, [True, True]), (2.4, 0.44, [False, False])])
def test_checks_hold_the_wanted_values(ratio: float, share: float, passed: list[bool]) -> None:
    rate = folded_flops(3600) * 21 * 32
    found = checks(LARGE, result(ratio, 1 / share), rate)
    assert [check.passed for check in found] == passed
    assert [check.value for check in found] == pytest.approx([ratio, share])
    assert summary(found).count("pass") == sum(passed)


def test_matmul_rate_is_a_rate() -> None:
    assert 1e6 < matmul_rate(torch.device("cpu"), side=64, repeats=3) < 1e15


@pytest.mark.parametrize(("ratio", "code"), [(3.0, 0), (1.0, 1)])
def test_the_folder_says_what_was_measured_and_the_exit_code_whether_it_passed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ratio: float, code: int
) -> None:
    asked: list[Settings] = []

    def measure(settings: Settings) -> dict[str, Any]:
        asked.append(settings)
        return result(ratio, 1e-3)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a card")
    monkeypatch.setattr(gpu, "matmul_rate", lambda device: 1e12)
    monkeypatch.setattr(gpu, "measure", measure)
    monkeypatch.setattr(gpu, "table", lambda measured: "")
    learnt = {"training": {"rows": [{"ratio": 0.95}]}, "latency": {}, "self_tests": {"fp32/engine": "passed"}, "absent": {}}
    monkeypatch.setattr(gpu.gpu_student, "measure", lambda settings, work: learnt)
    monkeypatch.setattr(gpu.train_speed, "table", lambda measured: "")
    monkeypatch.setattr(gpu.latency, "table", lambda measured: "")
    assert main(["--out", str(tmp_path / "card")]) == code
    assert [s.size for s in asked] == [(480, 832), (720, 1280)]
    assert {(s.dtype, s.device, s.layers, s.compile) for s in asked} == {("bfloat16", "cuda", 30, True)}
    manifest = read_manifest(tmp_path / "card", "bench")
    verify_files(tmp_path / "card", manifest)
    assert [check["passed"] for check in read_json(tmp_path / "card" / "student.json")["checks"]] == [True, True]
    written = read_json(tmp_path / "card" / "teacher.json")
    assert manifest["device"] == "a card"
    assert [check["passed"] for check in written["checks"]] == [code == 0, True, code == 0, True]


def test_an_unknown_part_lists_the_known(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--out", str(tmp_path / "card"), "--parts", "studnet"]) == 2
    assert "Did you mean 'student'" in capsys.readouterr().err and not (tmp_path / "card").exists()


def test_the_students_part_measures_and_says_what_is_not_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it for real on the CPU, in small; TensorRT is made to be absent for one file and to refuse the other."""
    answers = iter([UserError("no TensorRT here"), None])
    monkeypatch.setattr(gpu.gpu_student, "import_tensorrt", lambda: raise_(next(answers)))
    monkeypatch.setattr(gpu.gpu_student, "build_engine", lambda *_, **__: raise_(UserError("computes something else")))
    small = {"recipe": "smoke", "batch": 2, "steps": 1, "rounds": 1, "student": "vit_micro", "size": (64, 64), "repeats": 2}
    found, judged = gpu.of_student(gpu.gpu_student.Settings(**small, cpu=True))
    assert found["self_tests"]["fp32/onnxruntime"] == found["self_tests"]["fp16/onnxruntime"] == "passed"
    assert found["absent"]["fp32/engine"] == "no TensorRT here" and "fp16/onnxruntime-cuda" in found["absent"]
    assert found["self_tests"]["fp16/engine"] == "computes something else"
    assert {row["backend"] for row in found["latency"]["latency"]} == {"torch", "onnxruntime"}
    failed = [check.name for check in judged[1:] if not check.passed]
    assert judged[0].value > 0 and failed == ["self test fp16/engine (computes something else)"]


def raise_(error: Exception | None) -> None:
    if error is not None:
        raise error


def test_one_failed_check_fails() -> None:
    assert not Check("x", 0.999, 1.0).passed and Check("x", 1.0, 1.0).passed
