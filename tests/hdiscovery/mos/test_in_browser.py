"""A rater at work, in Chromium."""

import json

import pytest
from hdiscovery.mos.answers import read_answers
from hdiscovery.mos.score import score


@pytest.fixture
def study(tmp_path, make):
    return make(tmp_path / "study", raters=2)


def rater_page(tmp_path, rater="r1"):
    return tmp_path / "study" / "raters" / f"{rater}.html"


def keys(page, text):
    names = {">": "ArrowRight", "<": "ArrowLeft", "v": "ArrowDown", "^": "ArrowUp"}
    for key in text:
        page.keyboard.press(names.get(key, key))


def saved(page):
    with page.expect_download() as download:
        page.locator("header .save").click()
    return download.value


def test_a_study_marked_by_keyboard_alone_can_be_scored(tmp_path, study, open_page):
    paths = []
    for rater, marks in (("r1", ">111>110>011"), ("r2", ">111>111>111")):
        page, _ = open_page(rater_page(tmp_path, rater))
        keys(page, f"{marks}>")
        assert page.get_by_text("All sheets are answered").is_visible()
        download = saved(page)
        assert download.suggested_filename == f"answers-{study.id}-{rater}.json"
        paths.append(tmp_path / download.suggested_filename)
        download.save_as(paths[-1])

    answers = read_answers(study, paths)
    result = score(study, answers)

    assert [a.code for a in answers[:3]] == study.raters["r1"]
    assert [a.mark for a in answers] == [1, 0, 0, 1, 1, 1]
    assert [a.interpretable for a in answers[:3]] == [True, False, True]
    assert result.mos == pytest.approx(4 / 6)
    assert result.missing == []


def test_answers_are_there_when_the_page_is_opened_again(tmp_path, study, open_page):
    page, _ = open_page(rater_page(tmp_path))
    keys(page, ">111>10")

    again, _ = open_page(rater_page(tmp_path), context=page.context)
    page.close()

    assert "sheet 2 of 3 · 1 of 3 answered" in again.locator("#progress").inner_text()
    keys(again, "1")
    answers = json.loads(saved(again).path().read_text())["answers"]
    assert [a["direction"] for a in answers] == study.raters["r1"][:2]
    assert [answers[1][name] for name in ("smooth", "consistent", "interpretable")] == [
        True, False, True]  # fmt: skip


def test_one_goes_back_and_forth_and_changes_an_answer(tmp_path, study, open_page):
    page, _ = open_page(rater_page(tmp_path))
    first, second, _ = study.raters["r1"]

    keys(page, ">111>")
    assert page.locator(f"#d-{second}").is_visible()
    keys(page, "<")
    assert page.locator(f"#d-{first}").is_visible()
    assert "counts 1" in page.locator(f"#d-{first} .mark").inner_text()
    keys(page, "v0")  # it stands at the first question; down to the second

    assert "counts 0" in page.locator(f"#d-{first} .mark").inner_text()
    (only,) = json.loads(saved(page).path().read_text())["answers"]
    assert (only["smooth"], only["consistent"], only["interpretable"]) == (True, False, True)


def test_a_mouse_does_as_well(tmp_path, study, open_page):
    page, _ = open_page(rater_page(tmp_path))

    page.get_by_role("button", name="Begin").click()
    section = page.locator(f"#d-{study.raters['r1'][0]}")
    for choice in ("Yes", "No", "Yes"):
        condition = section.locator("fieldset.active")
        condition.get_by_text(choice).click()
    section.get_by_role("button", name="Next").click()

    assert "sheet 2 of 3 · 1 of 3 answered" in page.locator("#progress").inner_text()
    assert page.locator("#dots .done").count() == 1


def test_sheets_without_an_answer_are_counted_at_the_end(tmp_path, study, open_page):
    page, _ = open_page(rater_page(tmp_path))

    keys(page, ">>111>11>")

    assert page.get_by_text("2 of 3 sheets have no answer yet").is_visible()


def test_the_time_spent_on_a_sheet_is_in_the_file(tmp_path, study, open_page):
    page, _ = open_page(rater_page(tmp_path))

    keys(page, ">11")
    page.wait_for_timeout(300)
    keys(page, "1>")
    page.wait_for_timeout(300)

    (only,) = json.loads(saved(page).path().read_text())["answers"]
    assert 0.3 <= only["seconds"] < 10


def test_the_organisers_links_open_the_raters_pages(tmp_path, study, open_page):
    page, dialogs = open_page(tmp_path / "study" / "index.html")

    assert page.get_by_text("<b>run</b>").is_visible()
    page.get_by_role("link", name="raters/r2.html").click()
    assert page.get_by_text("rater r2").is_visible()
    assert dialogs == []


def test_without_scripts_the_page_asks_for_them(tmp_path, study, open_page):
    page, _ = open_page(rater_page(tmp_path), java_script_enabled=False)

    assert page.get_by_text("Please turn it on").is_visible()


@pytest.mark.parametrize("width", [360, 1366])
def test_a_sheet_and_its_questions_are_not_wider_than_the_window(tmp_path, study, open_page, width):
    page, _ = open_page(rater_page(tmp_path), viewport={"width": width, "height": 768})

    keys(page, ">1")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
