"""Device encoders: small timm backbones with one head per teacher stream.

`distill` trains them, `load_student(RUN)` reads them back, `export` writes them as ONNX.

    python -c "from student import list_students; print(list_students())"
"""

from student.checkpoint import load_student
from student.model import Preprocess, StudentConfig, StudentModel, create_student
from student.registry import list_students

__all__ = ["Preprocess", "StudentConfig", "StudentModel", "create_student", "list_students", "load_student"]
