"""Before a run reads its cache, which may take minutes: which run it is, and whether it can be carried out at all.

Between `distill.config` and `distill.train`. In a student with BatchNorm the frames that a process sees at once share their
statistics, so their number belongs to the run; all other students see each frame by itself.

    python -m pytest tests/distill/test_preflight.py -q
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from distill.batches import check_batch
from distill.config import RunConfig
from distill.dataset import bytes_of, check_memory, check_streams, frame_size
from distill.online import OnlineCache
from distill.state import RunFolder
from distill.warm_start import read_start
from student.pretrained import weights_digest
from student.registry import outline
from teacher.cache import FeatureCache
from teacher.launch import local_processes, processes
from vega_artifact import read_manifest

if TYPE_CHECKING:
    from accelerate import Accelerator


def run_folder(out: Path, config: RunConfig, cache: FeatureCache, start_from: Path | None) -> RunFolder:
    """The folder of this very run: config, cache, where the weights come from, and what else its values depend on.

    Raises:
        UserError: streams or a student that do not exist, an image size the student cannot take, no such weight file, no
            finished run to start from.
    """
    check_streams(cache, config.streams)
    backbone = outline(config.student, config.image_size or frame_size(cache))
    return RunFolder(
        out,
        config,
        cache.fingerprint,
        start_from=read_start(start_from)["fingerprint"] if start_from is not None else None,
        pretrained=weights_digest(config.pretrained),
        batch_statistics=batch_statistics(backbone, config, processes()),
    )


def batch_statistics(backbone: nn.Module, config: RunConfig, processes: int) -> str | None:
    """How many frames share statistics, as it stands in the run's identity; None where that is the batch or does not matter."""
    parts = processes * config.accumulate
    shares = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in backbone.modules())
    return f"of {config.batch // parts} frames" if shares and parts > 1 else None


def check_feasible(cache: FeatureCache, train_ids: Sequence[str], config: RunConfig, accelerator: Accelerator) -> None:
    """Refuse what the numbers in the manifest already tell.

    Raises:
        UserError: a batch that is too large or cannot be dealt out, no second draw of the teacher where one is named, or more
            frames and targets than this machine's memory holds.
    """
    check_batch(config, accelerator.num_processes, sum(cache.frames[scene] for scene in train_ids), len(train_ids))
    if config.noise_cache is not None:
        read_manifest(Path(config.noise_cache), "cache")
    online = isinstance(cache, OnlineCache)  # asks for targets when they are needed, in every process by itself
    needed = bytes_of(cache, cache.scene_ids, [] if online else config.streams, config.image_size)
    check_memory(cache, needed, local_processes() if online else 1)
    accelerator.wait_for_everyone()  # all have looked at the memory before one takes its part
