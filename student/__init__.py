"""Device encoders: small timm backbones with one head per teacher stream.

`distill` trains them, `load_student(RUN)` reads them back, `export` writes them as ONNX. `StreamingStudent` is one with memory.

    python -c "from student import list_students; print(list_students())"
"""

from student.checkpoint import load_streaming, load_student
from student.model import Preprocess, StudentConfig, StudentModel, create_student
from student.registry import list_students
from student.streaming import StreamingConfig, StreamingStudent

__all__ = [
    "Preprocess",
    "StreamingConfig",
    "StreamingStudent",
    "StudentConfig",
    "StudentModel",
    "create_student",
    "list_students",
    "load_streaming",
    "load_student",
]
