"""A network as an ONNX graph, written from its weights without torch.

A family describes its forward pass by the methods of `Graph`. Layers have the names that they have in the torch
network, whose weights they take.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from wsiscore.errors import ModelError

__all__ = ["Graph", "Node", "Ranges", "Statistics"]

Statistics = Mapping[str, tuple[list[float], list[float]]]
"""Name of a normalisation layer -> mean and reciprocal standard deviation of each channel."""
Ranges = Mapping[str, tuple[float, float]]
"""Name of a convolution -> least and largest value of its input."""
Floats = npt.NDArray[np.float32]

MEAN, SCALE, LEAST, LARGEST = ":mean", ":scale", ":least", ":largest"
"""Ends of the names of measured outputs, after the name of a layer."""

_NOT_ITS_WEIGHTS = "the weights are not those of this network"
_EPSILON = 1e-5
_OPSET, _IR = 19, 9  # of 2023


class Node(NamedTuple):
    """Features in a graph.

    Parameters
    ----------
    name
        Of the tensor, (B, C, H, W).
    channels
        Their number.
    stride
        Pixels of the tile to one of the features.
    """

    name: str
    channels: int
    stride: int


class Graph:
    """Builder of an ONNX graph from uint8 tiles (B, 3, H, W) to float32 maps (B, C, H, W) in [0, 1].

    Parameters
    ----------
    weights
        Name -> array, as a model stores them.
    norm
        Statistics of normalisation layers: of each ``tile``; ``measured`` over the batch, weighted by a second input,
        ``counts`` (B, 1, H, W), which makes them outputs; or those given, which are folded into the convolutions.
    ranges
        Ranges of the inputs of convolutions: these are then computed in 8-bit integers, symmetric by output channel
        for weights, asymmetric for the input.

    Raises
    ------
    ModelError
        By each method, if a weight is missing or has another shape.
    """

    def __init__(
        self,
        weights: Mapping[str, npt.NDArray[Any]],
        norm: Literal["tile", "measured"] | Statistics = "tile",
        ranges: Ranges | None = None,
    ) -> None:
        self._weights, self._norm, self._ranges = weights, norm, ranges
        self._nodes: list[Any] = []
        self._constants: list[Any] = []
        self._outputs: dict[str, list[int | str]] = {}
        self._taken: set[str] = set()
        self._counts: dict[int, tuple[str, str]] = {}
        pixels = self._add("Mul", self._add("Cast", "tiles", to=1), self._constant(np.float32(1 / 127.5)))
        self.tiles = Node(self._add("Sub", pixels, self._constant(np.float32(1))), 3, 1)

    def conv(
        self,
        features: Node,
        layer: str,
        *,
        stride: int = 1,
        padding: int = 0,
        reflect: bool = False,
        norm: str | None = None,
    ) -> Node:
        """Add a convolution, and the normalisation layer called `norm` after it.

        Parameters
        ----------
        features, layer
            Its input and its name.
        stride, padding
            In pixels.
        reflect
            Whether padding reflects; else it is zeros.
        norm
            Name of the normalisation layer, if there is one.
        """
        weight = self._weight(f"{layer}.weight", features.channels, axis=1)
        weight, bias, norm = self._folded(weight, self._weight(f"{layer}.bias", len(weight)), norm, axis=0)
        if reflect and padding:
            pads = self._constant(np.array([0, 0, padding, padding] * 2))
            features, padding = features._replace(name=self._add("Pad", features.name, pads, mode="reflect")), 0
        name = self._convolution(features.name, layer, weight, bias, stride, padding)
        return self._normalised(Node(name, len(weight), features.stride * stride), norm)

    def up(self, features: Node, layer: str, *, norm: str | None = None, relu: bool = False, repeated: int = 1) -> Node:
        """Add a transposed convolution of stride 2 and padding 1 that doubles the size, its normalisation and a ReLU.

        With a kernel of 4 × 4, row 2j − 1 of the result takes rows 2 and 0 of the kernel times rows j − 1 and j of the
        input; row 2j takes rows 3 and 1. So it is a 2 × 2 convolution to four times the channels, one for each parity
        of row and column, whose channels are interleaved and whose border of one pixel is cropped. Engines run that
        faster. A kernel of 3 × 3 with an output padding of 1 is one of 4 × 4 with zeros.

        Parameters
        ----------
        features, layer
            Its input and its name.
        norm
            Name of the normalisation layer, if there is one.
        relu
            Whether a ReLU follows; it is faster before the channels are interleaved.
        repeated
            How often the layer takes its input, one after the other: the kernel is summed over them.
        """
        weight = self._weight(f"{layer}.weight", features.channels * repeated, axis=0)
        weight = weight.reshape(repeated, features.channels, *weight.shape[1:]).sum(axis=0)
        inputs, outputs, side = weight.shape[:3]
        weight, bias, norm = self._folded(weight, self._weight(f"{layer}.bias", outputs), norm, axis=1)
        weight = np.pad(weight, ((0, 0), (0, 0), (0, 4 - side), (0, 4 - side)))
        rows = weight[:, :, [[2, 0], [3, 1]]]  # input channel, output channel, parity, row, 4
        both = rows[..., [[2, 0], [3, 1]]]  # …, parity of the row, row, parity of the column, column
        kernel = both.transpose(1, 2, 4, 0, 3, 5).reshape(4 * outputs, inputs, 2, 2)
        name = self._convolution(features.name, layer, kernel, np.repeat(bias, 4), 1, 1)
        if relu and norm is None:
            name = self._add("Relu", name)
        name = self._add("DepthToSpace", name, blocksize=2, mode="CRD")
        name = self._add("Slice", name, *(self._constant(np.array(at)) for at in ([1, 1], [-1, -1], [2, 3])))
        found = self._normalised(Node(name, outputs, features.stride // 2), norm)
        return self.relu(found) if relu and norm is not None else found

    def relu(self, features: Node) -> Node:
        """Add a ReLU."""
        return features._replace(name=self._add("Relu", features.name))

    def leaky_relu(self, features: Node, slope: float) -> Node:
        """Add a ReLU with a slope below 0."""
        return features._replace(name=self._add("LeakyRelu", features.name, alpha=slope))

    def add(self, one: Node, other: Node) -> Node:
        """Add the sum of two features."""
        return one._replace(name=self._add("Add", one.name, other.name))

    def concat(self, one: Node, other: Node) -> Node:
        """Add two features one after the other, channel by channel."""
        name = self._add("Concat", one.name, other.name, axis=1)
        return Node(name, one.channels + other.channels, one.stride)

    def write(self, maps: Node) -> bytes:
        """Return the network in ONNX's format.

        Parameters
        ----------
        maps
            The last features, before tanh: the network gives (tanh + 1) / 2.

        Raises
        ------
        ModelError
            If there are weights that no layer took.
        """
        from onnx import TensorProto, helper

        if extra := sorted(set(self._weights) - self._taken):
            raise ModelError(f"{_NOT_ITS_WEIGHTS}: {extra[0]!r} is not one of them")
        last = self._add("Sigmoid", self._add("Mul", maps.name, self._constant(np.float32(2))))
        inputs = [helper.make_tensor_value_info("tiles", TensorProto.UINT8, ["B", 3, "H", "W"])]
        if self._norm == "measured":
            inputs.append(helper.make_tensor_value_info("counts", TensorProto.FLOAT, ["B", 1, "H", "W"]))
        outputs = self._outputs or {last: ["B", maps.channels, "H", "W"]}
        graph = helper.make_graph(
            self._nodes,
            "network",
            inputs,
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
            self._constants,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR)
        return bytes(model.SerializeToString())

    def _weight(self, name: str, channels: int | None = None, axis: int = 0) -> Floats:
        """Return a weight, which has this many channels along an axis."""
        if name not in self._weights:
            raise ModelError(f"{_NOT_ITS_WEIGHTS}: {name!r} is missing")
        self._taken.add(name)
        weight = np.asarray(self._weights[name], np.float32)
        if channels is not None and weight.shape[axis] != channels:
            raise ModelError(f"{_NOT_ITS_WEIGHTS}: {name!r} is {weight.shape}, wanted {channels} channels at {axis}")
        return weight

    def _convolution(self, features: str, layer: str, weight: Floats, bias: Floats, stride: int, padding: int) -> str:
        """Add a convolution, in 8-bit integers where the range of its input is known."""
        if self._norm == "measured":
            axes = self._constant(np.array([0, 2, 3]))
            for end, kind in ((LEAST, "ReduceMin"), (LARGEST, "ReduceMax")):
                self._output(f"{layer}{end}", self._add(kind, features, axes, keepdims=1), weight.shape[1])
        if self._ranges is None:
            kernel = self._constant(weight)
        else:
            features, kernel = self._rounded(features, *self._ranges[layer]), self._rounded_kernel(weight)
        sizes = {"strides": [stride] * 2, "pads": [padding] * 4}
        return self._add("Conv", features, kernel, self._constant(bias), **sizes)

    def _rounded(self, features: str, least: float, largest: float) -> str:
        """Add rounding to 256 levels, one of which is 0."""
        least, largest = min(least, 0.0), max(largest, 1e-6)
        step = np.float32((largest - least) / 255)
        zero = np.uint8(round(-least / step))
        levels = self._constant(step), self._constant(zero)
        return self._add("DequantizeLinear", self._add("QuantizeLinear", features, *levels), *levels)

    def _rounded_kernel(self, weight: Floats) -> str:
        """Add a kernel rounded to 255 levels for each output channel."""
        step = np.maximum(np.abs(weight).max(axis=(1, 2, 3)), 1e-12) / np.float32(127)
        rounded = np.rint(weight / step[:, None, None, None]).astype(np.int8)
        zero = np.zeros(len(step), np.int8)
        return self._add("DequantizeLinear", *map(self._constant, (rounded, step, zero)), axis=0)

    def _normalised(self, features: Node, norm: str | None) -> Node:
        """Add a normalisation layer that is not folded into the convolution before."""
        if norm is None:
            return features
        if self._norm == "tile":
            affine = (self._constant(value(features.channels, np.float32)) for value in (np.ones, np.zeros))
            name = self._add("InstanceNormalization", features.name, *affine, epsilon=_EPSILON)
            return features._replace(name=name)
        counts, total = self._counted(features.stride)
        mean = self._add("Div", self._summed(self._add("Mul", features.name, counts)), total)
        apart = self._add("Sub", features.name, mean)
        squares = self._summed(self._add("Mul", self._add("Mul", apart, apart), counts))
        variance = self._add("Add", self._add("Div", squares, total), self._constant(np.float32(_EPSILON)))
        scale = self._add("Reciprocal", self._add("Sqrt", variance))
        self._output(f"{norm}{MEAN}", mean, features.channels)
        self._output(f"{norm}{SCALE}", scale, features.channels)
        return features._replace(name=self._add("Mul", apart, scale))

    def _counted(self, stride: int) -> tuple[str, str]:
        """Return how much each of the features of a stride counts, and the sum of that."""
        if stride not in self._counts:
            sides = {"kernel_shape": [stride] * 2, "strides": [stride] * 2}
            counts = self._add("AveragePool", "counts", **sides)
            self._counts[stride] = counts, self._add("Max", self._summed(counts), self._constant(np.float32(1e-6)))
        return self._counts[stride]

    def _summed(self, features: str) -> str:
        """Add the sum over the batch and all pixels; first over pixels, so that less is rounded away."""
        items = self._add("ReduceSum", features, self._constant(np.array([2, 3])), keepdims=1)
        return self._add("ReduceSum", items, self._constant(np.array([0])), keepdims=1)

    def _output(self, name: str, value: str, channels: int) -> None:
        """Name (1, `channels`, 1, 1) an output."""
        from onnx import helper

        self._nodes.append(helper.make_node("Identity", [value], [name]))
        self._outputs[name] = [1, channels, 1, 1]

    def _add(self, kind: str, *inputs: str, **attributes: Any) -> str:
        from onnx import helper

        name = f"{kind} {len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, inputs, [name], **attributes))
        return name

    def _constant(self, value: npt.NDArray[Any] | np.generic) -> str:
        from onnx import numpy_helper

        name = f"constant {len(self._constants)}"
        self._constants.append(numpy_helper.from_array(np.ascontiguousarray(value).reshape(np.shape(value)), name))
        return name

    def _folded(self, weight: Floats, bias: Floats, norm: str | None, axis: int) -> tuple[Floats, Floats, str | None]:
        """Return weight and bias with fixed statistics folded into them, and the normalisation still to be added."""
        if norm is None or isinstance(self._norm, str):
            return weight, bias, norm
        mean, scale = (np.array(values, np.float32) for values in self._norm[norm])
        shape = [-1 if at == axis else 1 for at in range(4)]
        return weight * scale.reshape(shape), (bias - mean) * scale, None
