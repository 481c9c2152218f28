"""The list of mutants fits the code."""

import pytest

from tests.mutate import ROOT, mutants, mutated


@pytest.mark.parametrize("mutant", mutants(), ids=lambda mutant: mutant["what"])
def test_a_mutant_changes_code_that_is_there(mutant):
    path, text = mutated(mutant)

    assert text != path.read_text()
    if path.suffix == ".py":
        compile(text, path, "exec")


def test_a_mistake_is_listed_once():
    names = [mutant["what"] for mutant in mutants()]

    assert len(names) == len(set(names))


@pytest.mark.parametrize("mutant", mutants(), ids=lambda mutant: mutant["what"])
def test_the_tests_that_a_mutant_names_are_there(mutant):
    named = mutant["tests"].split()

    assert named
    assert not [path for path in named if not (ROOT / path.partition("::")[0]).exists()]
