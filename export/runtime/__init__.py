"""The student on the device: numpy and onnxruntime, nothing else; it imports none of the other rooms and no torch.

Last link of the chain: EXPORT folder + frames -> token features. Copied as it is into the bundle, so it keeps to Python 3.10.

    python -m export.runtime EXPORT --check
    python -m export.runtime EXPORT image.png --out features.npz
"""

from .encoder import Encoder, StreamingEncoder
from .manifest import RuntimeInputError

__all__ = ["Encoder", "RuntimeInputError", "StreamingEncoder"]
