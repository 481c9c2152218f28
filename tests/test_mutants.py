"""The list of mutants fits the code; ``make mutants`` runs them."""

import pytest

from tests.mutate import ROOT, mutants, mutated


@pytest.mark.parametrize("mutant", mutants(), ids=lambda mutant: mutant["what"])
def test_a_mutant_changes_code_that_is_there(mutant):
    assert mutated(mutant) != (ROOT / mutant["file"]).read_text()
    compile(mutated(mutant), mutant["file"], "exec")
