"""What fits on a card: plans of tiny models, and files that grow."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import what_fits

from tests.benchmarks.tiny_models import TINY

GIB = 2**30


@pytest.fixture(scope="module")
def answer():
    return what_fits.answers(TINY["wan"], "embedding")


def test_every_card_holds_a_tiny_model_without_running_anything_again(answer):
    assert [row["levels"] for row in answer["cards"][:4]] == [{"graph": 20}] * 4
    assert [row["of_plain_flops"] for row in answer["cards"]] == [1.0] * 8


def test_named_plans_are_compared_with_the_default_one(answer):
    rows = {row["plan"]: row for row in answer["named"] if row["M"] == 20}

    assert rows["nodes"]["of_nodes_bytes"] == rows["nodes"]["of_nodes_flops"] == 1.0
    assert rows["graph"]["of_plain_flops"] == 1.0
    assert rows["blocks"]["flops"] > rows["nodes"]["flops"] > rows["graph"]["flops"]
    assert rows["skeleton+attention"]["flops"] < rows["skeleton"]["flops"]


def test_a_card_that_the_weights_fill_holds_nothing():
    cost, _ = what_fits.costs_of(TINY["wan"], "embedding")

    row = what_fits.on_card(cost, 20, 24, weights=24 * GIB)

    assert row["levels"] is None
    assert what_fits._cell(row) == "no"


def test_a_file_keeps_the_answers_about_other_models(answer, tmp_path):
    out = tmp_path / "what_fits.json"
    other = {**answer, "model": "SDXL"}
    out.write_text(json.dumps({"environment": {"torch": "2"}, "models": [other]}))

    content = what_fits.known(out)
    content["SD1.5", "embedding"] = {**answer, "model": "SD1.5", "environment": {}}

    assert [row["model"] for row in what_fits.in_order(content)] == ["SD1.5", "SDXL"]
    assert content["SDXL", "embedding"]["environment"] == {"torch": "2"}
    assert "SDXL" in what_fits.table({"models": what_fits.in_order(content)})
