"""A small run folder and its export, made once per test process; and a way to run code with imports blocked."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from export import export_run

from .export_cases import ROOT, make_run


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("run") / "run")


@pytest.fixture(scope="session")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_run(run, tmp_path_factory.mktemp("export") / "export")


@pytest.fixture
def frames() -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (3, 80, 50, 3), dtype=np.uint8)


@pytest.fixture(scope="session")
def isolated() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run Python code in a fresh interpreter where the named packages cannot be imported."""

    def call(code: str, *arguments: str, blocked: tuple[str, ...], folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
        block = f"import sys\nfor name in {blocked!r}: sys.modules[name] = None\n"
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        command = [sys.executable, "-c", block + code, *arguments]
        return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)

    return call
