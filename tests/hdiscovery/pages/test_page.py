"""What the page that shows directions promises to the one who opens it."""

import base64
import io
import re
from html.parser import HTMLParser

import pytest
import torch
from hdiscovery.pages import ShownDirection, ShownRun, page, write_page
from PIL import Image

SHIFTS = (-2.0, 0.0, 2.0)


def direction(k=0, *, edge=8, **known):
    return ShownDirection.of(k, torch.zeros(2, 3, 1, edge, edge), **known)


def run(*directions, **known):
    given = {"name": "a", "dm": "tiny", "K": 4, "S": 2.0, "shifts": SHIFTS, **known}
    return ShownRun(directions=directions or [direction()], **given)


def page_of(tmp_path, *runs, title=None):
    path = write_page(tmp_path / "gallery" / "index.html", runs or [run()], title=title)
    return path.read_text(encoding="utf-8")


def records(num_steps):
    return [
        {"step": i, "L_G": 0.7, "cross_entropy": 3 / (i + 1), "shift_error": 1.0, "seconds": 0.1}
        for i in range(num_steps)
    ]


class Tags(HTMLParser):
    """Collects start tags with their attributes."""

    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def of(self, name, **wanted):
        tags = [attributes for tag, attributes in self.found if tag == name]
        return [a for a in tags if all(a.get(key) == value for key, value in wanted.items())]


def order_of(text):
    return [int(card["data-k"]) for card in Tags(text).of("article")]


def test_the_best_recognised_direction_comes_first_and_the_unmeasured_last(tmp_path):
    accuracies = {0: None, 1: 0.25, 2: 1.0, 3: 0.0, 4: 0.25}

    text = page_of(tmp_path, run(*(direction(k, accuracy=a) for k, a in accuracies.items())))

    assert order_of(text) == [2, 1, 4, 3, 0]


def test_a_score_goes_before_accuracy(tmp_path):
    directions = [
        direction(0, accuracy=1.0, score=0.2),
        direction(1, accuracy=0.1, score=0.9),
        direction(2, accuracy=0.9),
    ]

    assert order_of(page_of(tmp_path, run(*directions))) == [1, 0, 2]


def test_pictures_say_their_size_and_what_they_show(tmp_path):
    text = page_of(tmp_path, run(direction(7, edge=16)))

    (sheet,) = Tags(text).of("img", **{"class": "sheet"})
    assert (sheet["width"], sheet["height"]) == ("48", "32")
    assert sheet["alt"] == "Direction 7, 2 samples from s = −2 to +2 in 3 images"
    with Image.open(io.BytesIO(base64.b64decode(sheet["src"].split(",")[1]))) as image:
        assert image.size == (48, 32)


def test_the_column_of_the_original_is_marked_and_no_other(tmp_path):
    text = page_of(tmp_path, run(shifts=(-1, 0, 0.5)))

    assert re.findall(r"<span( class=\"original\")?>([−+]?[\d.]+)</span>", text) == [
        ("", "−1"),
        (' class="original"', "0"),
        ("", "+0.5"),
    ]
    assert "--columns: 3; --origin: 1;" in text


def test_words_of_the_user_cannot_become_markup(tmp_path):
    evil = "</title></script><script>alert(1)</script>\"'&"
    shown = run(direction(label=evil), name=evil, dm=evil, facts={evil: evil}, alarms=[evil])

    text = page_of(tmp_path, shown)

    assert len(Tags(text).of("script")) == 1
    assert "<script>alert" not in text
    assert Tags(text).of("section")[0]["data-run"] == evil
    assert Tags(text).of("article")[0]["data-label"] == evil


def test_the_policy_lets_nothing_run_but_the_script_whose_hash_it_names(tmp_path):
    (policy,) = Tags(page_of(tmp_path)).of("meta", **{"http-equiv": "Content-Security-Policy"})

    assert "default-src 'none'" in policy["content"]
    assert re.search(r"script-src 'sha256-[\w+/=]{44}'", policy["content"])
    assert "http" not in policy["content"]


def test_a_page_of_few_pictures_needs_nothing_but_itself(tmp_path):
    text = page_of(tmp_path, run(records=records(30)))

    tags = Tags(text)
    sources = [a[key] for _, a in tags.found for key in ("src", "href", "xlink:href") if key in a]
    assert sources
    assert all(source.startswith("data:") for source in sources)
    assert "http://" not in text
    assert "https://" not in text
    assert re.findall(r"url\((?!#)", text) == []
    assert "@import" not in text
    assert [file.name for file in (tmp_path / "gallery").iterdir()] == ["index.html"]


def test_many_pictures_lie_beside_the_page_and_old_ones_are_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "INSIDE_UP_TO", 100)
    write_page(tmp_path / "index.html", [run(direction(edge=16))])
    write_page(tmp_path / "index.html", [run(direction(edge=24))])

    images = Tags((tmp_path / "index.html").read_text(encoding="utf-8")).of("img")
    sources = {image["src"] for image in images}
    assert all(image["loading"] == "lazy" for image in images)
    assert sources == {f"index_files/{f.name}" for f in (tmp_path / "index_files").iterdir()}


def test_a_page_that_has_become_small_leaves_the_users_files_in_the_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "INSIDE_UP_TO", 100)
    write_page(tmp_path / "index.html", [run()])
    (tmp_path / "index_files" / "mine.webp").touch()
    monkeypatch.undo()

    write_page(tmp_path / "index.html", [run()])

    assert [file.name for file in (tmp_path / "index_files").iterdir()] == ["mine.webp"]


def test_the_same_input_gives_the_same_bytes(tmp_path):
    shown = run(records=records(9))

    assert page_of(tmp_path, shown) == page_of(tmp_path, shown)


def test_accuracy_stands_beside_chance_of_all_directions_not_only_those_shown(tmp_path):
    text = page_of(tmp_path, run(direction(accuracy=0.5), K=32))

    assert "50&nbsp;%" in text
    assert "chance 3.1&nbsp;%" in text
    assert 'style="left: 3.1%"' in text


def test_what_the_ranking_measured_is_shown_and_can_be_sorted_by(tmp_path):
    text = page_of(tmp_path, run(direction(3, measures={"effect": 1.25}, twin_of=(1, -1))))

    assert "effect 1.25" in text
    assert '<option value="effect">' in text
    assert "opposite of" in text
    assert '<a href="#r0-k1">' in text


def test_facts_read_as_one_writes_them(tmp_path):
    facts = {"L_G": 0.69314718, "steps": 20_000, "batch_size": 8, "S": 5.0}

    text = page_of(tmp_path, run(facts=facts))

    assert re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", text) == [
        ("L<sub>G</sub>", "0.6931"),
        ("steps", "20,000"),
        ("batch size", "8"),
        ("S", "5"),
    ]


def test_curves_stand_beside_the_levels_of_chance(tmp_path):
    text = page_of(tmp_path, run(records=records(50), K=32, S=5.0, shifts=(-5, 0, 5)))

    labels = re.findall(r"(ln 2|ln K|S/2) is (\d\.\d+)", text)
    assert labels == [("ln 2", "0.693"), ("ln K", "3.466"), ("S/2", "2.500")]
    assert text.count("<svg") == 3


@pytest.mark.parametrize("num_steps", [0, 1])
def test_a_training_too_short_for_a_curve_has_none(tmp_path, num_steps):
    text = page_of(tmp_path, run(records=records(num_steps)))

    assert "<svg" not in text
    assert "No training records" in text


def test_small_images_are_shown_at_a_whole_multiple():
    assert [page.edge(direction(edge=e)) for e in (8, 28, 32, 48, 128)] == [64, 56, 64, 48, 64]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"k": -1}, "`k` .*got -1"),
        ({"accuracy": 97.0}, r"`accuracy` .*\[0, 1\], got 97.0.*None"),
        ({"score": float("nan")}, "`score` .*got nan.*None"),
    ],
)
def test_a_direction_that_cannot_be_shown_is_refused_with_the_way_out(fields, message):
    with pytest.raises(ValueError, match=message):
        direction(**fields)


@pytest.mark.parametrize(
    ("shifts", "message"),
    [
        ((-1, 1, 2), "contain 0, the original"),
        ((1, 0, -1), "increase"),
        ((-float("inf"), 0, 1), "finite"),
    ],
)
def test_shifts_that_cannot_be_columns_are_refused(shifts, message):
    with pytest.raises(ValueError, match=message):
        run(shifts=shifts)


def test_runs_with_other_numbers_of_shifts_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match=r"numbers of shifts, \[3, 5\]"):
        page_of(tmp_path, run(), run(shifts=(-2, -1, 0, 1, 2)))

    assert list(tmp_path.iterdir()) == []


def test_a_folder_for_a_path_is_refused_with_the_file_to_name(tmp_path):
    with pytest.raises(ValueError, match=r"index\.html"):
        write_page(tmp_path, [run()])


def test_a_page_without_directions_or_runs_is_refused(tmp_path):
    with pytest.raises(ValueError, match="`directions` of run 'a' is empty"):
        ShownRun(name="a", dm="tiny", K=2, S=1.0, shifts=[0], directions=[])
    with pytest.raises(ValueError, match="`runs` is empty"):
        write_page(tmp_path / "index.html", [])
