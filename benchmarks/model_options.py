"""The command line's part that names models of today, or describes one of the user's own."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from forward_inputs import Of, Size, full_config
from published_models import MODELS, TRAININGS, Model, named


def chosen(options: argparse.Namespace) -> list[Model]:
    """Return the models that the command line names, or the one that it describes."""
    if options.model is None:
        return [MODELS[name] for name in options.models or MODELS]
    if options.state is None:
        raise SystemExit(f"{options.model} may have many sizes; give one: `--state 1,16,128,128`.")
    others = {k: _tensor(v) for k, _, v in (each.partition("=") for each in options.input)}
    others |= {k: json.loads(v) for k, _, v in (each.partition("=") for each in options.value)}
    config = json.loads(options.config.read_text()) if options.config else {}
    cls = named(options.model)
    known = {k: v for k, v in config.items() if k in full_config(cls, {})}
    size = Size(options.state, options.text_tokens, options.grid, others)
    name, shape = cls.__name__, "x".join(map(str, options.state))
    return [Model(name, options.model, known, size, shape, "", options.prediction)]


def _whole(text: str) -> tuple[int, ...]:
    return tuple(int(each) for each in text.split(","))


def _tensor(text: str) -> Of:
    shape, _, dtype = text.partition(":")
    return Of(_whole(shape), getattr(torch, dtype) if dtype else None)


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Let a command name models, or describe one."""
    parser.add_argument("--models", nargs="*", choices=MODELS, help="by default all")
    parser.add_argument("--model", metavar="MODULE:CLASS", help="any class of diffusers, in place")
    parser.add_argument("--config", type=Path, help="its config.json; by default its defaults")
    parser.add_argument("--state", type=_whole, metavar="1,16,128,128", help="shape of its state")
    parser.add_argument("--text-tokens", type=int, default=0, help="tokens of the text it reads")
    parser.add_argument("--grid", type=_whole, help="frames,rows,columns of a state of tokens")
    parser.add_argument("--prediction", choices=("flow", "noise"), default="flow")
    parser.add_argument(
        "--input",
        action="append",
        default=[],
        metavar="NAME=SHAPE[:DTYPE]",
        help="a tensor that the forward pass takes and that cannot be guessed",
    )
    parser.add_argument(
        "--value",
        action="append",
        default=[],
        metavar="NAME=JSON",
        help="the same for a value that is no tensor",
    )
    parser.add_argument("--training", choices=TRAININGS, default="embedding")
    parser.add_argument("--out", type=Path)  # fmt: skip
