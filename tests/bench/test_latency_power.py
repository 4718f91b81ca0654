"""Sensors on recorded lines and trees, a GPU's library that is faked, and what a report makes of the readings.

python -m pytest tests/bench/test_latency_power.py
"""

from __future__ import annotations

import ctypes
import itertools
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from bench import device, power
from bench.device import device_name, l4t_version, loaded_library, machine, power_mode, resident_mib, settings, versions
from bench.nvml import Nvml
from bench.power import Sample, Sampler, summarise, throttled
from bench.sensors import Board, Reading, Tegrastats, parse_tegrastats

ORIN_NANO = (  # JetPack 6
    "11-21-2026 10:00:00 RAM 3941/7620MB (lfb 6x4MB) SWAP 0/3810MB (cached 0MB) "
    "CPU [12%@1510,3%@1728,off,off,0%@1510,1%@1510] EMC_FREQ 0%@2133 GR3D_FREQ 99%@[918] NVDEC off NVJPG off VIC off OFA off "
    "APE 200 cv0@-256C cpu@48.5C soc2@47.1C gpu@49.25C tj@49.25C soc1@48C "
    "VDD_IN 7450mW/7021mW VDD_CPU_GPU_CV 2612mW/2405mW VDD_SOC 1801mW/1760mW"
)
NANO = (  # JetPack 4
    "RAM 1503/3964MB (lfb 1x1MB) SWAP 0/1982MB (cached 0MB) IRAM 0/252kB(lfb 252kB) CPU [21%@1479,19%@1479,off,off] "
    "EMC_FREQ 0% GR3D_FREQ 61%@921 APE 25 PLL@25C CPU@27.5C PMIC@100C GPU@27C AO@34C thermal@27.25C "
    "POM_5V_IN 2213/2213 POM_5V_GPU 82/82 POM_5V_CPU 493/493"
)
XAVIER = (  # no rail feeds the module
    "RAM 2465/31919MB (lfb 7028x4MB) CPU [0%@1190,0%@1190] EMC_FREQ 0%@665 GR3D_FREQ 0% MCPU@36C PMIC@100C "
    "GPU 0/0 CPU 311/311 SOC 934/934 CV 0/0 VDDRQ 156/156 SYS5V 1447/1447"
)


class TestTegrastats:
    def test_jetpack_6(self) -> None:
        reading = parse_tegrastats(ORIN_NANO)
        assert reading.power_w == 7.45 and reading.rails_w == {"VDD_IN": 7.45, "VDD_CPU_GPU_CV": 2.612, "VDD_SOC": 1.801}
        assert (reading.temperature_c, reading.gpu_mhz, reading.cpu_mhz) == (49.25, 918.0, 1728.0)

    def test_jetpack_4_writes_no_units(self) -> None:
        reading = parse_tegrastats(NANO)
        assert reading.power_w == 2.213 and set(reading.rails_w) == {"POM_5V_IN", "POM_5V_GPU", "POM_5V_CPU"}
        assert (reading.gpu_mhz, reading.cpu_mhz) == (921.0, 1479.0)

    def test_without_an_input_rail_all_are_summed(self) -> None:
        reading = parse_tegrastats(XAVIER)
        assert reading.power_w == pytest.approx(0.311 + 0.934 + 0.156 + 1.447) and reading.gpu_mhz is None

    @pytest.mark.parametrize("line", ["", "tegrastats: command not found", "RAM 2/4MB SWAP 0/0MB (cached 0MB) CPU [off,off]"])
    def test_what_is_not_told_stays_none(self, line: str) -> None:
        assert parse_tegrastats(line) == Reading()

    def test_the_program_is_followed_and_ended(self, tmp_path: Path) -> None:
        program = tmp_path / "tegrastats"
        program.write_text(f"#!/bin/sh\necho '{NANO}'\nexec sleep 60\n")
        program.chmod(0o755)
        running = Tegrastats(str(program))
        for _ in range(500):
            if running.read().power_w is not None:
                break
            power.time.sleep(0.01)
        running.close()
        assert running.read().power_w == 2.213 and running._process.returncode is not None


def write_tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{text}\n")
    return root


ORIN_TREE = {
    "class/hwmon/hwmon1/name": "ina3221",
    "class/hwmon/hwmon1/in1_label": "VDD_IN",
    "class/hwmon/hwmon1/in1_input": "5040",
    "class/hwmon/hwmon1/curr1_input": "1480",
    "class/hwmon/hwmon1/in2_label": "VDD_CPU_GPU_CV",
    "class/hwmon/hwmon1/in2_input": "5032",
    "class/hwmon/hwmon1/curr2_input": "520",
    "class/hwmon/hwmon1/in3_label": "NC",
    "class/hwmon/hwmon1/in3_input": "0",
    "class/hwmon/hwmon1/curr3_input": "0",
    "class/hwmon/hwmon1/in7_label": "sum of shunt voltages",
    "class/hwmon/hwmon1/in7_input": "12",
    "class/hwmon/hwmon3/name": "soctherm_oc",
    "class/hwmon/hwmon3/oc1_event_cnt": "1",
    "class/hwmon/hwmon3/oc3_event_cnt": "4",
    "class/thermal/thermal_zone0/temp": "48500",
    "class/thermal/thermal_zone1/temp": "-256000",
    "class/devfreq/17000000.gpu/cur_freq": "918000000",
    "class/devfreq/15340000.vic/cur_freq": "1000000",
    "devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "1510400",
    "devices/system/cpu/cpu1/cpufreq/scaling_cur_freq": "729600",
}


class TestBoard:
    def test_an_orin(self, tmp_path: Path) -> None:
        board = Board(write_tree(tmp_path, ORIN_TREE))
        reading = board.read()
        assert board.tells and reading.rails_w == pytest.approx({"VDD_IN": 7.4592, "VDD_CPU_GPU_CV": 2.61664})
        assert reading.power_w == pytest.approx(7.4592) and reading.over_current == 5
        assert (reading.temperature_c, reading.gpu_mhz, reading.cpu_mhz) == (48.5, 918.0, 1510.4)

    def test_a_monitor_that_tells_watts_itself(self, tmp_path: Path) -> None:
        tree = {"class/hwmon/hwmon0/name": "ina238", "class/hwmon/hwmon0/power1_input": "21500000"}
        assert Board(write_tree(tmp_path, tree)).read().power_w == 21.5

    def test_a_machine_that_tells_nothing(self, tmp_path: Path) -> None:
        board = Board(tmp_path)
        assert not board.tells and board.read() == Reading()


class FakeNvml:
    """The library's calls with the values of one moment; a name that is not there is a driver without it."""

    def __init__(self, values: dict[str, int], devices: int = 1) -> None:
        self.values, self.devices = values, devices

    def nvmlDeviceGetHandleByIndex_v2(self, index: Any, handle: Any) -> int:
        return 0 if index.value < self.devices else 2

    def nvmlDeviceGetName(self, handle: Any, text: Any, size: Any) -> int:
        text.value = b"NVIDIA H200"
        return 0

    def nvmlDeviceGetMemoryInfo(self, handle: Any, memory: Any) -> int:
        memory._obj.used = 3 << 30
        return 0

    def __getattr__(self, name: str) -> Any:
        if name not in self.values:
            raise AttributeError(name)

        def answer(handle: Any, *arguments: Any) -> int:
            arguments[-1]._obj.value = self.values[name]
            return 0

        return answer


class TestNvml:
    def test_units_and_reasons(self) -> None:
        values = {
            "nvmlDeviceGetPowerUsage": 412_500,
            "nvmlDeviceGetTotalEnergyConsumption": 9_000_500,
            "nvmlDeviceGetTemperature": 61,
            "nvmlDeviceGetClockInfo": 1980,
            "nvmlDeviceGetCurrentClocksThrottleReasons": 0x01 | 0x04 | 0x20,  # idle is no throttling
            "nvmlDeviceGetEnforcedPowerLimit": 700_000,
        }
        gpu = Nvml(FakeNvml(values))
        reading = gpu.read()
        assert (reading.power_w, reading.energy_j, reading.temperature_c, reading.gpu_mhz) == (412.5, 9000.5, 61, 1980)
        assert reading.throttle == ("power cap", "thermal (software)") and gpu.used_mib() == 3072
        assert gpu.settings() == {"gpu": "NVIDIA H200", "power_limit_w": 700.0}

    def test_a_driver_that_knows_little(self) -> None:
        assert Nvml(FakeNvml({})).read() == Reading()

    def test_no_such_gpu_and_no_library(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(OSError, match="no GPU 3"):
            Nvml(FakeNvml({}), 3)

        def refuse(name: str) -> None:
            raise OSError(name)

        monkeypatch.setattr(ctypes, "CDLL", refuse)
        assert Nvml.open() is None


class TestSummary:
    def test_power_is_integrated_over_time(self) -> None:
        samples = [Sample(at, Reading(power_w=watts)) for at, watts in ((0.0, 10.0), (1.0, 20.0), (3.0, 20.0))]
        found = summarise(samples)
        assert found["energy_j"] == pytest.approx(15 + 40) and found["power_w"] == pytest.approx(55 / 3)
        assert found["power_max_w"] == 20 and found["seconds"] == 3 and found["readings"] == 3

    def test_a_counter_of_joules_goes_before_watts_unless_it_fell(self) -> None:
        def at(counters: tuple[float, float]) -> list[Sample]:
            return [Sample(float(second), Reading(power_w=5.0, energy_j=joules)) for second, joules in enumerate(counters)]

        assert summarise(at((100.0, 108.0)))["energy_j"] == 8
        assert summarise(at((100.0, 3.0)))["energy_j"] == 5

    def test_ranges_events_and_reasons(self) -> None:
        readings = [
            Reading(temperature_c=40.0, gpu_mhz=918.0, over_current=7),
            Reading(temperature_c=55.0, gpu_mhz=612.0, over_current=9, throttle=("power cap",)),
            Reading(temperature_c=52.0, gpu_mhz=612.0, over_current=9, rails_w={"VDD_SOC": 2.0}),
        ]
        found = summarise([Sample(float(index), reading) for index, reading in enumerate(readings)])
        assert found["temperature_c"] == [40, 55] and found["gpu_mhz"] == [612, 918] and found["over_current"] == 2
        assert found["rails_w"] == {"VDD_SOC": 2.0} and "power_w" not in found
        assert throttled(found) == "power cap, 2 over-current events"

    def test_nothing_read_nothing_claimed(self) -> None:
        assert summarise([]) == {"seconds": 0.0, "readings": 0, "throttle": []} and throttled({}) is None
        with Sampler(None) as sampler:
            pass
        assert sampler.samples == [] and sampler.summary() == {}

    def test_the_thread_reads_between_the_ends(self, tmp_path: Path) -> None:
        board = Board(write_tree(tmp_path, ORIN_TREE))
        ticks = itertools.count()
        with Sampler(board, interval=0.001, clock=lambda: float(next(ticks))) as sampler:
            for _ in range(1000):
                if len(sampler.samples) >= 4:
                    break
                power.time.sleep(0.01)
        found = sampler.summary()
        assert found["source"] == "sysfs" and found["readings"] >= 5 and found["power_w"] == pytest.approx(7.4592)

    def test_orins_nvml_without_watts_gives_way_to_the_board(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        gpu = Nvml(FakeNvml({"nvmlShutdown": 0}))
        gpu.close = lambda: None  # type: ignore[method-assign]
        monkeypatch.setattr(Nvml, "open", classmethod(lambda cls: gpu))
        monkeypatch.setattr(power, "Board", lambda: Board(write_tree(tmp_path, ORIN_TREE)))
        source = power.open_source()
        assert source is not None and source.name == "sysfs"


class TestDevice:
    def test_board_then_processor(self, tmp_path: Path) -> None:
        (tmp_path / "model").write_bytes(b"NVIDIA Jetson Orin Nano Developer Kit\0")
        (tmp_path / "cpuinfo").write_text("processor : 0\nmodel name\t: Some CPU @ 2 GHz\n")
        assert device_name(tmp_path / "model", tmp_path / "cpuinfo") == "NVIDIA Jetson Orin Nano Developer Kit"
        assert device_name(tmp_path / "none", tmp_path / "cpuinfo") == "Some CPU @ 2 GHz"
        assert device_name(tmp_path / "none", tmp_path / "none")
        assert machine()["device"] == device_name() and machine()["cores"] >= 1

    def test_jetpack_power_mode_and_locked_clocks(self, tmp_path: Path) -> None:
        line = (
            "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, DATE: Wed Jan  8 01:49:37 UTC 2025"
        )
        gpu = "sys/class/devfreq/17000000.gpu/"
        tree = {
            "etc/nv_tegra_release": line,
            f"{gpu}min_freq": "1020000000",
            f"{gpu}max_freq": "1020000000",
            "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "schedutil",
        }
        found = settings(write_tree(tmp_path, tree), lambda words: "NV Power Mode: MAXN_SUPER\n2\n")
        expected = {"l4t": "36.4.3", "jetpack": "6.2", "power_mode": "MAXN_SUPER (2)"}
        assert found == {**expected, "governor": "schedutil", "gpu_locked": True}

    def test_an_unknown_release_is_not_guessed(self, tmp_path: Path) -> None:
        tree = {"etc/nv_tegra_release": "# R99 (release), REVISION: 1.0, GCID: 1"}
        assert settings(write_tree(tmp_path, tree), lambda words: "") == {"l4t": "99.1.0"}
        assert settings(tmp_path / "empty") == {} and l4t_version("") is None and power_mode("NVPMWARN") is None

    def test_libraries_of_a_gpu_count_as_they_were_loaded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Cudart:
            @staticmethod
            def cudaRuntimeGetVersion(number: Any) -> int:
                number._obj.value = 12060
                return 0

        infer = types.SimpleNamespace(getInferLibVersion=lambda: 100300)
        loaded = {"libcudart.so.12": Cudart, "libnvinfer.so.10": infer}
        monkeypatch.setattr(device, "loaded_library", loaded.get)
        monkeypatch.setitem(sys.modules, "tensorrt", None)
        monkeypatch.setitem(sys.modules, "tensorrt_rtx", types.SimpleNamespace(__version__="1.4.0"))
        monkeypatch.setattr(device, "has_cuda_driver", lambda: False)
        assert not {"cuda", "tensorrt", "tensorrt_rtx"} & versions().keys()
        monkeypatch.setattr(device, "has_cuda_driver", lambda: True)
        found = versions()
        assert (found["cuda"], found["tensorrt"], found["tensorrt_rtx"]) == ("12.6", "10.3.0", "1.4.0")
        monkeypatch.setattr(device, "loaded_library", lambda _: None)
        assert not {"cuda", "tensorrt"} & versions().keys()

    def test_a_library_is_found_only_once_it_was_loaded(self) -> None:
        assert loaded_library("libcudart.so.99") is None
        if sys.platform == "linux":
            assert loaded_library("libc.so.6") is not None

    def test_memory_of_this_process(self, tmp_path: Path) -> None:
        assert resident_mib("VmHWM") >= resident_mib() > 1
        assert resident_mib(status=tmp_path / "none") is None
