"""What the page that shows directions promises to the one who opens it."""

import base64
import io
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from hdiscovery.gallery import DirectionStrips, write_page
from hdiscovery.gallery.curves import training_curves
from PIL import Image

SHIFTS = (-2.0, 0.0, 2.0)


def direction(k=0, *, accuracy=None, shift_error=None, strips=None):
    if strips is None:
        strips = torch.zeros(2, 3, 1, 8, 8)
    return DirectionStrips(k=k, strips=strips, accuracy=accuracy, shift_error=shift_error)


def page_of(tmp_path, *directions, title="Directions", records=(), facts=None, shifts=SHIFTS):
    path = write_page(
        tmp_path / "gallery" / "index.html",
        title=title,
        shifts=shifts,
        directions=directions or [direction()],
        records=records,
        facts=facts or {},
    )
    return path.read_text(encoding="utf-8")


def records(num_steps):
    return [
        {"step": i, "L_G": 0.7, "cross_entropy": 3 / (i + 1), "shift_error": 1.0, "seconds": 0.1}
        for i in range(num_steps)
    ]


class Tags(HTMLParser):
    """Collects start tags with their attributes."""

    def __init__(self, page):
        super().__init__()
        self.found = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def of(self, name):
        return [attributes for tag, attributes in self.found if tag == name]


def pixels(page):
    for image in Tags(page).of("img"):
        head, data = image["src"].split(",")
        assert head == "data:image/png;base64"
        yield Image.open(io.BytesIO(base64.b64decode(data)))


def test_the_best_recognised_direction_comes_first_and_the_unmeasured_last(tmp_path):
    accuracies = {0: None, 1: 0.25, 2: 1.0, 3: 0.0, 4: 0.25}

    page = page_of(tmp_path, *(direction(k, accuracy=a) for k, a in accuracies.items()))

    assert re.findall(r"<h3>Direction (\d+)</h3>", page) == ["2", "1", "4", "3", "0"]


@pytest.mark.parametrize("channels", [1, 3])
def test_images_decode_back_to_the_pixels_that_were_given(tmp_path, channels):
    bytes_ = torch.randint(0, 256, (2, 3, channels, 8, 5), dtype=torch.uint8)

    images = list(pixels(page_of(tmp_path, direction(strips=bytes_ / 127.5 - 1))))

    assert [image.mode for image in images] == [{1: "L", 3: "RGB"}[channels]] * 2
    for image, sample in zip(images, bytes_, strict=True):
        shown = torch.from_numpy(np.array(image)).view(8, 3, 5, channels).permute(1, 3, 0, 2)
        assert torch.equal(shown, sample)


def test_pixels_out_of_range_are_clamped_and_nan_is_grey(tmp_path):
    values = torch.tensor([-math.inf, -3.0, math.nan, 3.0, math.inf])
    strips = values.expand(1, 3, 1, 1, 5).to(torch.bfloat16)

    (image,) = pixels(page_of(tmp_path, direction(strips=strips)))

    assert np.array(image)[0, :5].tolist() == [0, 0, 128, 255, 255]


def test_images_say_their_size_and_what_they_show(tmp_path):
    page = page_of(tmp_path, direction(7, strips=torch.zeros(1, 3, 1, 16, 8)))

    (image,) = Tags(page).of("img")
    assert (image["width"], image["height"]) == ("24", "16")
    assert image["alt"] == "Direction 7, sample 1, from s = −2 to +2 in 3 images"


def test_the_column_of_the_original_is_marked_and_no_other(tmp_path):
    page = page_of(tmp_path, shifts=(-1, 0, 0.5))

    assert re.findall(r"<span( class=\"original\")?>([^<]*)</span>", page)[-3:] == [
        ("", "−1"),
        (' class="original"', "0"),
        ("", "+0.5"),
    ]
    assert "--columns: 3; --origin: 1;" in page


def test_words_of_the_user_cannot_become_markup(tmp_path):
    evil = "</title><script>alert(1)</script>\"'&"

    page = page_of(tmp_path, title=evil, facts={evil: evil})

    assert not Tags(page).of("script")
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") == 4


def test_the_page_needs_nothing_but_itself(tmp_path):
    page = page_of(tmp_path, records=records(30))

    tags = Tags(page)
    sources = [a[key] for _, a in tags.found for key in ("src", "href", "xlink:href") if key in a]
    assert all(source.startswith("data:") for source in sources)
    assert "http://" not in page
    assert "https://" not in page
    assert re.findall(r"url\((?!#)", page) == []
    assert "@import" not in page
    assert not tags.of("script")


def test_the_same_input_gives_the_same_bytes(tmp_path):
    assert page_of(tmp_path, records=records(9)) == page_of(tmp_path, records=records(9))


def test_only_the_finished_page_is_left_in_its_folder(tmp_path):
    page_of(tmp_path)
    page_of(tmp_path)

    assert [file.name for file in (tmp_path / "gallery").iterdir()] == ["index.html"]


def test_accuracy_stands_beside_chance_of_all_directions_not_only_those_shown(tmp_path):
    page = page_of(tmp_path, direction(accuracy=0.5, shift_error=0.25), facts={"K": 32})

    assert "50&nbsp;%" in page
    assert "chance 3.1&nbsp;% · shift error 0.25" in page


def test_facts_read_as_one_writes_them(tmp_path):
    page = page_of(tmp_path, facts={"L_G": 0.69314718, "steps": 20_000, "batch_size": 8, "S": 5.0})

    facts = re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", page)
    assert facts == [
        ("L<sub>G</sub>", "0.6931"),
        ("steps", "20,000"),
        ("batch size", "8"),
        ("S", "5"),
    ]


def test_curves_stand_beside_the_levels_of_chance(tmp_path):
    page = page_of(tmp_path, records=records(50), facts={"K": 32, "S": 5})

    labels = re.findall(r"(ln 2|ln K|S/2) is (\d\.\d+)", page)
    assert labels == [("ln 2", "0.693"), ("ln K", "3.466"), ("S/2", "2.500")]
    assert page.count("<svg") == 3


@pytest.mark.parametrize("num_steps", [0, 1])
def test_a_training_too_short_for_a_curve_has_none(tmp_path, num_steps):
    page = page_of(tmp_path, records=records(num_steps))

    assert "<svg" not in page
    assert "No training records" in page


def test_a_value_that_is_not_finite_leaves_a_hole_in_its_curve_only():
    holed = records(20)
    holed[5]["L_G"] = math.nan
    del holed[7]["L_G"]

    L_G, cross_entropy, _ = training_curves(holed, K=4, S=2.0)

    assert "over 18 records" in L_G.description
    assert "over 20 records" in cross_entropy.description


def test_a_long_training_is_drawn_as_small_as_a_short_one():
    (short, *_), (long, *_) = (training_curves(records(n), K=4, S=2.0) for n in (600, 30_000))

    assert len(long.svg) < 1.2 * len(short.svg)


def test_a_record_without_a_step_is_refused():
    with pytest.raises(ValueError, match="needs the key 'step'"):
        training_curves([{"L_G": 0.7}], K=4, S=2.0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"strips": torch.zeros(3, 1, 8, 8)}, r"`strips` .* got \[3, 1, 8, 8\].*strips\[None\]"),
        ({"strips": torch.zeros(1, 3, 2, 8, 8)}, "C = 1 or 3"),
        ({"strips": torch.zeros(0, 3, 1, 8, 8)}, r"got \[0, 3, 1, 8, 8\]"),
        ({"strips": torch.zeros(1, 3, 1, 8, 8).byte()}, "torch.uint8.*127.5"),
        ({"k": -1}, "`k` .*got -1"),
        ({"accuracy": 97.0}, r"`accuracy` .*\[0, 1\], got 97.0.*None"),
        ({"accuracy": math.nan}, "got nan.*None"),
        ({"shift_error": -0.5}, "`shift_error` .*got -0.5.*None"),
    ],
)
def test_a_direction_that_cannot_be_shown_is_refused_with_the_way_out(fields, message):
    with pytest.raises(ValueError, match=message):
        direction(**fields)


@pytest.mark.parametrize(
    ("shifts", "message"),
    [
        ((-1, -0.5, 0, 0.5, 1), "hold 3 images per sample, but `shifts` has 5 values"),
        ((-1, 1, 2), "contain 0, the original"),
        ((1, 0, -1), "increase"),
        ((-math.inf, 0, 1), "finite"),
    ],
)
def test_shifts_that_do_not_fit_are_refused_before_anything_is_written(tmp_path, shifts, message):
    with pytest.raises(ValueError, match=message):
        page_of(tmp_path, shifts=shifts)

    assert list(tmp_path.iterdir()) == []


def test_a_folder_for_a_path_is_refused_with_the_file_to_name(tmp_path):
    with pytest.raises(ValueError, match=r"index\.html"):
        write_page(
            tmp_path, title="", shifts=SHIFTS, directions=[direction()], records=[], facts={}
        )


def test_a_page_without_directions_is_refused(tmp_path):
    with pytest.raises(ValueError, match="`directions` is empty"):
        write_page(
            tmp_path / "index.html", title="", shifts=[0], directions=[], records=[], facts={}
        )
