"""The student with memory: a clip at once gives what its frames give one by one, nothing looks ahead, memory can be learned.

python -m pytest tests/student/test_streaming.py
"""

import pytest
import torch

from student import StreamingConfig, StreamingStudent, StudentConfig, create_student, load_streaming, load_student
from student.checkpoint import WEIGHTS, config_to_json, save_weights
from student.streaming import Mixer, scan
from vega_artifact import UserError, write_manifest

SIZE, GRID = (64, 96), (4, 5)


def make(name="mobilenetv4_conv_small", **options):
    """A streaming student whose mixers do something, as after training."""
    frame = create_student(name, heads={"fused": 6, "semantic": 4}, image_size=SIZE, grid=GRID)
    student = StreamingStudent.from_student(frame, **options).eval()
    torch.manual_seed(1)
    for mixer in student.mixers:
        torch.nn.init.normal_(mixer.read.weight, std=0.2)
    student.frame.denormalizers["fused"].set(torch.rand(6) + 0.5, torch.randn(6))
    return student


@pytest.mark.parametrize("frames", [1, 2, 5, 8, 13])
def test_scan_is_the_recurrence(frames):
    torch.manual_seed(0)
    keep, add, start = torch.rand(2, frames, 3, 4), torch.randn(2, frames, 3, 4), torch.randn(2, 3, 4)
    expected, memory = [], start
    for t in range(frames):
        memory = keep[:, t] * memory + add[:, t]
        expected.append(memory)
    torch.testing.assert_close(scan(keep, add, start), torch.stack(expected, 1))


@pytest.mark.parametrize("name", ["vit_micro", "mobilenetv4_conv_small"])
def test_steps_with_state_equal_the_whole_sequence(name):
    student = make(name)
    images = torch.randn(2, 6, 3, *SIZE)
    with torch.no_grad():
        whole, (_, end) = student(images), student.clip(images)
        state = student.initial_state(2)
        for t in range(6):
            found, state = student.step(images[:, t], state)
            for stream, values in found.items():
                torch.testing.assert_close(values, whole[stream][:, t], atol=1e-5, rtol=1e-4)
    for memory, expected in zip(state, end):
        torch.testing.assert_close(memory, expected, atol=1e-5, rtol=1e-4)


def test_a_clip_may_be_cut_anywhere():
    student, images = make(), torch.randn(1, 5, 3, *SIZE)
    with torch.no_grad():
        whole, _ = student.clip(images)
        first, state = student.clip(images[:, :2])
        second, _ = student.clip(images[:, 2:], state)
    torch.testing.assert_close(torch.cat([first["fused"], second["fused"]], 1), whole["fused"], atol=1e-5, rtol=1e-4)


def test_it_remembers_the_past_and_never_sees_the_future():
    student, images = make(), torch.randn(1, 6, 3, *SIZE)
    other = images.clone()
    other[:, 3] += 1
    with torch.no_grad():
        change = (student(images)["fused"] - student(other)["fused"]).abs().amax((0, 2, 3))
    assert change[:3].max() == 0 and change[3:].min() > 1e-4


def test_untrained_it_is_the_student_it_began_from():
    frame = create_student("vit_micro", heads={"fused": 6}, image_size=SIZE, grid=GRID).eval()
    student = StreamingStudent.from_student(frame)
    assert not student.training and student.preprocess == frame.preprocess
    images = torch.randn(2, 3, 3, *SIZE)
    with torch.no_grad():
        torch.testing.assert_close(student(images)["fused"][1, 2], frame(images[:, 2])["fused"][1], atol=1e-6, rtol=1e-5)


def test_memory_is_constant_and_of_the_stated_shape():
    student = make(memory=8, layers=3)
    assert student.state_shape == (3, 20, 8)
    state = student.initial_state(2)
    for _ in range(3):
        with torch.no_grad():
            _, state = student.step(torch.randn(2, 3, *SIZE), state)
        assert [tuple(memory.shape) for memory in state] == [(2, 20, 8)] * 3


def test_fresh_channels_forget_at_speeds_from_two_frames_to_the_longest():
    mixer = Mixer(12, 5, (2, 2))
    with torch.no_grad():
        mixer.near.bias.zero_()
        keep, _ = mixer.gates(torch.ones(1, 4, 12))  # equal channels: the norm makes zeros of them, the gates' biases remain
    forget = 1 / (1 - keep[0, 0])
    assert forget[0] == pytest.approx(2, rel=1e-4) and forget[-1] == pytest.approx(65, rel=1e-4)
    assert (forget[1:] > forget[:-1]).all()


def test_it_learns_what_only_the_past_can_tell():
    """Target: the token of two frames ago."""
    torch.manual_seed(0)
    mixers = torch.nn.ModuleList(Mixer(8, 32, (2, 2)) for _ in range(2))
    answer = torch.nn.Linear(8, 8)
    optimizer = torch.optim.Adam([*mixers.parameters(), *answer.parameters()], 1e-2)
    losses = []
    for _ in range(150):
        tokens = torch.randn(16, 6, 4, 8)
        found = tokens
        for mixer in mixers:
            found, _ = mixer(found, torch.zeros(16, 4, 32))
        loss = (answer(found)[:, 2:] - tokens[:, :-2]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 0.95 and sum(losses[-10:]) / 10 < 0.8  # 1: no memory, whatever the answer


def test_a_run_with_a_streaming_student_comes_back_and_is_not_mistaken(tmp_path):
    student = make(memory=8)
    for folder, model in (("stream", student), ("single", student.frame)):
        save_weights(tmp_path / folder / WEIGHTS, model.state_dict())
        write_manifest(tmp_path / folder, "run", {}, {"cache": "c"}, [WEIGHTS], student=config_to_json(model.config))
    loaded = load_streaming(tmp_path / "stream")
    assert loaded.config == student.config and not loaded.training
    images = torch.randn(1, 3, 3, *SIZE)
    with torch.no_grad():
        assert torch.equal(loaded(images)["fused"], student(images)["fused"])
    with pytest.raises(UserError, match="stream: holds a streaming student"):
        load_student(tmp_path / "stream")
    with pytest.raises(UserError, match="single: holds a student of single frames"):
        load_streaming(tmp_path / "single")


def test_wrong_images_states_and_settings_are_refused():
    student = make(memory=8)
    with pytest.raises(UserError, match=r"images \(B, T, 3, H, W\) expected"):
        student(torch.zeros(2, 3, *SIZE))
    for state in (student.initial_state(2), student.initial_state(1)[:1], make(memory=9).initial_state(1)):
        with pytest.raises(UserError, match="start with initial_state"):
            student.step(torch.zeros(1, 3, *SIZE), state)
    frame = StudentConfig(heads={"fused": 3})
    for wrong in ({"memory": 0}, {"layers": 0}):
        with pytest.raises(UserError, match="at least 1"):
            StreamingStudent(StreamingConfig(frame=frame, **wrong))
