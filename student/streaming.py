"""A student with memory: the same backbone and heads, and between them a small causal mixer over time.

For video and for targets of a teacher that saw a clip: frame t is answered from frames 0 to t. What it remembers has a constant
size, goes in and comes out in the open, and a whole clip at once (training) gives what frame by frame gives (device).
`export.streaming` writes the step as ONNX.

    python -c "from student import StreamingStudent as S, create_student; print(S.from_student(create_student()).state_shape)"
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from student.model import Preprocess, StudentConfig, StudentModel
from vega_artifact import UserError

State = tuple[Tensor, ...]  # one (B, N, memory) float32 per layer
LONGEST = 64.0  # frames the slowest channels remember at the start of training


@dataclass(frozen=True, kw_only=True)
class StreamingConfig:
    """Everything needed to rebuild the module that a weight file fills.

    Attributes:
        frame: the student of single frames inside.
        memory: channels remembered per token of the grid and layer. layers: mixers one after the other.
    """

    frame: StudentConfig
    memory: int = 96
    layers: int = 2


def scan(keep: Tensor, add: Tensor, start: Tensor) -> Tensor:
    """h_t = keep_t h_(t-1) + add_t for all t at once, in log2(T) rounds (Hillis and Steele 1986); no division, so no overflow.

    Args:
        keep, add: (B, T, N, M). start: h before the first frame, (B, N, M).

    Returns:
        (B, T, N, M): h_0 to h_(T-1).
    """
    add = torch.cat([add[:, :1] + keep[:, :1] * start[:, None], add[:, 1:]], 1)
    reach = 1
    while reach < keep.shape[1]:
        add = torch.cat([add[:, :reach], add[:, reach:] + keep[:, reach:] * add[:, :-reach]], 1)
        keep = torch.cat([keep[:, :reach], keep[:, reach:] * keep[:, :-reach]], 1)
        reach *= 2
    return add


class Mixer(nn.Module):
    """One layer of memory on tokens (..., N, D): h_t = (1 - z_t) h_(t-1) + z_t v_t, and h_t is added to the tokens.

    Gate z and value v depend on frame t alone (minGRU, Feng et al. 2024), which is why a whole clip can be computed at once.
    They see a token's neighbours and the mean of the frame, so the second layer also reads what others remember. The way out
    starts at zero: a fresh mixer changes nothing.
    """

    def __init__(self, width: int, memory: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.grid = grid
        self.norm = nn.LayerNorm(width)
        self.near = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.write = nn.Linear(width, 2 * memory)
        self.far = nn.Linear(width, 2 * memory, bias=False)
        self.read = nn.Linear(memory, width)
        nn.init.zeros_(self.read.weight)
        nn.init.zeros_(self.read.bias)
        with torch.no_grad():  # channels forget at different speeds: sigmoid(bias) = 1 / frames (Tallec and Ollivier 2018)
            frames = torch.logspace(0, 1, memory, base=LONGEST) + 1
            self.write.bias[:memory] = -torch.log(frames - 1)

    def gates(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """(..., N, D) -> what is kept of the memory (1 - z) and what is added (z v), both (..., N, M)."""
        normal = self.norm(tokens)
        maps = normal.flatten(0, -3).transpose(1, 2).unflatten(2, self.grid)
        near = self.near(maps).flatten(2).transpose(1, 2).reshape(normal.shape)
        gate, value = (self.write(normal + near) + self.far(normal.mean(-2, keepdim=True))).chunk(2, -1)
        return torch.sigmoid(-gate), torch.sigmoid(gate) * value

    def forward(self, tokens: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """One frame (B, N, D) or a clip (B, T, N, D), and the memory before it (B, N, M) -> tokens, memory after it."""
        keep, add = self.gates(tokens)
        if tokens.ndim == 3:
            memory = keep * memory + add
            return tokens + self.read(memory), memory
        history = scan(keep, add, memory)
        return tokens + self.read(history), history[:, -1]


class StreamingStudent(nn.Module):
    """images (B, T, 3, H, W) in order, normalised by `preprocess` -> {stream: (B, T, N, C)} in the teacher's feature space.

    Attributes:
        config: StreamingConfig. preprocess: of the frame student. state_shape: (layers, N, memory), per camera.
    """

    def __init__(self, config: StreamingConfig) -> None:
        super().__init__()
        if config.memory < 1 or config.layers < 1:
            raise UserError(f"streaming student: memory {config.memory} and layers {config.layers} must be at least 1")
        self.config = config
        self.frame = StudentModel(config.frame)
        width = self.frame.backbone.channels
        self.mixers = nn.ModuleList(Mixer(width, config.memory, config.frame.grid) for _ in range(config.layers))

    @classmethod
    def from_student(cls, student: StudentModel, *, memory: int = 96, layers: int = 2, seed: int = 0) -> StreamingStudent:
        """A streaming student that begins where a frame student is: until it is trained it answers exactly as that one does."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            made = cls(StreamingConfig(frame=student.config, memory=memory, layers=layers))
        made.frame.load_state_dict(student.state_dict())
        return made.train(student.training)

    @property
    def preprocess(self) -> Preprocess:
        return self.frame.preprocess

    @property
    def state_shape(self) -> tuple[int, int, int]:
        rows, columns = self.config.frame.grid
        return self.config.layers, rows * columns, self.config.memory

    def initial_state(self, batch: int = 1) -> State:
        """The memory before the first frame of `batch` cameras: zeros, on the device of the weights."""
        layers, tokens, memory = self.state_shape
        like = next(self.parameters())
        return tuple(torch.zeros(batch, tokens, memory, device=like.device) for _ in range(layers))

    def step(self, images: Tensor, state: State) -> tuple[dict[str, Tensor], State]:
        """One frame of every camera: images (B, 3, H, W), state before -> {stream: (B, N, C)}, state after.

        Raises:
            UserError: a state of another student or batch.
        """
        tokens, state = self._mix(self.frame.tokens(images), state)
        return self.frame.denormalise(self.frame.predict(tokens)), state

    def clip(self, images: Tensor, state: State | None = None) -> tuple[dict[str, Tensor], State]:
        """Consecutive frames at once: images (B, T, 3, H, W) -> normalised {stream: (B, T, N, C)} for the loss, state after.

        Raises:
            UserError: images of another rank, or a state of another student or batch.
        """
        if images.ndim != 5 or images.shape[1] < 1:
            found = tuple(images.shape)
            raise UserError(f"streaming student: images (B, T, 3, H, W) expected, got {found}; export it with export.streaming")
        state = self.initial_state(images.shape[0]) if state is None else state
        tokens = self.frame.tokens(images.flatten(0, 1)).unflatten(0, images.shape[:2])
        tokens, state = self._mix(tokens, state)
        return self.frame.predict(tokens), state

    def normalised(self, images: Tensor) -> dict[str, Tensor]:
        """What training compares, for whole clips from an empty memory: {stream: (B, T, N, C)}."""
        return self.clip(images)[0]

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return self.frame.denormalise(self.normalised(images))

    def film(self, images: Tensor) -> dict[str, Tensor]:
        """Frames (T, 3, H, W) of one camera in order, from an empty memory -> {stream: (T, N, C)}."""
        return {name: value[0] for name, value in self(images[None]).items()}

    @property
    def grid(self) -> tuple[int, int]:
        """Of the teacher's tokens."""
        return self.config.frame.grid

    def parameter_count(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())

    def _mix(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        expected = [(tokens.shape[0], *self.state_shape[1:])] * self.config.layers
        if [tuple(memory.shape) for memory in state] != expected:
            found = [tuple(memory.shape) for memory in state]
            raise UserError(f"streaming student: a state of shapes {expected} expected, got {found}; start with initial_state")
        after = []
        for mixer, memory in zip(self.mixers, state):
            tokens, memory = mixer(tokens, memory)
            after.append(memory)
        return tokens, tuple(after)


AnyStudent = StudentModel | StreamingStudent
