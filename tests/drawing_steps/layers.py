"""Layers of every kind that torch.nn has, each made for a state of a given shape."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

WORDS = 5  # that an embedding knows

ENTRYWISE = """
    CELU ELU GELU Hardshrink Hardsigmoid Hardswish Hardtanh LeakyReLU LogSigmoid Mish ReLU ReLU6
    RReLU SELU SiLU Sigmoid Softplus Softshrink Softsign Tanh Tanhshrink Identity Dropout
    AlphaDropout Flatten
"""


class Shape(NamedTuple):
    """The shape of a state.

    Attributes:
        layout: "v" for vectors (N, C), "t" for tokens (N, T, C), else how many sides: (N, C, …).
        batch: N.
        channels: C.
        sides: What is left: T, or the sides of a picture.
    """

    layout: str
    batch: int
    channels: int
    sides: tuple[int, ...]

    @property
    def full(self) -> tuple[int, ...]:
        """The shape of the tensor."""
        if self.layout == "t":
            return (self.batch, *self.sides, self.channels)
        return (self.batch, self.channels, *self.sides)


class Kind(NamedTuple):
    """A kind of layer.

    Attributes:
        layouts: Those that it takes.
        make: Returns a layer for a shape.
        call: Calls a layer on x of that shape and on indices of shape (N, 3).
        least: The shortest side it takes.
        divisor: What every side must be a multiple of.
        needs_many: Whether it needs several values in a channel.
        float_only: Whether torch has no bfloat16 kernel for it on a CPU.
    """

    layouts: str
    make: Callable[[Shape], nn.Module]
    call: Callable[[Any, Tensor, Tensor], Tensor] = lambda layer, x, ids: layer(x)
    least: int = 1
    divisor: int = 1
    needs_many: bool = False
    float_only: bool = False

    def takes(self, shape: Shape, dtype: torch.dtype) -> bool:
        """Return whether such a layer runs on states of a shape and dtype."""
        return (
            shape.layout in self.layouts
            and all(side >= self.least and side % self.divisor == 0 for side in shape.sides)
            and (not self.needs_many or shape.batch * prod(shape.sides) > 1)
            and not (self.float_only and dtype == torch.bfloat16)
        )


def wide(x: Tensor, times: int) -> Tensor:
    """Return x with several times its channels."""
    return torch.cat([x * (1 + 0.1 * k) for k in range(times)], 1)


def _attend(layer: Any, x: Tensor, ids: Tensor) -> Tensor:
    return layer(x, x, x, need_weights=False)[0]


def _attend_and_weigh(layer: Any, x: Tensor, ids: Tensor) -> Tensor:
    out, weights = layer(x, x, x)
    return out * weights.mean((1, 2), keepdim=True)


def _masked(layer: Any, x: Tensor, ids: Tensor) -> Tensor:
    T = x.shape[1]
    mask = torch.ones(T, T, dtype=torch.bool).triu(1)
    return layer(x, src_mask=mask) if not isinstance(layer, nn.MultiheadAttention) else layer(
        x, x, x, attn_mask=mask, need_weights=False
    )[0]  # fmt: skip


def _to_memory(layer: Any, x: Tensor, ids: Tensor) -> Tensor:
    return layer(x, x.flip(1))


def _time_first(layer: Any, x: Tensor, ids: Tensor) -> Tensor:
    return layer(x.transpose(0, 1))[0].transpose(0, 1)


def _pool_and_back(layer: Any, x: Tensor, ids: Tensor) -> Tensor:
    pool, unpool = layer
    return unpool(*pool(x))


def _kinds() -> dict[str, Kind]:
    kinds: dict[str, Kind] = {}
    for name in ENTRYWISE.split():
        kinds[name] = Kind("vt123", lambda s, name=name: getattr(nn, name)())
    for name in ("Softmax", "LogSoftmax", "Softmin"):
        kinds[name] = Kind("vt123", lambda s, name=name: getattr(nn, name)(dim=1))
    for name in ("ReLU", "SiLU", "Hardtanh", "Dropout", "RReLU"):
        kinds[f"{name} in place"] = Kind(
            "vt123",
            lambda s, name=name: getattr(nn, name)(inplace=True),
            lambda layer, x, ids: layer(x * 2),
        )
    kinds["GELU of tanh"] = Kind("vt123", lambda s: nn.GELU("tanh"))
    kinds["Threshold"] = Kind("vt123", lambda s: nn.Threshold(0.1, 0.2))
    kinds["PReLU"] = Kind("vt123", lambda s: nn.PReLU(s.full[1]))
    kinds["GLU"] = Kind("vt123", lambda s: nn.GLU(1), lambda layer, x, ids: layer(wide(x, 2)))
    kinds["Unflatten"] = Kind("vt123", lambda s: nn.Unflatten(1, (1, s.full[1])))
    kinds["LayerNorm"] = Kind("vt123", lambda s: nn.LayerNorm(s.full[1:]))
    kinds["RMSNorm"] = Kind("vt123", lambda s: nn.RMSNorm(s.full[1:]))
    kinds["GroupNorm"] = Kind(
        "v123", lambda s: nn.GroupNorm(2 if s.channels % 2 == 0 else 1, s.channels), needs_many=True
    )
    kinds["LocalResponseNorm"] = Kind("123", lambda s: nn.LocalResponseNorm(2), float_only=True)
    kinds["CrossMapLRN2d"] = Kind("2", lambda s: nn.CrossMapLRN2d(3), float_only=True)
    kinds["FeatureAlphaDropout"] = Kind("123", lambda s: nn.FeatureAlphaDropout(0.3))
    for n, layout in enumerate("123", start=1):
        kinds |= _of_dimension(n, layout)
    kinds |= _of_pictures() | _of_vectors_and_tokens()
    return kinds


def _of_dimension(n: int, layout: str) -> dict[str, Kind]:
    """Return the kinds that torch.nn has for one, two and three sides."""

    def of(name: str, *args: Any, **options: Any) -> Callable[[Shape], nn.Module]:
        return lambda s: getattr(nn, f"{name}{n}d")(*args, **options)

    def channels(name: str, **options: Any) -> Callable[[Shape], nn.Module]:
        return lambda s: getattr(nn, f"{name}{n}d")(s.channels, **options)

    def conv(name: str, **options: Any) -> Callable[[Shape], nn.Module]:
        return lambda s: getattr(nn, f"{name}{n}d")(s.channels, s.channels, **options)

    return {
        f"Conv{n}d": Kind(layout, conv("Conv", kernel_size=3, padding=1)),
        f"Conv{n}d of groups": Kind(
            layout,
            lambda s: getattr(nn, f"Conv{n}d")(s.channels, s.channels, 1, groups=s.channels),
        ),
        f"Conv{n}d around": Kind(
            layout, conv("Conv", kernel_size=3, padding=1, padding_mode="circular")
        ),
        f"ConvTranspose{n}d": Kind(layout, conv("ConvTranspose", kernel_size=2, stride=2)),
        f"BatchNorm{n}d": Kind(layout if n > 1 else "v1", channels("BatchNorm"), needs_many=True),
        f"BatchNorm{n}d of counts": Kind(
            layout if n > 1 else "v1", channels("BatchNorm", momentum=None), needs_many=True
        ),
        f"InstanceNorm{n}d": Kind(layout, channels("InstanceNorm", affine=True), least=2),
        f"InstanceNorm{n}d that tracks": Kind(
            layout, channels("InstanceNorm", affine=True, track_running_stats=True), least=2
        ),
        f"Dropout{n}d": Kind(layout, of("Dropout", 0.3)),
        f"AvgPool{n}d": Kind(layout, of("AvgPool", 2), least=2, float_only=n == 3),
        f"MaxPool{n}d": Kind(layout, of("MaxPool", 2), least=2),
        f"MaxUnpool{n}d": Kind(
            layout,
            lambda s: nn.ModuleList(
                [
                    getattr(nn, f"MaxPool{n}d")(2, return_indices=True),
                    getattr(nn, f"MaxUnpool{n}d")(2),
                ]
            ),
            _pool_and_back,
            least=2,
        ),
        f"LPPool{n}d": Kind(
            layout,
            of("LPPool", 2, 2),
            lambda layer, x, ids: layer(x.abs() + 0.1),
            least=2,
            float_only=n == 3,
        ),
        f"AdaptiveAvgPool{n}d": Kind(layout, of("AdaptiveAvgPool", 2)),
        f"AdaptiveMaxPool{n}d": Kind(layout, of("AdaptiveMaxPool", 2)),
        f"CircularPad{n}d": Kind(layout, of("CircularPad", 1)),
        f"ConstantPad{n}d": Kind(layout, of("ConstantPad", 1, 0.5)),
        f"ReflectionPad{n}d": Kind(layout, of("ReflectionPad", 1), least=2),
        f"ReplicationPad{n}d": Kind(layout, of("ReplicationPad", 1)),
        f"ZeroPad{n}d": Kind(layout, of("ZeroPad", 1)),
        f"Upsample to {('linear', 'bilinear', 'trilinear')[n - 1]}": Kind(
            layout,
            lambda s: nn.Upsample(scale_factor=2, mode=("linear", "bilinear", "trilinear")[n - 1]),
        ),
    }


def _of_pictures() -> dict[str, Kind]:
    return {
        "FractionalMaxPool2d": Kind(
            "2", lambda s: nn.FractionalMaxPool2d(2, output_size=1), least=2
        ),
        "FractionalMaxPool3d": Kind(
            "3", lambda s: nn.FractionalMaxPool3d(2, output_size=1), least=4
        ),
        "Softmax2d": Kind("2", lambda s: nn.Softmax2d()),
        "PixelShuffle": Kind(
            "2", lambda s: nn.PixelShuffle(2), lambda layer, x, ids: layer(wide(x, 4))
        ),
        "PixelUnshuffle": Kind("2", lambda s: nn.PixelUnshuffle(2), divisor=2),
        "ChannelShuffle": Kind(
            "123", lambda s: nn.ChannelShuffle(2), lambda layer, x, ids: layer(wide(x, 2))
        ),
        "Upsample": Kind("123", lambda s: nn.Upsample(scale_factor=2)),
        "Upsample to bicubic": Kind("2", lambda s: nn.Upsample(scale_factor=2, mode="bicubic")),
        "UpsamplingBilinear2d": Kind("2", lambda s: nn.UpsamplingBilinear2d(scale_factor=2)),
        "UpsamplingNearest2d": Kind("2", lambda s: nn.UpsamplingNearest2d(scale_factor=2)),
        "Unfold": Kind("2", lambda s: nn.Unfold(2), least=2),
        "Fold": Kind(
            "2",
            lambda s: nn.Fold(s.sides, 2),
            lambda layer, x, ids: layer(nn.functional.unfold(x, 2)),
            least=2,
        ),
    }


def _of_vectors_and_tokens() -> dict[str, Kind]:
    def attention(s: Shape, **options: Any) -> nn.Module:
        heads = 2 if s.channels % 2 == 0 else 1
        return nn.MultiheadAttention(s.channels, heads, batch_first=True, **options)

    def transformer(name: str) -> Callable[[Shape], nn.Module]:
        def make(s: Shape) -> nn.Module:
            heads = 2 if s.channels % 2 == 0 else 1
            return getattr(nn, name)(s.channels, heads, 6, 0.1, batch_first=True)

        return make

    def encoder(s: Shape) -> nn.Module:
        layer = transformer("TransformerEncoderLayer")(s)
        return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def recurrent(name: str, **options: Any) -> Callable[[Shape], nn.Module]:
        return lambda s: getattr(nn, name)(s.channels, 3, **options)

    def first(layer: Any, x: Tensor, ids: Tensor) -> Tensor:
        return layer(x)[0]

    return {
        "Linear": Kind("vt", lambda s: nn.Linear(s.channels, s.channels)),
        "Bilinear": Kind(
            "vt",
            lambda s: nn.Bilinear(s.channels, s.channels, s.channels),
            lambda layer, x, ids: layer(x, x.flip(1)),
        ),
        "CosineSimilarity": Kind(
            "vt123",
            lambda s: nn.CosineSimilarity(),
            lambda layer, x, ids: layer(x, x.flip(1) + 0.5),
        ),
        "PairwiseDistance": Kind(
            "vt", lambda s: nn.PairwiseDistance(), lambda layer, x, ids: layer(x, x.flip(1) + 0.5)
        ),
        "Embedding": Kind(
            "vt123", lambda s: nn.Embedding(WORDS, 3), lambda layer, x, ids: layer(ids)
        ),
        "EmbeddingBag": Kind(
            "vt123", lambda s: nn.EmbeddingBag(WORDS, 3), lambda layer, x, ids: layer(ids)
        ),
        "EmbeddingBag of the largest": Kind(
            "vt123",
            lambda s: nn.EmbeddingBag(WORDS, 3, mode="max"),
            lambda layer, x, ids: layer(ids),
        ),
        "RNN": Kind("t", recurrent("RNN", batch_first=True), first),
        "RNN of two layers": Kind("t", recurrent("RNN", num_layers=2, dropout=0.2), _time_first),
        "GRU": Kind("t", recurrent("GRU", batch_first=True), first),
        "GRU both ways": Kind("t", recurrent("GRU", bidirectional=True), _time_first),
        "LSTM": Kind("t", recurrent("LSTM", batch_first=True), first),
        "LSTM of two layers": Kind(
            "t", recurrent("LSTM", num_layers=2, dropout=0.2, batch_first=True), first
        ),
        "LSTM with projections": Kind("t", recurrent("LSTM", proj_size=2), _time_first),
        "RNNCell": Kind("v", recurrent("RNNCell")),
        "GRUCell": Kind("v", recurrent("GRUCell")),
        "LSTMCell": Kind("v", recurrent("LSTMCell"), first),
        "MultiheadAttention": Kind("t", attention, _attend),
        "MultiheadAttention with weights": Kind("t", attention, _attend_and_weigh),
        "MultiheadAttention that drops": Kind(
            "t", lambda s: attention(s, dropout=0.2, add_bias_kv=True), _attend
        ),
        "MultiheadAttention with a mask": Kind("t", attention, _masked),
        "TransformerEncoderLayer": Kind("t", transformer("TransformerEncoderLayer")),
        "TransformerEncoderLayer with a mask": Kind(
            "t", transformer("TransformerEncoderLayer"), _masked
        ),
        "TransformerEncoder": Kind(
            "t",
            encoder,
        ),
        "TransformerDecoderLayer": Kind("t", transformer("TransformerDecoderLayer"), _to_memory),
        "TransformerDecoder": Kind(
            "t",
            lambda s: nn.TransformerDecoder(transformer("TransformerDecoderLayer")(s), 2),
            _to_memory,
        ),
        "Transformer": Kind(
            "t",
            lambda s: nn.Transformer(
                s.channels,
                1,
                1,
                1,
                6,
                0.1,
                batch_first=True,
                custom_encoder=encoder(s),
            ),
            _to_memory,
        ),
    }


KINDS = _kinds()

LEFT_OUT = {
    "Module": "every layer is one",
    "Container": "deprecated: Module under another name",
    "Sequential": "holds others",
    "ModuleList": "holds others: the networks that are drawn are in one",
    "ModuleDict": "holds others",
    "ParameterList": "holds parameters",
    "ParameterDict": "holds parameters",
    "RNNBase": "what RNN, LSTM and GRU have in common",
    "RNNCellBase": "what their cells have in common",
    "DataParallel": "needs several GPUs",
    "SyncBatchNorm": "needs GPUs and a process group",
    "AdaptiveLogSoftmaxWithLoss": "a loss",
}


def unexplained() -> set[str]:
    """Return the public modules of torch.nn that are neither drawn nor left out for a reason."""
    public = {
        name
        for name, thing in vars(nn).items()
        if inspect.isclass(thing) and issubclass(thing, nn.Module)
    }
    drawn = {name.split()[0] for name in KINDS}
    aside = {name for name in public if name.startswith("Lazy") or "Loss" in name}
    return public - drawn - aside - set(LEFT_OUT)
