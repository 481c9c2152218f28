"""The command line: one parser for every command; ``hdiscovery --help`` lists the commands."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence
from importlib import import_module
from types import ModuleType
from typing import Any

from hdiscovery.commands import COMMANDS, NAMES
from hdiscovery.commands.earlier import current, renamed
from hdiscovery.extra import needs_extra

MENDABLE = (ValueError, OSError, FloatingPointError, ImportError)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; what a user can mend is said in words on standard error.

    Returns:
        0 if the command did its work, 2 if it could not, 130 after Ctrl-C.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        return _carry_out(words)
    except SystemExit as stop:  # tyro's: help was shown, or an error was
        return stop.code if isinstance(stop.code, int) else 2
    except KeyboardInterrupt:
        resumes = words[:1] and words[0] in ("train", "pretrain", "demo")
        _say(f"\nStopped.{' Continue with --resume.' if resumes else ''}")
        return 130
    except MENDABLE as error:
        _say(f"hdiscovery: {error}")
        return 2
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":
            raise
        _say(f"hdiscovery: {error}\nFewer images at once need less memory: try `--batch-size`.")
        return 2


def overview() -> str:
    """Return the commands, a line each, in groups."""
    lines = ["usage: hdiscovery COMMAND [OPTIONS]"]
    lines += ["", "Find, measure and use directions in h-space."]
    for title, commands in COMMANDS.items():
        lines += ["", title, *(f"  {name:12}{what}" for name, what in commands.items())]
    return "\n".join([*lines, "", "`hdiscovery COMMAND --help` shows options and examples."])


def read(words: Sequence[str]) -> tuple[ModuleType, Any]:
    """Return the module of a command line's command, and the options.

    Raises:
        ValueError: If there is no such command.
        SystemExit: If help was shown, or an option cannot be read.
    """
    (name, *words), note = current(words)
    if name not in NAMES:
        near = difflib.get_close_matches(name, NAMES, n=1)
        meant = f" Did you mean `{near[0]}`?" if near else ""
        raise ValueError(f"There is no command {name!r}.{meant} Commands: {', '.join(NAMES)}.")
    with needs_extra():
        module = import_module(f"hdiscovery.commands.{name}")
    words, notes = renamed(words, getattr(module, "RENAMED", {}))
    for line in (note, *notes):
        if line is not None:
            _say(f"hdiscovery: {line}")
    return module, _options(module, name, words)


def _carry_out(words: Sequence[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        print(overview())
        return 0 if words else 2
    with needs_extra():
        module, options = read(words)
        module.run(options)
    return 0


def _options(module: ModuleType, name: str, words: Sequence[str]) -> Any:
    if "read" in vars(module):
        return module.read(words)
    from hdiscovery.commands.options import parsed

    return parsed(module.Options, words, prog=f"hdiscovery {name}", examples=module.EXAMPLES)


def _say(line: str) -> None:
    print(line, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
