"""What commands say of themselves."""

import shlex
from dataclasses import dataclass
from importlib import import_module

import pytest
from hdiscovery.cli import _parser, main
from hdiscovery.commands import COMMANDS
from hdiscovery.describe import described
from hdiscovery.directions.config import GROUP_OF


@pytest.mark.parametrize("name", COMMANDS)
def test_help_explains_with_examples(name, capsys):
    assert main([name, "--help"]) == 0
    said = capsys.readouterr().out

    assert "usage" in said
    module = import_module(f"hdiscovery.commands.{name}")
    assert len(module.EXAMPLES) >= 1
    if not getattr(module, "OWN_HELP", False):
        assert all(example in said for example in module.EXAMPLES)


@pytest.mark.parametrize("name", COMMANDS)
def test_examples_are_commands_that_can_be_read(name):
    parser = _parser()
    lines = [
        shlex.split(line, comments=True)
        for line in import_module(f"hdiscovery.commands.{name}").EXAMPLES
    ]

    assert any(line[:2] == ["hdiscovery", name] for line in lines)
    for line in lines:
        if line[:1] == ["hdiscovery"]:
            _, rest = parser.parse_known_args(line[1:])
            own = getattr(import_module(f"hdiscovery.commands.{line[1]}"), "OWN_HELP", False)
            assert own or not rest


def test_every_field_of_a_run_is_explained(capsys):
    assert main(["train", "--help"]) == 0
    said = capsys.readouterr().out

    for name in GROUP_OF:
        assert f"--{name.replace('_', '-')} " in said or f"--{name.replace('_', '-')}," in said


def test_a_field_without_an_explanation_is_an_error():
    @dataclass
    class Silent:
        """Something.

        Attributes:
            a: Explained, in
                two lines.

        Raises:
            ValueError: Never.
        """

        a: int = 1
        b: int = 2

    with pytest.raises(KeyError, match="b"):
        described(Silent)
    Silent.__doc__ = Silent.__doc__.replace("two lines.", "two lines.\n            b: And this.")
    assert described(Silent).split() == (
        ["--a", "[1]", "Explained,", "in", "two", "lines.", "--b", "[2]", "And", "this."]
    )


@pytest.mark.parametrize(
    ("words", "module", "said"),
    [
        (["train", "MNIST32-demo"], "train", "Stopped. Continue with --resume."),
        (["inspect", "MNIST32-small"], "inspect", "Stopped.\n"),
    ],
)
def test_ctrl_c_says_how_to_go_on_where_one_can(words, module, said, monkeypatch, capsys):
    def stopped(options):
        raise KeyboardInterrupt

    monkeypatch.setattr(f"hdiscovery.commands.{module}.run", stopped)

    assert main(words) == 130
    assert said in capsys.readouterr().err
