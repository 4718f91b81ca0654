"""House rules that a machine can check: who may import whom, what starts without torch, how long files get, what is shipped.

python -m pytest tests/test_rules.py
"""

from __future__ import annotations

import ast
import shutil
import statistics
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("teacher", "student", "distill", "export", "bench")
MODULES = ("vega_edge", "vega_artifact")
LEAF = "vega_artifact"  # imports nothing of ours; every room but export/runtime may use it
MAY_IMPORT = {
    "teacher": {"teacher", LEAF},
    "student": {"student", LEAF},
    "distill": {"distill", "teacher", "student", LEAF},
    "export": {"export", "student", LEAF},
    "bench": {*ROOMS, LEAF},
    LEAF: set(),
    "vega_edge": {*ROOMS, LEAF},
}
RUNTIME_THIRD_PARTY = {"numpy", "onnxruntime", "tensorrt", "tensorrt_rtx", "cuda", "PIL"}
HEAVY = {
    "torch",
    "torchvision",
    "timm",
    "diffusers",
    "transformers",
    "accelerate",
    "onnx",
    "onnxruntime",
    "scipy",
    "matplotlib",
}


def sources(place: str) -> list[Path]:
    """The Python files of a room, or the one file of a top-level module."""
    path = ROOT / place
    return sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]


ALL_SOURCES = [path for place in (*ROOMS, *MODULES, "tests") for path in sources(place)]
CODE = [path for path in ALL_SOURCES if "tests" not in path.relative_to(ROOT).parts]


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def label(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imported(path: Path, nodes: Iterator[ast.AST] | None = None) -> set[str]:
    """Full dotted names of the modules that a file imports anywhere, also inside functions; relative ones resolved."""
    package = list(path.relative_to(ROOT).parent.parts)
    found: set[str] = set()
    for node in nodes or ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found.update(f"{module}.{alias.name}" for alias in node.names)  # `from teacher import cache` names teacher.cache
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "import_module":
            found.update(arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant) and isinstance(arg.value, str))
    return found


def run_python(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, timeout=120)


class TestImports:
    @pytest.mark.parametrize("place", MAY_IMPORT)
    def test_rooms_import_only_what_they_may(self, place: str) -> None:
        ours = {*ROOMS, *MODULES}
        wrong = {
            f"{label(path)} imports {name}"
            for path in sources(place)
            for name in imported(path)
            if name.split(".")[0] in ours - MAY_IMPORT[place]
        }
        assert not wrong

    def test_distill_knows_of_the_teacher_only_its_cache_and_scenes(self) -> None:
        """A student is distilled from what lies on disk; the trainer must not be able to run the teacher.

        teacher.launch says how many processes there are, teacher.claims locks a folder: nothing of the teacher.
        """
        names = {name for path in sources("distill") for name in imported(path) if name.split(".")[0] == "teacher"}
        assert names, "the trainer reads the cache"
        assert {name for name in names if name.split(".")[1] not in ("cache", "scenes", "launch", "claims")} == set()

    def test_runtime_stands_alone(self) -> None:
        for path in sources("export/runtime"):
            for name in imported(path):
                top = name.split(".")[0]
                assert top in sys.stdlib_module_names or top in RUNTIME_THIRD_PARTY or name.startswith("export.runtime."), (
                    f"{label(path)} imports {name}"
                )

    def test_runtime_needs_only_numpy_to_start(self) -> None:
        for path in sources("export/runtime"):
            tops = {name.split(".")[0] for name in imported(path, iter(tree(path).body))}
            assert tops - set(sys.stdlib_module_names) <= {"numpy", "export"}, label(path)

    def test_runtime_imports_without_torch_in_a_fresh_interpreter(self) -> None:
        unwanted = sorted({*HEAVY, *ROOMS, *MODULES} - {"export"})
        done = run_python(
            "-c", f"import sys; from export.runtime import Encoder; print(sorted(set({unwanted}) & set(sys.modules)))"
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == "[]"

    def test_runtime_works_as_a_copy_where_nothing_of_ours_is_installed(self, tmp_path: Path) -> None:
        shutil.copytree(ROOT / "export" / "runtime", tmp_path / "carried", ignore=shutil.ignore_patterns("__pycache__"))
        blocked = [*HEAVY, *ROOMS, *MODULES]
        block = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); sys.modules.update(dict.fromkeys({blocked}))"
        code = f"{block}; import carried; print(carried.Encoder)"
        done = run_python("-I", "-c", code, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert "carried" in done.stdout

    def test_runtime_keeps_to_python_3_10(self) -> None:
        """JetPack 6 has Python 3.10: its grammar, and no module or name that is younger."""
        younger = {"tomllib", "typing.Self", "typing.override", "typing.Never", "datetime.UTC", "enum.StrEnum"}
        for path in sources("export/runtime"):
            ast.parse(path.read_text(encoding="utf-8"), filename=str(path), feature_version=(3, 10))
            assert not imported(path) & younger, label(path)


class TestFrontDoor:
    def test_help_answers_at_once(self) -> None:
        seconds = []
        for _ in range(3):
            start = time.perf_counter()
            done = run_python("-m", "vega_edge", "--help")
            seconds.append(time.perf_counter() - start)
            assert done.returncode == 0, done.stderr
        assert statistics.median(seconds) < 0.5, f"{seconds}"

    def test_importing_the_front_door_imports_nothing_heavy(self) -> None:
        done = run_python("-c", f"import sys, vega_edge; print(sorted(set({sorted(HEAVY)}) & set(sys.modules)))")
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == "[]"


class TestStyle:
    @pytest.mark.parametrize("path", ALL_SOURCES, ids=label)
    def test_no_file_over_400_lines(self, path: Path) -> None:
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 400

    @pytest.mark.parametrize("path", ALL_SOURCES, ids=label)
    def test_every_file_says_what_it_is_for(self, path: Path) -> None:
        text = path.read_text(encoding="utf-8")
        assert not text.strip() or ast.get_docstring(ast.parse(text))

    def test_no_junk_drawers(self) -> None:
        assert not [label(path) for path in CODE if path.stem in ("utils", "util", "helpers", "misc", "common")]


class TestNothingIsUnpickled:
    """Files come from strangers: reading one must not be able to run code."""

    @pytest.mark.parametrize("path", CODE, ids=label)
    def test_no_pickle(self, path: Path) -> None:
        tops = {name.split(".")[0] for name in imported(path)}
        assert not tops & {"cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
        assert "from pickle" not in path.read_text(encoding="utf-8")
        used = {ast.unparse(node) for node in ast.walk(tree(path)) if isinstance(node, ast.Attribute)}
        assert {name for name in used if name.startswith("pickle.")} <= {"pickle.UnpicklingError"}  # torch.load's refusal

    @pytest.mark.parametrize("path", CODE, ids=label)
    def test_loaders_are_told_not_to(self, path: Path) -> None:
        for call in (node for node in ast.walk(tree(path)) if isinstance(node, ast.Call)):
            name = ast.unparse(call.func)
            options = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
            if name == "torch.load":
                assert options.get("weights_only") == "True", f"{label(path)}:{call.lineno}"
            assert options.get("allow_pickle", "False") == "False", f"{label(path)}:{call.lineno}"
            assert name not in ("eval", "exec"), f"{label(path)}:{call.lineno}"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel, built from a copy, because building leaves folders behind."""
    folder = tmp_path_factory.mktemp("wheel")
    for place in ROOMS:
        shutil.copytree(ROOT / place, folder / place, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "tests" / "golden", folder / "tests", ignore=shutil.ignore_patterns("*.safetensors"))
    for name in ("pyproject.toml", "README.md", "LICENSE", *(f"{module}.py" for module in MODULES)):
        shutil.copy(ROOT / name, folder / name)
    done = run_python("-c", "from setuptools import build_meta; print(build_meta.build_wheel('out'))", cwd=folder)
    assert done.returncode == 0, done.stderr
    return zipfile.ZipFile(folder / "out" / done.stdout.split()[-1])


class TestWheel:
    def test_holds_the_five_rooms_and_two_modules_only(self, wheel: zipfile.ZipFile) -> None:
        tops = {name.split("/")[0] for name in wheel.namelist() if ".dist-info/" not in name}
        assert tops == {*ROOMS, *(f"{module}.py" for module in MODULES)}

    def test_holds_every_source_and_the_package_data(self, wheel: zipfile.ZipFile) -> None:
        data = [
            path
            for place in ("teacher/bundle", "bench/templates", "bench/data", "export/device")
            for path in (ROOT / place).rglob("*")
            if path.is_file()
        ]
        assert data
        missing = {label(path) for path in [*CODE, *data] if "__pycache__" not in path.parts} - set(wheel.namelist())
        assert not missing

    def test_carries_its_licence_and_its_command(self, wheel: zipfile.ZipFile) -> None:
        texts = {name.split("/", 1)[1]: wheel.read(name).decode() for name in wheel.namelist() if ".dist-info/" in name}
        assert "License-Expression: Apache-2.0" in texts["METADATA"]
        assert "TERMS AND CONDITIONS FOR USE, REPRODUCTION, AND DISTRIBUTION" in texts["licenses/LICENSE"]
        assert "vega-edge = vega_edge:main" in texts["entry_points.txt"]
