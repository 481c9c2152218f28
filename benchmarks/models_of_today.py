"""Diffusion models that people tune today, as steps of a sampler: real or on fake tensors.

Each model is its diffusers class with its published config, at its published resolution: batch 1,
weights in bfloat16, no guidance by a second call. Under ``FakeTensorMode`` a network of any size is
built in seconds and runs without a GPU; shapes, bytes and operations are real, numbers are not.

Run ``python benchmarks/models_of_today.py facts`` for what one step of each costs. Any other class
of diffusers works too: ``facts --model diffusers:SanaTransformer2DModel --config config.json
--state 1,32,32,32 --text-tokens 300``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import asdict
from math import cos, pi, sin
from typing import Any, NamedTuple
from unittest.mock import patch

import step_facts
import torch
from forward_inputs import Of, full_config, inputs
from measured import note, results, save
from model_options import add_model_options, chosen
from published_models import Model, Training, named
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

# The projections of attention, as diffusers names them; `add_` ones are those of the text.
PROJECTIONS = r".*\.(to_q|to_k|to_v|to_out\.0|add_[qkv]_proj|to_add_out)"
RANK = 16
TEXT = "encoder_hidden_states"


class Built(NamedTuple):
    """A model, ready to be sampled.

    Attributes:
        net: The network.
        x: The state that the sampler begins with.
        step: ``step(x, i, *conditions) -> x``, one call of the network.
        conditions: Tensors that each step is given.
        names: Their names; a dot leads into a dictionary.
        trained: Tensors that want a gradient.
    """

    net: Any
    x: Tensor
    step: Callable[..., Tensor]
    conditions: tuple[Tensor, ...]
    names: tuple[str, ...]
    trained: tuple[Tensor, ...]


def build(model: Model, training: Training, *, M: int = 50, dtype: Any = torch.bfloat16) -> Built:
    """Return a model whose adapters or whose text embedding are trained; all else is frozen.

    Fake tensors, if ``FakeTensorMode`` is on. ``"lora"`` puts adapters of rank 16 on attention's
    projections, in the network's dtype.
    """
    cls = named(model.cls)
    net: Any = cast(cls(**model.config).requires_grad_(False).eval(), dtype)
    given = flat(inputs(cls, full_config(cls, model.config), model.size))
    tensors = {k: v.made(dtype) for k, v in given.items() if isinstance(v, Of)}
    values = {k: v for k, v in given.items() if not isinstance(v, Of)}
    if training == "lora":
        add_adapters(net, dtype)
        trained = tuple(p for p in net.parameters() if p.requires_grad)
    else:
        trained = (tensors[TEXT].requires_grad_(),)
    names = tuple(tensors)

    def step(x: Tensor, i: int, *conditions: Tensor) -> Tensor:
        t = torch.full((len(x),), model.last_time * (1 - i / M), device=x.device)
        known = nested({**values, **dict(zip(names, conditions, strict=True))})
        out = net(x, timestep=t, **known, return_dict=False)[0]
        return moved(x, out, i, M, model.prediction)

    x = Of(model.size.state).made(dtype)
    return Built(net, x, step, tuple(tensors.values()), names, trained)


def moved(x: Tensor, out: Tensor, i: int, M: int, prediction: str) -> Tensor:
    """Return the state after a step: Euler's for a velocity, DDIM's for noise.

    A velocity is followed from t = 1 to t = 0. For noise, x = a x_0 + s noise with a = cos u and
    s = sin u; u falls from near pi/2 to 0.
    """
    if out.shape != x.shape:
        out = out[:, : x.shape[1]]  # the others predict a variance, which these steps do not use
    if prediction == "flow":
        return x - out / M
    u, v = (0.49 * pi * (1 - j / M) for j in (i, i + 1))
    x_0 = (x - sin(u) * out) / cos(u)
    return cos(v) * x_0 + sin(v) * out


def add_adapters(net: nn.Module, dtype: Any) -> None:
    """Put LoRA on the projections of a network's attention; neither factor begins as zero."""
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=PROJECTIONS)
    with patch.object(nn.Module, "to", lambda module, *args, **kwargs: module):
        inject_adapter_in_model(config, net)  # peft moves what is there already; fakes refuse
    for module in net.modules():
        for name, p in list(module.named_parameters(recurse=False)):
            if p.requires_grad:
                setattr(module, name, nn.Parameter(torch.randn(p.shape).mul(0.02).to(dtype)))


def cast(net: nn.Module, dtype: Any) -> nn.Module:
    """Return a network in another dtype, but for what diffusers keeps in float32 when it loads.

    `Module.to` does not work on fake tensors: it changes a parameter's data in place.
    """
    kept = tuple(getattr(net, "_keep_in_fp32_modules", None) or ())
    stored = net.state_dict().keys()
    for path, module in net.named_modules():
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            whole = f"{path}.{name}".lstrip(".")
            if tensor is None or whole not in stored or not tensor.is_floating_point():
                continue
            if not set(kept) & set(whole.split(".")):
                setattr(module, name, alike(tensor, dtype))
    return net


def alike(tensor: Tensor, dtype: Any) -> Tensor:
    """Return a parameter or buffer in another dtype."""
    new = tensor.detach().to(dtype)
    parameter = isinstance(tensor, nn.Parameter)
    return nn.Parameter(new, requires_grad=tensor.requires_grad) if parameter else new


def flat(known: Mapping[str, Any]) -> dict[str, Any]:
    """Return inputs with those in a dictionary named ``outer.inner``."""
    out: dict[str, Any] = {}
    for name, value in known.items():
        if isinstance(value, dict):
            out |= {f"{name}.{inner}": each for inner, each in value.items()}
        else:
            out[name] = value
    return out


def nested(known: Mapping[str, Any]) -> dict[str, Any]:
    """Return the inputs that `flat` was given."""
    out: dict[str, Any] = {}
    for name, value in known.items():
        outer, dot, inner = name.partition(".")
        if dot:
            out.setdefault(outer, {})[inner] = value
        else:
            out[name] = value
    return out


def weight_bytes(net: nn.Module) -> int:
    """Return the bytes of a network's parameters, adapters included."""
    return sum(p.numel() * p.element_size() for p in net.parameters())


def facts_of(model: Model, training: Training = "embedding") -> dict[str, Any]:
    """Return the facts of a step in the middle of a sampler, on fake tensors, as a row."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        built = build(model, training)
        x = built.x.requires_grad_()  # as all states but the first, on which trained tensors acted
        found = step_facts.facts(
            built.net, lambda: built.step(x, 1, *built.conditions), [x, *built.conditions]
        )
        weights = weight_bytes(built.net)
    row = {"model": model.name, "resolution": model.resolution, "training": training}
    return {**row, "weight_bytes": weights, **asdict(found)}


def table(rows: list[dict[str, Any]]) -> str:
    """Return the facts as a Markdown table, in TFLOP and MiB."""
    heads = (
        "model", "resolution", "training", "weights", "F, TFLOP", "B / F", "φ", "graph g",
        "attention", "block inputs", "largest block", "outside blocks", "blocks",
    )  # fmt: skip
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * 3 + "---:|" * (len(heads) - 3)]
    names = ("graph", "attention", "block_input", "largest_block", "outside")
    for row in rows:
        F = row["forward_flops"]
        cells = [row["model"], row["resolution"], row["training"], _mib(row["weight_bytes"])]
        cells += [f"{F / 1e12:.4g}", f"{row['backward_flops'] / F:.3f}"]
        cells += [f"{100 * row['attention_share']:.1f} %"]
        cells += [_mib(row[f"{name}_bytes"]) for name in names] + [str(row["blocks"])]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _mib(count: int) -> str:
    return f"{count / 2**20:,.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=("facts",))
    add_model_options(parser)
    options = parser.parse_args()
    rows = []
    for model in chosen(options):
        rows.append(facts_of(model, options.training))
        note(f"facts: {model.name}")
    print(table(rows))
    if options.model is None or options.out:
        out = options.out or results("models_of_today", "fake")
        save(out, "fake", {"facts": rows})
        print(f"\nwrote {out}")


if __name__ == "__main__":
    main()
