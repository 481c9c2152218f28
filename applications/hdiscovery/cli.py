"""The command line; ``hdiscovery --help`` lists its commands."""

from __future__ import annotations

import argparse
import sys
from importlib import import_module
from types import ModuleType

from hdiscovery.commands import COMMANDS
from hdiscovery.describe import described

MENDABLE = (ValueError, OSError, FloatingPointError, ImportError)


def main(argv: list[str] | None = None) -> int:
    """Run a command; errors that a user can mend are one line on standard error."""
    arguments = sys.argv[1:] if argv is None else argv
    options = argparse.Namespace()
    try:
        options, rest = _parser().parse_known_args(arguments)
        if rest and not options.takes_fields:
            raise ValueError(f"unknown options {rest}; see --help.")
        options.rest = rest
        options.run(options)
        return 0
    except SystemExit as stop:  # argparse and tyro: help was shown, or the error was
        return stop.code if isinstance(stop.code, int) else 2
    except KeyboardInterrupt:
        resumes = hasattr(options, "resume")
        print(f"\nStopped.{' Continue with --resume.' * resumes}", file=sys.stderr)
        return 130
    except MENDABLE as error:
        print(f"hdiscovery: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hdiscovery", description="Find, measure and show directions in h-space."
    )
    add = parser.add_subparsers(required=True, metavar="COMMAND").add_parser
    for name in COMMANDS:
        module = import_module(f"hdiscovery.commands.{name}")
        # A command whose options are the fields of a config shows a help of its own.
        fields = getattr(module, "TAKES_FIELDS", False)
        own_help = getattr(module, "OWN_HELP", False)
        command = add(
            name, help=module.HELP, description=_sentence(module.HELP), epilog=_epilog(module),
            formatter_class=argparse.RawDescriptionHelpFormatter, add_help=not own_help,
        )  # fmt: skip
        module.add_options(command)
        command.set_defaults(run=module.run, takes_fields=fields)
    return parser


def _epilog(module: ModuleType) -> str:
    """Return a command's examples, and the fields that it takes as options if they are its own."""
    lines = ["examples:", *(f"  {line}" for line in module.EXAMPLES)]
    config = getattr(module, "FIELDS", None)
    if config is not None:
        lines += ["", "fields of the preset [default without one]:", described(config)]
    return "\n".join(lines)


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


if __name__ == "__main__":
    sys.exit(main())
