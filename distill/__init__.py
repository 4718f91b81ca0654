"""Distillation: teacher streams from a feature cache into a student.

`train` reads a cache folder and writes a run folder, which `student.load_student` reads back.

    python -c "from distill import train, recipes; train('CACHE', 'RUN', recipes.demo())"
"""

from distill import recipes
from distill.config import RunConfig
from distill.train import train

__all__ = ["RunConfig", "recipes", "train"]
