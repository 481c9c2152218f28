"""Names that commands and options had before: they work, and say what they are called now."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

Words = list[str]


def current(words: Sequence[str]) -> tuple[Words, str | None]:
    """Return a command line under today's command, and a note if the name was an older one.

    Example:
        >>> current(["label", "runs/a", "3=thicker"])[0]
        ['publish', 'runs/a', '--label', '3=thicker']
    """
    name, *rest = words
    if name not in COMMANDS:
        return list(words), None
    if {"-h", "--help"} & set(rest):
        rest = ["--help"]
    now, form, rewrite = COMMANDS[name]
    return [now, *rewrite(rest)], f"`hdiscovery {name}` is now `hdiscovery {now} {form}`."


def renamed(words: Sequence[str], names: Mapping[str, str]) -> tuple[Words, list[str]]:
    """Return words with older options replaced, and a note for each of them.

    Args:
        words: A command's words, without its name.
        names: Older options with their names of today.

    Example:
        >>> renamed(["--steps=5"], {"--steps": "--sampling-steps"})
        (['--sampling-steps=5'], ['`--steps` is now `--sampling-steps`.'])
    """
    new, notes = [], []
    for word in words:
        option, equals, value = word.partition("=")
        option = option.replace("_", "-") if option.startswith("--") else option
        if option in names:
            word = f"{names[option]}{equals}{value}"
            notes.append(f"`{option}` is now `{names[option]}`.")
        new.append(word)
    return new, list(dict.fromkeys(notes))


def _ranked(words: Words) -> Words:
    """Return the words of ``rank``, whose ``--seed`` was the one after the seed of ``evaluate``."""
    new = []
    for word in words:
        new += word.split("=") if word.startswith("--seed=") else [word]
        if new[-2:-1] == ["--seed"] and new[-1].isdecimal():
            new[-1] = str(max(int(new[-1]) - 1, 0))
    return [*new, "--only", "rank"]


def _labelled(words: Words) -> Words:
    return words if words[:1] == ["--help"] else [*words[:1], "--label", *words[1:]]


COMMANDS: dict[str, tuple[str, str, Callable[[Words], Words]]] = {
    "rank": ("evaluate", "--only rank", _ranked),
    "directions": ("publish", "--to file", lambda words: [*words, "--to", "file"]),
    "label": ("publish", "--label", _labelled),
    "inspect": ("convert", "--inspect", lambda words: [*words, "--inspect"]),
    "export": ("convert", "--to diffusers", lambda words: [*words, "--to", "diffusers"]),
}
