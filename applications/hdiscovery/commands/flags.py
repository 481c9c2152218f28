"""Flags for a command's own options and for the fields of a run, such as ``--K 8``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import field, fields, make_dataclass
from typing import Annotated, Any, NoReturn, TypeVar, get_type_hints

import tyro

from hdiscovery.describe import attributes, summary
from hdiscovery.directions.checked import did_you_mean
from hdiscovery.directions.config import DiscoveryConfig
from hdiscovery.directions.groups import GROUP_OF, GROUPS

HELP = ("-h", "--help")
Options = TypeVar("Options")


def read_flags(
    kind: type[Options],
    words: Sequence[str],
    *,
    command: str,
    examples: Iterable[str] = (),
    shown: Callable[[Options], DiscoveryConfig],
) -> tuple[Options, dict[str, Any]]:
    """Read a command line that sets a command's own options and fields of a run.

    The fields are not checked against one another here: that depends on the preset.

    Args:
        kind: A dataclass of the command's own options.
        words: The command line, without the command.
        command: Name of the command.
        examples: Lines for the help.
        shown: Returns the config whose values the help shows as defaults.

    Returns:
        The options, and the fields that were given, by name.

    Raises:
        ValueError: If there is no option of that name.
        SystemExit: If the help was asked for, or a value cannot be read.
    """
    asks = any(word in HELP for word in words)
    words = [word for word in words if word not in HELP]
    refuse_unknown_options(words, kind)
    if asks:
        _show_help(kind, words, command, examples, shown)
    own, values = _parse(kind, words, DiscoveryConfig(), command)
    return own, {name: values[name] for name in _given(words) if name in values}


def _show_help(
    kind: type[Options],
    words: Sequence[str],
    command: str,
    examples: Iterable[str],
    shown: Callable[[Options], DiscoveryConfig],
) -> NoReturn:
    """Print the help with the values of the config that the command line asks for, and exit."""
    try:
        config = shown(_parse(kind, words, DiscoveryConfig(), command, quiet=True)[0])
    except SystemExit:  # an argument is missing, which no help needs
        config = DiscoveryConfig()
    try:
        _parse(kind, ["--help"], config, command)
    finally:
        print("\n".join(["", "examples:", *(f"  {line}" for line in examples)]))
    raise SystemExit(0)


def refuse_unknown_options(words: Iterable[str], kind: type) -> None:
    """Check that there is an option of each name.

    Raises:
        ValueError: If there is none, with the closest name.
    """
    known = [each.name for each in fields(kind)] + list(GROUP_OF)
    options = {f"--{name.replace('_', '-')}" for name in known}
    for name in _given(words):
        if name not in known:
            option = f"--{name.replace('_', '-')}"
            raise ValueError(
                f"unknown options {option}; see --help.{did_you_mean(option, options)}"
            )


def _given(words: Iterable[str]) -> list[str]:
    """Return the names of the options on a command line; ``--no-x`` names x."""
    names = [w[2:].partition("=")[0].replace("-", "_") for w in words if w[:2] == "--"]
    switches = {f"no_{name}": name for name in GROUP_OF}
    return [switches.get(name, name) for name in names]


def _parse(
    kind: type[Options],
    words: Sequence[str],
    config: DiscoveryConfig,
    command: str,
    *,
    quiet: bool = False,
) -> tuple[Options, dict[str, Any]]:
    groups = [(name, _unchecked(name, config)) for name in GROUPS]
    both = make_dataclass("Options", [(command, kind), *groups])
    found: Any = tyro.cli(
        both, args=words, prog=f"hdiscovery {command}", description=f"{summary(kind)}",
        config=(tyro.conf.OmitArgPrefixes,), console_outputs=not quiet,
    )  # fmt: skip
    values = {leaf: getattr(getattr(found, group), leaf) for leaf, group in GROUP_OF.items()}
    return getattr(found, command), values


def _unchecked(group: str, config: DiscoveryConfig) -> type:
    """Return a dataclass with the fields of a group, their values as defaults, and no checks."""
    settings, texts = getattr(config, group), attributes(GROUPS[group])
    hints = get_type_hints(GROUPS[group])
    entries: list[Any] = [
        (name, Annotated[hints[name], tyro.conf.arg(help=texts[name].replace("``", ""))],
         field(default=getattr(settings, name)))
        for name in texts
    ]  # fmt: skip
    made = make_dataclass(group.capitalize(), entries)
    made.__doc__ = summary(GROUPS[group])
    return made
