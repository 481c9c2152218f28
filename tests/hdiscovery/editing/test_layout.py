"""What --direction asks for."""

from dataclasses import replace

import pytest
import torch
from hdiscovery.directions.fixed import GlobalDirections
from hdiscovery.editing.layout import Asked, arrange, parse_direction


@pytest.fixture
def about(toy, source_of):
    source = source_of(toy(lambda h, t: h), GlobalDirections(torch.zeros(8, 1, 2, 2)), K=8)
    return replace(source.about, labels=("", "", "thick", "a:1", "", "", "twice", "twice"))


@pytest.mark.parametrize(
    ("text", "asked"),
    [("3", Asked(3, None)), ("7:-2", Asked(7, -2.0)), ("thick", Asked(2, None)),
     ("thick:.5", Asked(2, 0.5)), ("a:1", Asked(3, None)), ("a:1:2", Asked(3, 2.0))],
)  # fmt: skip
def test_a_direction_is_a_number_or_a_label_with_or_without_a_strength(about, text, asked):
    assert parse_direction(text, about) == asked


@pytest.mark.parametrize(
    ("text", "message"),
    [("8:1", "are 0 … 7"), ("-1", "are 0 … 7"), ("3:much", "'much' is not a number"),
     ("3:inf", "not a number"), ("thin:1", "labels are: a:1, thick"), ("twice", "several"),
     ("3:", "'' is not a number")],
)  # fmt: skip
def test_what_is_no_direction_is_refused_with_what_there_is(about, text, message):
    with pytest.raises(ValueError, match=message):
        parse_direction(text, about)


def test_one_direction_without_a_strength_is_a_strip_and_the_others_are_fixed():
    layout = arrange([Asked(7, -2.0), Asked(3, None)], span=4, columns=5)

    assert layout.k == (7, 3)
    assert layout.s.tolist() == [[[-2, -4], [-2, -2], [-2, 0], [-2, 2], [-2, 4]]]
    assert (layout.axes, layout.across, layout.down) == ((3,), (-4, -2, 0, 2, 4), ())
    assert layout.fixed == ((7, -2.0),)
    assert layout.name == "d7-2_d3"


def test_two_are_a_grid_with_the_first_to_the_right_and_the_second_upwards():
    layout = arrange([Asked(3, None), Asked(7, None)], span=1, columns=3)

    assert layout.s.shape == (3, 3, 2)
    assert layout.s[0, 2].tolist() == [1, 1]
    assert layout.s[2, 2].tolist() == [1, -1]
    assert layout.s[1, 1].tolist() == [0, 0]
    assert layout.down == (1, 0, -1)


def test_strengths_alone_are_a_single_edit():
    layout = arrange([Asked(3, 1.5), Asked(7, -2.0)], span=1, columns=3)

    assert torch.equal(layout.s, torch.tensor([[[1.5, -2.0]]]))
    assert layout.name == "d3+1.5_d7-2"


@pytest.mark.parametrize(
    ("asked", "options", "message"),
    [([], {}, "at least once"), ([Asked(1, None), Asked(1, 2.0)], {}, "only once"),
     ([Asked(k, None) for k in range(3)], {}, "at most two"),
     ([Asked(1, None)], {"columns": 4}, "`--shifts` must be odd"),
     ([Asked(1, None)], {"span": 0}, "`--span` must be positive")],
)  # fmt: skip
def test_what_makes_no_sheet_is_refused(asked, options, message):
    with pytest.raises(ValueError, match=message):
        arrange(asked, **{"span": 1, "columns": 3, **options})
