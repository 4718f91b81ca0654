"""Device encoders: small timm backbones with one head per teacher stream.

`distill` trains them, `load_student(RUN)` reads them back, `export` writes them as ONNX. `StreamingStudent` is one with memory.

    python -c "from student import list_students; print(list_students())"
"""

from student.checkpoint import load_model, load_streaming, load_student
from student.model import Preprocess, StudentConfig, StudentModel, create_student
from student.registry import list_students
from student.streaming import AnyStudent, StreamingConfig, StreamingStudent

__all__ = [
    "AnyStudent",
    "Preprocess",
    "StreamingConfig",
    "StreamingStudent",
    "StudentConfig",
    "StudentModel",
    "create_student",
    "list_students",
    "load_model",
    "load_streaming",
    "load_student",
]
