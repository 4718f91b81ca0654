"""The command `vega-edge`: help, suggestions, one sentence and exit code 2 for everything a user can get wrong.

python -m pytest tests/test_cli.py
"""

from __future__ import annotations

import dataclasses
import errno
import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest

import vega_artifact
import vega_edge
from bench.verbs import MEASURES

VERBS = [[name] for name in vega_edge.VERBS if name != "bench"] + [["bench", name] for name in MEASURES]


def words(arguments: list[str]) -> str:
    return " ".join(arguments)


def refusal(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command that must be refused: exit code 2 and one sentence on stderr, which is returned."""
    assert vega_edge.main(arguments) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("vega-edge: ")]
    assert len(lines) == 1
    return lines[0]


class TestHelp:
    @pytest.mark.parametrize("verb", [[], ["bench"], *VERBS], ids=words)
    def test_exits_0_and_names_the_verb(self, verb: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as ended:
            vega_edge.main([*verb, "--help"])
        assert ended.value.code == 0
        assert f"usage: {words(['vega-edge', *verb])}" in capsys.readouterr().out

    def test_top_level_lists_every_verb(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit):
            vega_edge.main(["--help"])
        shown = capsys.readouterr().out
        assert all(f"• {name}" in shown for name in vega_edge.VERBS)

    @pytest.mark.parametrize("verb", VERBS, ids=words)
    def test_every_flag_is_explained(self, verb: list[str]) -> None:
        kind = MEASURES[verb[1]] if verb[0] == "bench" else vega_edge.VERBS[verb[0]]
        source = inspect.getsource(kind)
        assert inspect.getdoc(kind)
        for field in dataclasses.fields(kind):
            declaration = source.split(f"    {field.name}: ", 1)[1].split("\n", 1)
            assert declaration[1].lstrip().startswith('"""'), f"{words(verb)}: {field.name} has no explanation"


class TestMistypedCommands:
    def test_flag(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as ended:
            vega_edge.main(["demo", "--recpie", "demo"])
        assert ended.value.code == 2
        shown = capsys.readouterr().err
        assert "--recpie" in shown and "Perhaps you meant" in shown and "--recipe" in shown

    def test_verb(self, capsys: pytest.CaptureFixture[str]) -> None:
        said = refusal(["exprt"], capsys)
        assert "unknown verb 'exprt'" in said and "'export'" in said and "doctor" in said

    def test_missing_flag_is_named(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as ended:
            vega_edge.main(["extract", "--teacher", "tiny"])
        assert ended.value.code == 2
        assert "--scenes" in capsys.readouterr().err

    def test_choice(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as ended:
            vega_edge.main(["list", "teacher"])
        assert ended.value.code == 2
        assert "teachers" in capsys.readouterr().err


class TestUnknownNames:
    """A name that no registry holds: the known ones are listed."""

    @pytest.mark.parametrize(
        ("arguments", "known"),
        [
            (["extract", "--teacher", "tinny", "--scenes", "procedural:val?count=1", "--out", "OUT"], "tiny"),
            (["extract", "--teacher", "tiny", "--scenes", "procedurl:val", "--out", "OUT"], "procedural"),
            (["extract", "--teacher", "tiny", "--scenes", "procedural:valid?count=1", "--out", "OUT"], "val"),
            (["extract", "--teacher", "tiny", "--scenes", "procedural:val?cuont=1", "--out", "OUT"], "count"),
            (["train", "--cache", "OUT", "--recipe", "demmo", "--out", "OUT"], "demo"),
            (["demo", "--out", "OUT", "--recipe", "demmo"], "demo"),
        ],
        ids=lambda value: words(value) if isinstance(value, list) else "",
    )
    def test_lists_the_known(
        self, arguments: list[str], known: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        said = refusal([str(tmp_path / "new") if word == "OUT" else word for word in arguments], capsys)
        assert known in said.replace(words(arguments), "")
        assert not (tmp_path / "new" / vega_artifact.MANIFEST).exists()

    def test_recipe_field(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as ended:
            vega_edge.main(["train", "--cache", "c", "--out", "r", "--change", "stesp=5"])
        assert ended.value.code == 2
        assert "--steps" in capsys.readouterr().err


MISSING = [
    ["verify", "NOWHERE"],
    ["train", "--cache", "NOWHERE", "--recipe", "smoke", "--out", "OUT"],
    ["export", "NOWHERE", "--out", "OUT"],
    ["build", "NOWHERE", "--out", "OUT"],
    ["bundle", "NOWHERE", "--out", "OUT.tar.gz"],
    ["report", "NOWHERE"],
    ["extract", "--teacher", "NOWHERE/model", "--scenes", "procedural:val?count=1", "--out", "OUT"],
    ["extract", "--teacher", "tiny", "--scenes", "folder:NOWHERE", "--out", "OUT"],
    ["extract", "--teacher", "tiny", "--scenes", "video:NOWHERE/*.mp4", "--out", "OUT"],
]


class TestMissingInput:
    @pytest.mark.parametrize("arguments", MISSING, ids=words)
    def test_is_one_sentence_that_names_it(
        self, arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        nowhere, out = tmp_path / "nowhere", tmp_path / "out"
        said = refusal([word.replace("NOWHERE", str(nowhere)).replace("OUT", str(out)) for word in arguments], capsys)
        assert str(nowhere) in said
        assert not nowhere.exists()

    @pytest.mark.parametrize(
        "arguments", [line for line in MISSING if line[0] in ("train", "export", "build", "bundle")], ids=words
    )
    def test_an_artifact_of_another_kind_is_refused(
        self, arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        foreign, out = tmp_path / "foreign", tmp_path / "out"
        vega_artifact.write_manifest(foreign, "report", {})
        said = refusal([word.replace("NOWHERE", str(foreign)).replace("OUT", str(out)) for word in arguments], capsys)
        assert "this is a report" in said or "is a 'report'" in said or "report" in said.replace(str(foreign), "")

    def test_as_a_process_without_a_traceback(self, tmp_path: Path) -> None:
        command = [sys.executable, "-m", "vega_edge", "verify", str(tmp_path / "nowhere")]
        done = subprocess.run(command, cwd=Path(vega_edge.__file__).parent, capture_output=True, text=True, timeout=120)
        assert done.returncode == 2
        assert done.stdout == ""
        assert done.stderr.startswith("vega-edge: ") and len(done.stderr.splitlines()) == 1


class TestVerify:
    @pytest.fixture
    def run(self, tmp_path: Path) -> Path:
        (tmp_path / "student.safetensors").write_bytes(b"weights")
        vega_artifact.write_manifest(tmp_path, "run", {"steps": 5}, {"cache": "c0ffee"}, ["student.safetensors"], loss=0.25)
        return tmp_path

    def test_intact(self, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert vega_edge.main(["verify", str(run)]) == 0
        assert vega_artifact.read_manifest(run, "run")["fingerprint"] in capsys.readouterr().out

    def test_altered_file(self, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (run / "student.safetensors").write_bytes(b"wEights")
        assert "student.safetensors: content differs" in refusal(["verify", str(run)], capsys)

    def test_edited_manifest(self, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
        manifest = json.loads((run / "manifest.json").read_text())
        manifest["config"]["steps"] = 500
        (run / "manifest.json").write_text(json.dumps(manifest))
        assert "fingerprint" in refusal(["verify", str(run)], capsys)

    def test_edited_contract(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        vega_artifact.write_manifest(tmp_path, "export", {}, contract=("preprocess",), preprocess={"mean": [0.5]})
        assert vega_edge.main(["verify", str(tmp_path)]) == 0
        manifest = json.loads((tmp_path / "manifest.json").read_text())
        manifest["preprocess"]["mean"] = [0.4]
        (tmp_path / "manifest.json").write_text(json.dumps(manifest))
        assert "so it was edited; make the export again" in refusal(["verify", str(tmp_path)], capsys)

    @pytest.mark.parametrize(
        "text", ["{}", "[]", '{"schema": 1}', '{"schema": 1, "kind": "run"}', '{"schema": 1, "kind": 7, "files": 3}']
    )
    def test_foreign_manifest(self, run: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
        (run / "manifest.json").write_text(text)
        assert "manifest.json" in refusal(["verify", str(run)], capsys)


class TestEndings:
    """What the exit code and the last line say, whatever a verb died of."""

    def dies_of(self, error: BaseException, monkeypatch: pytest.MonkeyPatch) -> int:
        def run(self: vega_edge.Doctor) -> None:
            raise error

        monkeypatch.setattr(vega_edge.Doctor, "run", run)
        return vega_edge.main(["doctor"])

    def test_interrupted(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        assert self.dies_of(KeyboardInterrupt(), monkeypatch) == 130
        assert capsys.readouterr().err == "vega-edge: interrupted; the same command resumes\n"

    def test_bad_input_seen_by_the_device_runtime(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        from export.runtime import RuntimeInputError

        assert self.dies_of(RuntimeInputError("frames: uint8 expected"), monkeypatch) == 2
        assert capsys.readouterr().err == "vega-edge: frames: uint8 expected\n"

    def test_full_disk(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        from safetensors import SafetensorError

        assert self.dies_of(OSError(errno.ENOSPC, "No space left on device", "log.jsonl"), monkeypatch) == 2
        assert "disk is full" in capsys.readouterr().err
        # safetensors reports it in a class of its own that is no OSError
        assert self.dies_of(SafetensorError("I/O error: No space left on device (os error 28)"), monkeypatch) == 2
        assert "disk is full" in capsys.readouterr().err

    def test_a_defect_of_ours_keeps_its_traceback(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(ZeroDivisionError):
            self.dies_of(ZeroDivisionError(), monkeypatch)


class TestLists:
    @pytest.mark.parametrize(
        ("what", "member"),
        [
            ("teachers", "tiny"),
            ("teachers", "wan2.1-t2v-14b"),
            ("teachers", "dinov3-l"),
            ("students", "vit_micro"),
            ("recipes", "demo"),
            ("scenes", "procedural"),
            ("tasks", "vsibench"),
        ],
    )
    def test_holds(self, what: str, member: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert vega_edge.main(["list", what]) == 0
        assert member in [line.split()[0].strip(":") for line in capsys.readouterr().out.splitlines()]


class TestDoctor:
    def test_tells_what_is_here_and_what_follows(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert vega_edge.main(["doctor"]) == 0
        found, _, therefore = capsys.readouterr().out.partition("Therefore:")
        for name in ("python", "cores", "memory", "free disk", "torch", "GPU", "onnxruntime", "TensorRT", "Java"):
            assert any(line.startswith(name) for line in found.splitlines()), name
        assert "onnxruntime on" in therefore and "vega-edge demo" in therefore

    def test_draws_the_right_conclusions(self) -> None:
        from bench.doctor import consequences, examine

        bare = dataclasses.replace(
            examine(), gpu=None, tensorrt="tensorrt 10.3", onnx_device=None, java=None, disk_free_gib=0.5
        )
        told = "\n".join(consequences(bare))
        assert "run on the CPU" in told and "install onnxruntime" in told and "left out" in told and "free some space" in told
        assert "build` is refused" in told, "TensorRT without a GPU builds nothing"
        rich = dataclasses.replace(bare, gpu="H200", onnx_device="CUDA", java="openjdk 17", disk_free_gib=50.0)
        told = "\n".join(consequences(rich))
        assert "run on the GPU" in told and "onnxruntime on CUDA" in told and "makes TensorRT engines here" in told


class TestPublicNames:
    @pytest.mark.parametrize("name", sorted(vega_edge.PUBLIC))
    def test_resolves(self, name: str) -> None:
        assert getattr(vega_edge, name) is not None
        assert name in vega_edge.__all__

    def test_unknown_name_lists_the_public_ones(self) -> None:
        with pytest.raises(AttributeError, match="load_teacher"):
            vega_edge.load_techer  # noqa: B018


def test_a_reader_that_has_seen_enough_is_no_error():
    command = f"{sys.executable} -m vega_edge list students | head -n 1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith("student")
