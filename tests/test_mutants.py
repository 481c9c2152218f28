"""The list of mutants fits the code, and the page says what caught each of them."""

import pytest

from tests.mutate import PAGE, ROOT, SURVIVES, mutants, mutated, rows


@pytest.mark.parametrize("mutant", mutants(), ids=lambda mutant: mutant["what"])
def test_a_mutant_changes_code_that_is_there(mutant):
    assert mutated(mutant) != (ROOT / mutant["file"]).read_text()
    if mutant["file"].endswith(".py"):
        compile(mutated(mutant), mutant["file"], "exec")


def test_the_page_lists_mutants_that_are_there_and_what_caught_them():
    names = [mutant["what"] for mutant in mutants()]
    caught = rows(PAGE.read_text())

    assert len(names) == len(set(names))
    assert set(caught) <= set(names)
    assert not [what for what, row in caught.items() if SURVIVES in row]


@pytest.mark.parametrize("mutant", mutants(), ids=lambda mutant: mutant["what"])
def test_the_tests_that_a_mutant_names_are_there(mutant):
    named = mutant["tests"].split()

    assert named
    assert not [path for path in named if not (ROOT / path.partition("::")[0]).exists()]
