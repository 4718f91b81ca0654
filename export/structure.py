"""What the ONNX graph must look like for every runtime we target, checked without running it.

Between `export.onnx` (which makes the graph) and `export.parity` (which runs it). The rules come from what parsers on devices
accept and from how half precision fails: a LayerNorm spelled as Pow and ReduceMean overflows in fp16, silently.

    from export.structure import check_structure
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import onnx
import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode

from export.runtime.manifest import INPUT, PIXELS
from student import StudentModel
from student.costs import AttentionCounter
from vega_artifact import UserError

FP8 = "float8e4m3fn"  # as ONNX calls it


def deployed(student: Any) -> Any:
    """A copy of a student as it is shipped: branches that inference can fuse are fused (RepViT, MobileOne), and heads answer in
    the teacher's units by themselves. Equal to rounding."""
    from timm.utils.model import reparameterize_model

    copied = reparameterize_model(student)
    for module in copied.modules():
        if isinstance(module, StudentModel):
            module.fold()
    return copied


def count_layer_norms(model: nn.Module, images: Tensor) -> tuple[int, int]:
    """How many LayerNorm results the outputs of `model(images)` depend on: (different ones, all calls).

    Two norms with equal parameters on one tensor (two untrained heads) are one result, which the exporter may or may not
    merge; after training both numbers are the same.

    Args:
        model: returns a tuple of tensors. images: float32 (B, 3, H, W).
    """
    calls: list[tuple[nn.LayerNorm, Tensor, Tensor]] = []  # holding the inputs keeps their ids unique
    hooks = [
        module.register_forward_hook(lambda layer, inputs, output: calls.append((layer, inputs[0], output)))
        for module in model.modules()
        if isinstance(module, nn.LayerNorm)
    ]
    try:
        with torch.enable_grad():
            total = sum(output.float().sum() for output in model(images.clone().requires_grad_()))
            outputs = [output for _, _, output in calls]
            gradients = torch.autograd.grad(total, outputs, allow_unused=True) if outputs else ()
    finally:
        for hook in hooks:
            hook.remove()
    # A norm inside a head that is not exported has no gradient: it is not in the graph either.
    used = [(layer, source) for (layer, source, _), gradient in zip(calls, gradients) if gradient is not None]
    different = {(id(source), layer.eps, _bytes(layer.weight), _bytes(layer.bias)) for layer, source in used}
    return len(different), len(used)


class _Weights(TorchFunctionMode):
    """Keeps the weight of every linear layer and convolution that runs while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def __torch_function__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        if function in (linear, torch.conv2d):
            self.seen.append(arguments[1] if len(arguments) > 1 else (options or {})["weight"])
        return function(*arguments, **(options or {}))


def count_layers(model: nn.Module, images: Tensor) -> tuple[int, dict[str, int]]:
    """How many layers with weights the outputs of `model(images)` depend on, and how many softmax attentions it runs.

    Counted at the function and not at the module: rotary ViTs and standardised convolutions call linear and conv2d themselves.

    Args:
        model: returns a tuple of tensors, its parameters require gradients. images: float32 (B, 3, H, W).

    Returns:
        layers, and {"network": all attentions, "fusable": those TensorRT is expected to make one kernel of in half precision}.
    """
    with torch.enable_grad(), _Weights() as weights, AttentionCounter() as attention:
        total = sum(output.float().sum() for output in model(images))
        gradients = torch.autograd.grad(total, weights.seen, allow_unused=True) if weights.seen else ()
    return sum(gradient is not None for gradient in gradients), {"network": attention.total, "fusable": attention.fusable}


def _bytes(parameter: Tensor | None) -> bytes:
    return b"" if parameter is None else parameter.detach().numpy().tobytes()


def check_structure(
    model: onnx.ModelProto,
    outputs: list[str],
    opset: int,
    layer_norms: tuple[int, int],
    precision: str = "fp32",
    border: str = INPUT,
) -> dict[str, Any]:
    """Check the graph and return its facts for the manifest.

    Args:
        outputs: expected output names, in order.
        layer_norms: fewest and most LayerNormalization nodes, from `count_layer_norms`.
        precision: "fp16" demands half-precision weights inside (beside float32 islands) and float32 at the borders.
        border: the input, INPUT or PIXELS.

    Raises:
        UserError: invalid ONNX, another opset, a foreign operator domain, wrong names, a batch that is not symbolic,
            borders that are not float32, decomposed LayerNorms, or weights of another type than `precision`.
    """
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise _refusal(f"is not valid ONNX: {str(error).splitlines()[0]}") from error
    domains = {node.domain for node in model.graph.node} | {entry.domain for entry in model.opset_import}
    if domains - {"", "ai.onnx"} or model.functions:
        raise _refusal(f"uses operators outside the ONNX standard ({sorted(domains)}, {len(model.functions)} local functions)")
    if [entry.version for entry in model.opset_import] != [opset]:
        raise _refusal(f"has opset {[entry.version for entry in model.opset_import]}, {opset} expected")
    check_borders(model.graph, outputs, border)
    operators = Counter(node.op_type for node in model.graph.node)
    found = operators["LayerNormalization"]
    if not layer_norms[0] <= found <= layer_norms[1]:
        raise _refusal(f"has {found} LayerNormalization nodes for {layer_norms[0]} LayerNorms: the exporter decomposed some")
    weights = Counter[str]()
    for tensor in model.graph.initializer:
        weights[onnx.TensorProto.DataType.Name(tensor.data_type).lower()] += math.prod(tensor.dims)
    check_weights(weights, precision)
    return {
        "opset": opset,
        "nodes": len(model.graph.node),
        "operators": dict(sorted(operators.items())),
        "weights": dict(weights),
    }


def check_weights(weights: Counter[str], precision: str) -> None:
    """Almost all constants of fp32, most of the others (islands stay float32) have the type that was asked for.

    Args:
        weights: elements by type.
    """
    expected = {"fp32": "float", "fp16": "float16", "fp8_fp16": FP8}.get(precision, "int8")
    counted = sum(weights[kind] for kind in ("float", "float16", "int8", FP8))
    if weights[expected] < (0.99 if precision == "fp32" else 0.5) * counted:
        raise _refusal(f"holds weights of types {dict(weights)} where {precision} was asked")


def check_borders(graph: onnx.GraphProto, outputs: list[str], border: str = INPUT) -> None:
    """Names in order, float32 everywhere (pixels are uint8), and one symbolic batch shared by the input and all outputs."""
    names = ([value.name for value in graph.input], [value.name for value in graph.output])
    if names != ([border], outputs):
        raise _refusal(f"has inputs and outputs {names}, {([border], outputs)} expected")
    tensors = [value.type.tensor_type for value in [*graph.input, *graph.output]]
    batches = {tensor.shape.dim[0].dim_param if tensor.shape.dim else "" for tensor in tensors}  # "": a plain number
    if len(batches) != 1 or "" in batches:
        raise _refusal(f"has no single symbolic batch (found {sorted(batches)}): the batch was frozen")
    entry = onnx.TensorProto.UINT8 if border == PIXELS else onnx.TensorProto.FLOAT
    if [tensor.elem_type for tensor in tensors] != [entry, *[onnx.TensorProto.FLOAT] * len(outputs)]:
        raise _refusal("has inputs or outputs that are not float32")


def _refusal(text: str) -> UserError:
    return UserError(f"the exported graph {text}; choose another student (vega-edge list students)")
