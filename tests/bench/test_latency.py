"""Latency: the arithmetic with a clock of our own, and one small real measurement.

python -m pytest tests/bench/test_latency.py
"""

from __future__ import annotations

import itertools
import json
import shutil
from importlib import metadata
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from bench.latency import main, measure, table
from bench.nvml import Nvml
from bench.scenarios import Rules, play
from bench.schema import ROWS, check_rows
from bench.sensors import Reading
from bench.timing import Case, time_cases, warm_up_all
from export import export_run
from tests.bench.small_runs import make_run
from vega_artifact import UserError, read_manifest


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("run") / "run", 0, {"fused": 8})


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

    def case(self, name: str, durations_ms: list[float], pre_ms: float = 1.0, post_ms: float = 0.5, batch: int = 2) -> Case:
        infer = itertools.cycle(durations_ms)

        def spend(milliseconds: float, value: object) -> object:
            self.now += int(milliseconds * 1e6)
            return value

        def work(value: object) -> object:
            self.log.append(name)
            return spend(next(infer), value)

        steps = (lambda value: spend(pre_ms, value), work, lambda value: spend(post_ms, value))
        return Case("student", name, "fp32", np.zeros((batch, 8, 8, 3), np.uint8), steps, (8, 8))


class TestArithmetic:
    def test_percentiles_and_stages(self) -> None:
        machine = FakeMachine()
        case = machine.case("torch", [float(value) for value in range(1, 102)])
        case.samples = [case.run(machine.clock) for _ in range(101)]
        row = case.row()
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

    def test_copies_apart_add_up_to_infer(self) -> None:
        machine = FakeMachine()
        case = machine.case("cuda", [4.0])
        pre, infer, post = case.steps
        case.steps = (pre, pre, infer, pre, post)  # h2d 1 ms, compute 4 ms, d2h 1 ms
        case.samples = [case.run(machine.clock) for _ in range(3)]
        stages = case.stages()
        assert [stages[name]["p50_ms"] for name in ("h2d", "compute", "d2h", "infer")] == [1, 4, 1, 6]
        assert case.row()["p50_ms"] == 1 + 6 + 0.5
        assert case.record()["compute_ms"] == [4, 4, 4]

    def test_memory_is_what_the_warm_up_added(self) -> None:
        machine = FakeMachine()
        cases = [machine.case("a", [5.0]), machine.case("b", [5.0])]
        levels = iter([100.0, 130.5, 130.5, None])
        warm_up_all(cases, machine.clock, lambda: next(levels))
        assert [case.memory_mib for case in cases] == [30.5, None]


class FakeSource:
    """A GPU that draws 10 W while the fake machine works, by a counter of joules."""

    name = "fake"

    def __init__(self, machine: FakeMachine) -> None:
        self.machine = machine
        self.closed = False

    def settings(self) -> dict:
        return {"gpu": "Fake GPU"}

    def read(self) -> Reading:
        return Reading(power_w=10.0, energy_j=10.0 * self.machine.now / 1e9 + 5, throttle=("power cap",))

    def close(self) -> None:
        self.closed = True


class FakeGpu(FakeSource, Nvml):
    """One that NVML reads: 100 MiB in use at first, 900 MiB later."""

    def __init__(self, machine: FakeMachine) -> None:
        super().__init__(machine)
        self.used = iter([100.0, 900.0])

    def used_mib(self) -> float:
        return next(self.used)


class TestScenarios:
    def test_single_stream_ends_when_both_minima_are_reached(self) -> None:
        machine = FakeMachine()
        case = machine.case("torch", [8.5], batch=1)  # 10 ms a call
        by_time = play([case], Rules(("single_stream",), seconds=1.0, queries=5), machine.clock)[0]
        assert by_time["queries"] == 100 and by_time["seconds"] == pytest.approx(1.0)
        by_count = play([case], Rules(("single_stream",), seconds=0.0, queries=5), machine.clock)[0]
        assert by_count["queries"] == 5 and len(by_count["samples_ms"]) == 5
        assert by_count["metric"] == "p90_ms" and by_count["value"] == pytest.approx(10.0)

    def test_offline_takes_the_largest_batch_of_each_backend(self) -> None:
        machine = FakeMachine()
        cases = [machine.case(name, [98.5], batch=batch) for batch in (1, 4) for name in ("a", "b")]
        rows = play(cases, Rules(("offline",), seconds=0.0, queries=2), machine.clock)
        assert [(row["backend"], row["batch"]) for row in rows] == [("a", 4), ("b", 4)]
        assert all(row["metric"] == "samples_per_s" and row["value"] == pytest.approx(40.0) for row in rows)

    def test_energy_belongs_to_the_scenario(self) -> None:
        machine = FakeMachine()
        case = machine.case("gpu", [98.5], batch=4)  # 0.1 s and so 1 J a call
        row = play([case], Rules(("offline",), 0.0, 10), machine.clock, FakeSource(machine))[0]
        assert row["joule_per_frame"] == pytest.approx(0.25) and row["throttled"] == "power cap"

    def test_single_stream_needs_single_frames(self) -> None:
        machine = FakeMachine()
        with pytest.raises(UserError, match="add 1 to the batches"):
            play([machine.case("a", [1.0])], Rules(("single_stream",)), machine.clock)


@pytest.fixture(scope="module")
def result(run: Path, exported: Path) -> dict:
    return measure(exported, run, batches=(1, 2), repeats=6, rules=Rules(("single_stream", "offline"), 0.0, 3))


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
        assert read_manifest(exported, "export")["fingerprint"] in machine["artifacts"]

    def test_scenarios_and_memory_are_there(self, result: dict) -> None:
        played = [(row["scenario"], row["backend"], row["batch"], row["queries"]) for row in result["scenarios"]]
        backends = ("torch", "onnxruntime")
        assert played == [
            (name, backend, batch, 3) for name, batch in (("single_stream", 1), ("offline", 2)) for backend in backends
        ]
        assert result["memory"]["peak_mib"] > 1
        assert "offline student/torch/fp32/b2" in table(result) and "frames/s" in table(result)

    def test_versions_are_written_down(self, result: dict) -> None:
        versions = result["machine"]["versions"]
        assert versions["numpy"] == np.__version__ and versions["torch"] == metadata.version("torch")
        assert onnxruntime.__version__ in (versions.get("onnxruntime"), versions.get("onnxruntime-gpu"))

    def test_memory_of_the_gpu_is_told_by_nvml_alone(self, result: dict, exported: Path) -> None:
        assert result["memory"].keys() == {"peak_mib", "gpu_before_mib", "gpu_mib"}
        found = measure(exported, batches=(1,), repeats=1, sensors=lambda: FakeGpu(FakeMachine()))
        assert (found["memory"]["gpu_before_mib"], found["memory"]["gpu_mib"]) == (100.0, 900.0)
        found = measure(exported, batches=(1,), repeats=1, sensors=lambda: FakeSource(FakeMachine()))
        assert found["memory"]["gpu_mib"] is None

    def test_a_source_is_told_of_and_closed(self, exported: Path) -> None:
        source = FakeSource(FakeMachine())
        found = measure(exported, batches=(1,), repeats=1, sensors=lambda: source)
        assert source.closed and found["machine"]["gpu"] == "Fake GPU" and found["conditions"]["source"] == "fake"
        assert "held back while it was measured: power cap" in table(found)

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
            measure(exported, make_run(tmp_path / "other", 1, {"fused": 8}))

    @pytest.mark.parametrize("options", [{"repeats": 0}, {"batches": ()}, {"batches": (0,)}, {"threads": 0}, {"artifacts": ()}])
    def test_numbers_below_one(self, exported: Path, options: dict) -> None:
        with pytest.raises(UserError, match="at least 1"):
            measure(**{"artifacts": exported, **options})

    @pytest.mark.parametrize("options", [["--min-count", "0"], ["--min-seconds", "nan"]])
    def test_scenarios_of_nothing(self, exported: Path, options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        assert main([str(exported), "--scenarios", "offline", *options]) == 2
        assert "at least 0 s and 1 call are needed" in capsys.readouterr().err

    def test_unknown_scenario_is_named_with_the_known_ones(self) -> None:
        with pytest.raises(UserError, match=r"unknown scenario 'multi_stream'.*offline, single_stream"):
            Rules(("multi_stream",))

    def test_no_export(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main([str(tmp_path)]) == 2
        assert capsys.readouterr().err.startswith("error: ")

    def test_altered_export(self, exported: Path, tmp_path: Path) -> None:
        copy = Path(shutil.copytree(exported, tmp_path / "copy"))
        (copy / "student.onnx").write_bytes(b"x")
        with pytest.raises(UserError, match="not the file that was exported"):
            measure(copy)
