"""What the commands say of themselves."""

import re
import shlex
import subprocess
import sys
from dataclasses import fields, is_dataclass
from importlib import import_module

import pytest
from hdiscovery.cli import main, overview, read
from hdiscovery.commands import COMMANDS, NAMES
from hdiscovery.commands import earlier as old
from hdiscovery.directions.groups import GROUP_OF


def module(name):
    return import_module(f"hdiscovery.commands.{name}")


@pytest.mark.parametrize("name", NAMES)
def test_help_explains_with_examples(name, capsys):
    assert main([name, "--help"]) == 0
    said = capsys.readouterr().out

    assert "usage" in said
    assert len(module(name).EXAMPLES) >= 1
    assert all(example in said for example in module(name).EXAMPLES)


@pytest.mark.parametrize("name", NAMES)
def test_examples_are_commands_that_can_be_read(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.toml").touch()
    lines = [shlex.split(line.partition(" > ")[0], comments=True) for line in module(name).EXAMPLES]

    assert any(line[:2] == ["hdiscovery", name] for line in lines)
    for line in lines:
        if line[:1] == ["hdiscovery"]:
            read(line[1:])
    assert capsys.readouterr().err == ""  # no older name


def test_every_field_of_a_run_is_explained(capsys):
    assert main(["train", "--help"]) == 0
    said = capsys.readouterr().out

    for name in GROUP_OF:
        assert f"--{name.replace('_', '-')} " in said or f"--{name.replace('_', '-')}," in said


def test_the_overview_names_every_command_and_no_older_one(capsys):
    assert main(["--help"]) == 0
    assert capsys.readouterr().out == f"{overview()}\n"

    shown = re.findall(r"^  (\w+) ", overview(), re.MULTILINE)
    assert shown == list(NAMES) == [name for group in COMMANDS.values() for name in group]
    assert not set(shown) & set(old.COMMANDS)


def test_the_overview_imports_no_library():
    code = (
        "import sys; from hdiscovery.cli import main; main(['--help']); "
        "print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)

    assert not {"torch", "tyro", "numpy", "PIL"} & set(done.stderr.split())


def test_one_word_means_one_thing_in_all_commands():
    meanings = {}
    for name in NAMES:
        options = getattr(module(name), "Options", None)
        for field in fields(options) if is_dataclass(options) else ():
            meanings.setdefault(field.name, set()).add(str(field.type))

    # `image` is a command's input, `images` a number; steps of a sampler are never plain `steps`.
    assert "steps" not in meanings
    for name in ("device", "overwrite", "image", "inversion_steps", "seed", "shifts"):
        assert len(meanings[name]) == 1, (name, meanings[name])


@pytest.mark.parametrize(
    ("words", "name", "said"),
    [
        (["train", "MNIST32-demo"], "train", "Stopped. Continue with --resume."),
        (["convert", "MNIST32-small", "--inspect"], "convert", "Stopped.\n"),
    ],
)
def test_ctrl_c_says_how_to_go_on_where_one_can(words, name, said, monkeypatch, capsys):
    def stopped(options):
        raise KeyboardInterrupt

    monkeypatch.setattr(f"hdiscovery.commands.{name}.run", stopped)

    assert main(words) == 130
    assert said in capsys.readouterr().err
