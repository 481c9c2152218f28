"""What `mos make` writes."""

import base64
import io
import re

import numpy as np
import pytest
from hdiscovery.mos import make as module
from hdiscovery.mos.study import Study
from PIL import Image


def sheets_of(page):
    codes = re.findall(r'<section class="direction" id="d-(\w+)"', page)
    pictures = re.findall(r'src="data:image/webp;base64,([^"]+)"', page)
    assert len(codes) == len(pictures)
    return dict(zip(codes, pictures, strict=True))


def test_each_rater_has_a_page_of_their_directions_in_their_order(tmp_path, make):
    study = make(tmp_path / "study")

    assert sorted(f.name for f in (tmp_path / "study" / "raters").iterdir()) == [
        "r1.html", "r2.html", "r3.html"]  # fmt: skip
    for rater, own in study.raters.items():
        page = (tmp_path / "study" / "raters" / f"{rater}.html").read_text(encoding="utf-8")
        assert list(sheets_of(page)) == own


def test_a_sheet_shows_the_direction_of_its_code(tmp_path, make):
    study = make(tmp_path / "study", raters=2)
    page = (tmp_path / "study" / "raters" / "r1.html").read_text(encoding="utf-8")

    for code, picture in sheets_of(page).items():
        with Image.open(io.BytesIO(base64.b64decode(picture))) as image:
            pixels = np.array(image.convert("L")).astype(float)
        assert pixels.shape == (2 * 16, 5 * 16)
        left, right = pixels[:, :16].mean(), pixels[:, -16:].mean()
        k = study.codes.index(code)
        assert (right - left) / 127.5 == pytest.approx(0.2 * k * 4, abs=0.01)


def test_directions_have_examples_of_their_own(tmp_path, make):
    study = make(tmp_path / "study", raters=2)
    page = (tmp_path / "study" / "raters" / "r1.html").read_text(encoding="utf-8")

    middles = []
    for picture in sheets_of(page).values():
        with Image.open(io.BytesIO(base64.b64decode(picture))) as image:
            middles.append(np.array(image.convert("L"))[:16, 32:48])
    assert len(middles) == len(study.codes)
    assert not np.array_equal(middles[0], middles[1])


def test_a_raters_page_is_blind_and_needs_no_other_file(tmp_path, make):
    make(tmp_path / "study", run="secret-run")

    for page in (tmp_path / "study" / "raters").iterdir():
        text = page.read_text(encoding="utf-8")
        assert "secret-run" not in text
        assert not re.search(r'(src|href)="(?!data:)', text)
        assert "http://" not in text
        assert "https://" not in text


def test_the_organiser_sees_the_links_and_words_are_escaped(tmp_path, make):
    study = make(tmp_path / "study", run="<b>run</b>")
    text = (tmp_path / "study" / "index.html").read_text(encoding="utf-8")

    assert re.findall(r'href="raters/(\w+)\.html"', text) == list(study.raters)
    assert "<b>run</b>" not in text
    assert "&lt;b&gt;run&lt;/b&gt;" in text
    assert Study.open(tmp_path / "study") == study


def test_the_same_seed_makes_the_same_study_and_another_another(tmp_path, make):
    first, again, other = (make(tmp_path / str(i), seed=i // 2) for i in range(3))

    assert first == again
    assert first.id != other.id
    assert (tmp_path / "0" / "raters" / "r1.html").read_bytes() == (
        tmp_path / "1" / "raters" / "r1.html").read_bytes()  # fmt: skip


def test_a_study_that_exists_is_not_touched(tmp_path, make):
    (tmp_path / "study").mkdir()

    with pytest.raises(FileExistsError, match="exists already"):
        make(tmp_path / "study")

    assert list((tmp_path / "study").iterdir()) == []


def test_a_study_is_written_complete_or_not_at_all(tmp_path, make, monkeypatch):
    def fail(*args, **options):
        raise OSError("no space left")

    monkeypatch.setattr(module, "rater_page", fail)
    with pytest.raises(OSError, match="no space"):
        make(tmp_path / "study")

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"raters": 1}, "`raters` must be at least 2"),
        ({"strengths": 4}, "must be odd"),
        ({"examples": 0}, "`samples` must be at least 1"),
    ],
)
def test_what_makes_no_study_is_refused_before_anything_is_written(
    tmp_path, make, options, message
):
    with pytest.raises(ValueError, match=message):
        make(tmp_path / "study", **options)

    assert list(tmp_path.iterdir()) == []
