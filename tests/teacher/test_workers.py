"""Several real processes on one cache folder: no scene twice, none lost when a process is killed, the bytes of one process."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from teacher import claims
from teacher.claims import claim
from teacher.writer import CacheWriter
from tests.teacher.test_cache import CONFIG, PARENTS, ROOT, clip, content, fill, scene_names
from vega_artifact import UserError

SCENES, PER_SHARD = 24, 2


def work(path: Path, pause: float = 0.0, first: int = 0) -> list[str]:
    """What `vega-edge extract` does in each process, with clips that take `pause` seconds; returns the scenes made here."""
    writer, made = CacheWriter(path, CONFIG, PARENTS, scene_names(SCENES), PER_SHARD), []
    for scenes in writer.claims(first):
        for scene_id in scenes:
            time.sleep(pause)
            print(scene_id, flush=True)
            writer.add(scene_id, clip(scene_id))
            made.append(scene_id)
    writer.finish()
    return made


def start(path: Path, pause: float, first: int = 0) -> subprocess.Popen[str]:
    code = f"from pathlib import Path; from tests.teacher.test_workers import work; work(Path({str(path)!r}), {pause}, {first})"
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}
    return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files one undisturbed process leaves."""
    path = tmp_path_factory.mktemp("alone") / "cache"
    fill(path, SCENES, PER_SHARD)
    return content(path)


@pytest.fixture
def processes() -> Iterator[list[subprocess.Popen[str]]]:
    running: list[subprocess.Popen[str]] = []
    yield running
    for process in running:
        process.kill()
        process.wait()


def test_three_processes_share_the_work(tmp_path: Path, alone: dict[str, bytes], processes: list) -> None:
    processes += [start(tmp_path / "cache", 0.02, first) for first in (0, 4, 8)]
    made = [process.communicate(timeout=300)[0].split() for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert sorted(name for part in made for name in part) == scene_names(SCENES), "each scene once"
    assert content(tmp_path / "cache") == alone


def test_survivors_finish_what_a_killed_process_held(tmp_path: Path, alone: dict[str, bytes], processes: list) -> None:
    processes += [start(tmp_path / "cache", 0.1, first) for first in (0, 6)]
    victim, survivor = processes
    assert victim.stdout.readline().strip() == scene_names(SCENES)[0]
    victim.send_signal(signal.SIGKILL)  # with its first shard half done and claimed
    said = survivor.communicate(timeout=300)[0].split()
    assert victim.wait() == -signal.SIGKILL and survivor.returncode == 0
    assert scene_names(SCENES)[0] in said and len(said) == len(set(said))
    assert content(tmp_path / "cache") == alone


def test_all_killed_then_another_number_of_processes(tmp_path: Path, alone: dict[str, bytes], processes: list) -> None:
    path = tmp_path / "cache"
    processes += [start(path, 0.05, first) for first in (0, 6)]
    while not list(path.glob("shard-*.json")):
        time.sleep(0.005)
        assert all(process.poll() is None for process in processes)
    for process in processes:
        process.send_signal(signal.SIGKILL)
        process.wait()
    kept = {item.name: item.stat().st_mtime_ns for item in path.glob("shard-*.json")}
    processes += [start(path, 0.0, first) for first in (0, 3, 9)]
    made = [name for process in processes[2:] for name in process.communicate(timeout=300)[0].split()]
    assert len(made) == SCENES - PER_SHARD * len(kept), "finished shards are kept, the others made once"
    assert {name: (path / name).stat().st_mtime_ns for name in kept} == kept
    assert content(path) == alone


def test_one_that_comes_late_has_nothing_to_do(tmp_path: Path, alone: dict[str, bytes]) -> None:
    assert len(work(tmp_path / "cache")) == SCENES
    assert work(tmp_path / "cache") == []
    assert content(tmp_path / "cache") == alone


def test_two_plans_at_once(tmp_path: Path) -> None:
    """Both looked at an empty folder; the second to begin is refused, whatever it saw before."""
    first = CacheWriter(tmp_path / "cache", CONFIG, PARENTS, scene_names(4), 2)
    second = CacheWriter(tmp_path / "cache", {**CONFIG, "sigma": 0.5}, PARENTS, scene_names(4), 2)
    first.begin()
    with pytest.raises(UserError, match=r"another plan \(config\.sigma: 0\.3 -> 0\.5\)"):
        next(second.claims())
    first.begin()


def test_a_shard_is_held_by_one(tmp_path: Path) -> None:
    first, second = (CacheWriter(tmp_path / "cache", CONFIG, PARENTS, scene_names(4), 2) for _ in range(2))
    held, other = first.claims(), second.claims()
    assert next(held) == scene_names(4)[:2]
    assert next(other) == scene_names(4)[2:]
    held.close()  # as when its holder fails: nothing was written, so the shard is free again
    for scene_id in scene_names(4)[2:]:
        second.add(scene_id, clip(scene_id))
    assert next(other) == scene_names(4)[:2]


def test_where_there_are_no_locks_one_process_still_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(claims.fcntl, "flock", refuse)
    assert len(work(tmp_path / "cache")) == SCENES
    assert "let only one process at a time write" in caplog.text


def test_a_claim_that_fails_leaves_the_reason_alone(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), claim(tmp_path / "lock", wait=False) as ours:
        assert ours
        raise ZeroDivisionError
    with claim(tmp_path / "lock", wait=False) as ours, claim(tmp_path / "lock", wait=False) as again:
        assert ours and not again
    assert not (tmp_path / "lock").exists()
