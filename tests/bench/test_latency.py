"""Latency: the arithmetic with a clock of our own, and one small real measurement.

python -m pytest tests/bench/test_latency.py
"""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.latency import Case, device_name, main, measure, time_cases
from bench.schema import ROWS, check_rows
from export import export_run
from student import create_student
from student.checkpoint import WEIGHTS, config_to_json, save_weights
from vega_artifact import UserError, read_manifest, write_manifest


def make_run(folder: Path, seed: int) -> Path:
    student = create_student("vit_micro", {"fused": 8}, (32, 32), (2, 2), seed=seed)
    folder.mkdir()
    save_weights(folder / WEIGHTS, student.state_dict())
    write_manifest(folder, "run", {"seed": seed}, {"cache": "0" * 16}, [WEIGHTS], student=config_to_json(student.config))
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("run") / "run", 0)


@pytest.fixture(scope="module")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_run(run, tmp_path_factory.mktemp("export") / "export")


class FakeMachine:
    """A clock that steps only when a case works, and a log of who worked."""

    def __init__(self) -> None:
        self.now = 0
        self.log: list[str] = []

    def clock(self) -> int:
        return self.now

    def case(self, name: str, durations_ms: list[float], pre_ms: float = 1.0, post_ms: float = 0.5) -> Case:
        infer = itertools.cycle(durations_ms)

        def spend(milliseconds: float, value: object) -> object:
            self.now += int(milliseconds * 1e6)
            return value

        def work(value: object) -> object:
            self.log.append(name)
            return spend(next(infer), value)

        steps = (lambda value: spend(pre_ms, value), work, lambda value: spend(post_ms, value))
        return Case("student", name, "fp32", np.zeros((2, 8, 8, 3), np.uint8), steps)


class TestArithmetic:
    def test_percentiles_and_stages(self) -> None:
        machine = FakeMachine()
        case = machine.case("torch", [float(value) for value in range(1, 102)])
        case.samples = [case.run(machine.clock) for _ in range(101)]
        row = case.row((8, 8))
        assert row["p50_ms"] == pytest.approx(51 + 1.5) and row["p90_ms"] == pytest.approx(91 + 1.5)
        assert row["p99_ms"] == pytest.approx(100 + 1.5) and row["n"] == 101 and row["batch"] == 2
        stages = case.stages()
        assert stages["pre"]["p50_ms"] == 1 and stages["post"]["p99_ms"] == 0.5 and stages["infer"]["p50_ms"] == 51

    def test_warm_up_waits_until_stable(self) -> None:
        machine = FakeMachine()
        slow_start = machine.case("torch", [100.0 / 2**step for step in range(7)] + [1.0] * 500)
        slow_start.warm_up(machine.clock)
        assert slow_start.settled and 14 <= slow_start.warmup <= 20
        steady = machine.case("torch", [10.0])
        steady.warm_up(machine.clock)
        assert steady.settled and steady.warmup == 10

    def test_warm_up_gives_up_and_says_so(self) -> None:
        machine = FakeMachine()
        drifting = machine.case("torch", [1.5**step for step in range(40)])
        drifting.warm_up(machine.clock)
        assert not drifting.settled and drifting.warmup == 40

    def test_cases_take_turns_and_nobody_is_always_first(self) -> None:
        machine = FakeMachine()
        cases = [machine.case(name, [5.0]) for name in "abc"]
        time_cases(cases, 4, machine.clock)
        timed = "".join(machine.log[-12:])
        assert timed == "abcbcacababc"
        assert all(len(case.samples) == 4 for case in cases)


@pytest.fixture(scope="module")
def result(run: Path, exported: Path) -> dict:
    return measure(exported, run, batches=(1, 2), repeats=6)


class TestMeasurement:
    def test_rows_are_the_reports_rows(self, result: dict) -> None:
        check_rows(result["latency"], ROWS["latency"], "latency")
        names = {(row["model"], row["backend"], row["batch"]) for row in result["latency"]}
        expected = {("student", "torch"), ("student_exported", "onnxruntime")}
        assert {(*pair, batch) for pair in expected for batch in (1, 2)} <= names
        assert all(row["size"] == [32, 32] and row["n"] == 6 for row in result["latency"])

    def test_raw_samples_and_stages_are_kept(self, result: dict) -> None:
        for row, (name, record) in zip(result["latency"], result["samples"].items()):
            assert [len(record[f"{stage}_ms"]) for stage in ("pre", "infer", "post")] == [6, 6, 6]
            assert record["warmup_calls"] >= 10
            whole = np.sum([record[f"{stage}_ms"] for stage in ("pre", "infer", "post")], axis=0)
            assert row["p50_ms"] == pytest.approx(float(np.median(whole)))
            assert result["stages"][name]["infer"]["p50_ms"] <= row["p50_ms"]

    def test_machine_is_named(self, result: dict, exported: Path) -> None:
        machine = result["machine"]
        assert machine["device"] and machine["cores"] >= 1 and machine["threads"] == 1
        assert machine["export"] == read_manifest(exported, "export")["fingerprint"]

    def test_torchs_threads_are_put_back(self, run: Path, exported: Path) -> None:
        before = torch.get_num_threads()
        torch.set_num_threads(2)
        try:
            measure(exported, run, batches=(1,), repeats=1, threads=1)
            assert torch.get_num_threads() == 2
        finally:
            torch.set_num_threads(before)

    def test_without_a_run_only_the_export_is_timed(self, exported: Path) -> None:
        rows = measure(exported, batches=(1,), repeats=2)["latency"]
        assert {row["model"] for row in rows} == {"student_exported"}

    def test_command_writes_json(self, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        out = tmp_path / "latency.json"
        assert main([str(exported), "--batches", "1", "--repeats", "2", "--out", str(out)]) == 0
        assert "student_exported/onnxruntime/fp32/b1" in capsys.readouterr().out
        assert json.loads(out.read_text())["latency"][0]["batch"] == 1


class TestBadInput:
    def test_run_of_another_export(self, exported: Path, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"parents\.run is"):
            measure(exported, make_run(tmp_path / "other", 1))

    @pytest.mark.parametrize("options", [{"repeats": 0}, {"batches": ()}, {"batches": (0,)}, {"threads": 0}])
    def test_numbers_below_one(self, exported: Path, options: dict) -> None:
        with pytest.raises(UserError, match="at least 1"):
            measure(exported, **options)

    def test_no_export(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main([str(tmp_path)]) == 2
        assert capsys.readouterr().err.startswith("error: ")

    def test_altered_export(self, exported: Path, tmp_path: Path) -> None:
        copy = Path(shutil.copytree(exported, tmp_path / "copy"))
        (copy / "student.onnx").write_bytes(b"x")
        with pytest.raises(UserError, match="not the file that was exported"):
            measure(copy)


def test_device_name_prefers_the_board(tmp_path: Path) -> None:
    (tmp_path / "model").write_bytes(b"NVIDIA Jetson Orin Nano Developer Kit\0")
    (tmp_path / "cpuinfo").write_text("processor : 0\nmodel name\t: Some CPU @ 2 GHz\n")
    assert device_name(tmp_path / "model", tmp_path / "cpuinfo") == "NVIDIA Jetson Orin Nano Developer Kit"
    assert device_name(tmp_path / "none", tmp_path / "cpuinfo") == "Some CPU @ 2 GHz"
    assert device_name(tmp_path / "none", tmp_path / "none")
