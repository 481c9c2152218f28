"""The gallery as its user meets it, in Chromium."""

import json
import re

import pytest
import torch
from hdiscovery.pages import ShownDirection, ShownRun, page, write_page

EVIL = "<script>alert(1)</script>\"'</script><img src=x onerror=alert(2)>"
CENTRE = """canvas => [...canvas.getContext("2d").getImageData(
    Math.floor(canvas.width / 2), Math.floor(canvas.height / 2), 1, 1).data]"""


def direction(k, **known):
    """Two samples at five shifts; each image is one level of grey that tells which one it is."""
    levels = torch.tensor([[0, 20, 40, 60, 80], [120, 140, 160, 180, 200]]) + 4 * k
    strips = (levels / 127.5 - 1).view(2, 5, 1, 1, 1).expand(2, 5, 1, 16, 16)
    return ShownDirection.of(k, strips, **known)


def run(name="a", *, S=2.0, **known):
    directions = [
        direction(0, accuracy=0.9, score=0.3, measures={"effect": 0.1}),
        direction(1, accuracy=0.2, score=0.8, measures={"effect": 0.2}, label="thickness"),
        direction(2, accuracy=0.5, score=0.5, measures={"effect": 0.9}, twin_of=(1, 1)),
    ]
    shifts = [-S, -S / 2, 0, S / 2, S]
    given = {"dm": "tiny", "K": 3, "S": S, "shifts": shifts, "directions": directions, **known}
    return ShownRun(name=name, **given)


def written(tmp_path, *runs):
    return write_page(tmp_path / "index.html", runs or [run()])


def shown(page):
    cards = page.locator(".card:visible")
    return [int(card.get_attribute("data-k")) for card in cards.all()]


def set_range(page, name, value):
    page.locator(name).evaluate(
        "(e, v) => { e.value = v; e.dispatchEvent(new Event('input', {bubbles: true})); }", value
    )


def grey(page, k, index=0):
    canvas = page.locator(f"#r0-k{k} .cells canvas").nth(index)
    return canvas.evaluate(CENTRE)[0]


def test_the_slider_shows_every_sample_at_its_s(tmp_path, open_page):
    page, _ = open_page(written(tmp_path))

    set_range(page, "#s", 4)

    assert page.locator("#s-value").inner_text() == "+2"
    assert [grey(page, 1, sample) for sample in (0, 1)] == [84, 204]
    assert page.locator("#r0-k1 .sheet").is_hidden()


def test_arrow_keys_move_s_and_stop_at_the_ends(tmp_path, open_page):
    page, _ = open_page(written(tmp_path))

    for _ in range(7):
        page.keyboard.press("ArrowLeft")
    assert page.locator("#s-value").inner_text() == "−2"
    assert grey(page, 0) == 0

    page.keyboard.press("ArrowRight")
    assert grey(page, 0) == 20


def test_by_sample_every_direction_shows_the_chosen_one(tmp_path, open_page):
    page, _ = open_page(written(tmp_path))

    page.get_by_text("by sample").click()
    page.get_by_label("sample 2").check()
    row = page.locator("#r0-k2 .strips canvas")
    assert row.evaluate("c => [c.width, c.height]") == [5 * 16, 16]
    assert row.evaluate(CENTRE)[0] == 168

    page.get_by_text("one s", exact=True).click()
    assert page.locator("#r0-k2 .cells canvas").count() == 1
    assert grey(page, 2) == 168


def test_directions_can_be_sorted_found_and_left_out(tmp_path, open_page):
    page, _ = open_page(written(tmp_path))
    assert shown(page) == [1, 2, 0]

    page.select_option("#sort", "accuracy")
    assert shown(page) == [0, 2, 1]
    page.select_option("#sort", "effect")
    assert shown(page) == [2, 1, 0]
    page.select_option("#sort", "k")
    assert shown(page) == [0, 1, 2]

    set_range(page, "#least", 0.5)
    assert shown(page) == [1, 2]
    page.check("#twins")
    assert shown(page) == [1]
    assert page.locator("#count").inner_text() == "1 of 3 shown"
    set_range(page, "#least", 0)
    page.fill("#find", "thick")
    assert shown(page) == [1]
    page.fill("#find", "nothing")
    assert page.get_by_text("No direction matches").is_visible()


def test_labels_are_saved_as_the_file_that_the_next_page_reads(tmp_path, open_page):
    page, dialogs = open_page(written(tmp_path))

    page.locator("#r0-k0 .name input").fill(f"  {EVIL} ")
    with page.expect_download() as download:
        page.get_by_role("button", name="Save labels").click()

    assert download.value.suggested_filename == "labels.json"
    saved = json.loads(download.value.path().read_text())
    assert saved == {"0": EVIL, "1": "thickness"}
    assert dialogs == []


def test_a_label_that_was_not_saved_is_there_when_the_page_opens_again(tmp_path, open_page):
    path = written(tmp_path)
    page, _ = open_page(path)
    page.locator("#r0-k2 .name input").fill("slant")

    page.reload()

    assert page.locator("#r0-k2 .name input").input_value() == "slant"
    assert "1 changed" in page.locator(".state").inner_text()


def test_keys_typed_into_a_label_are_letters(tmp_path, open_page):
    page, _ = open_page(written(tmp_path))

    page.locator("#r0-k0 .name input").press_sequentially("vo v")

    assert page.locator("#r0-k0 .name input").input_value() == "vo v"
    assert page.locator('input[value="direction"]').is_checked()


def test_words_of_the_user_are_shown_as_words(tmp_path, open_page):
    evil = run(EVIL, dm=EVIL, directions=[direction(0, label=EVIL)], facts={EVIL: EVIL},
               alarms=[EVIL])  # fmt: skip
    page, dialogs = open_page(written(tmp_path, evil))
    page.wait_for_timeout(100)

    assert dialogs == []
    assert page.locator("h2").first.inner_text() == EVIL
    assert page.locator(".alarm").inner_text() == EVIL
    assert page.locator(".name input").input_value() == EVIL
    assert page.locator("img[src=x]").count() == 0


def test_play_moves_s_until_it_is_paused(tmp_path, open_page):
    page, _ = open_page(written(tmp_path))

    page.get_by_role("button", name="Play").click()
    page.locator("#s-value", has_text="+2").wait_for()
    page.locator("#s-value", has_text="−2").wait_for()
    page.get_by_role("button", name="Pause").click()
    before = page.locator("#s-value").inner_text()
    page.wait_for_timeout(400)
    assert page.locator("#s-value").inner_text() == before


def test_an_animation_moves_and_can_be_saved(tmp_path, open_page):
    page, _ = open_page(written(tmp_path))

    page.locator("#r0-k1 summary").click()
    image = page.locator("#r0-k1 .animation img")
    image.evaluate("image => image.decode()")
    assert image.evaluate("image => image.naturalWidth") == 2 * 96 + 2
    with page.expect_download() as download:
        page.locator("#r0-k1").get_by_text("save as WebP").click()

    assert download.value.suggested_filename == "direction-1.webp"
    assert b"ANIM" in download.value.path().read_bytes()[:64]


def test_runs_stand_side_by_side_under_one_slider(tmp_path, open_page):
    page, _ = open_page(written(tmp_path, run("a"), run("b", S=4.0)), viewport={
        "width": 1600, "height": 900})  # fmt: skip

    boxes = [page.locator(".run").nth(i).bounding_box() for i in (0, 1)]
    assert boxes[0]["y"] == boxes[1]["y"]
    assert boxes[0]["x"] + boxes[0]["width"] <= boxes[1]["x"]
    set_range(page, "#s", 3)
    assert page.locator("#s-value").inner_text() == "+1 / +2"
    assert page.get_by_role("button", name="Save labels").count() == 2


def test_pictures_beside_the_page_are_loaded_and_cut(tmp_path, open_page, monkeypatch):
    monkeypatch.setattr(page, "INSIDE_UP_TO", 100)
    opened, _ = open_page(written(tmp_path))

    opened.keyboard.press("o")
    opened.locator("#r0-k0 .cells canvas").first.wait_for()

    assert (tmp_path / "index_files").is_dir()
    assert opened.locator("#r0-k0 .cells canvas").first.evaluate("c => c.width") == 16


def test_without_scripts_the_strips_are_there_best_first_and_labelled(tmp_path, open_page):
    page, _ = open_page(written(tmp_path), java_script_enabled=False)

    assert shown(page) == [1, 2, 0]
    assert page.locator(".sheet:visible").count() == 3
    assert page.get_by_text("thickness").is_visible()
    assert page.locator("#tools").is_hidden()
    assert page.locator(".name input").first.is_hidden()


def test_a_print_has_labels_and_strips_and_no_tools(tmp_path, open_page):
    page, _ = open_page(written(tmp_path))
    page.locator("#r0-k2 .name input").fill("slant")

    page.emulate_media(media="print")

    assert page.locator("#r0-k2 .name input").is_visible()
    assert page.locator("#r0-k0 .name input").is_hidden()
    assert page.locator(".sheet:visible").count() == 3
    assert page.locator("#tools .now").is_hidden()


@pytest.mark.parametrize("width", [360, 1366])
def test_nothing_is_wider_than_the_window(tmp_path, open_page, width):
    page, _ = open_page(written(tmp_path), viewport={"width": width, "height": 800})

    for key in ("", "o", "v", "o"):
        if key:
            page.keyboard.press(key)
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_small_images_stay_crisp_and_photographs_do_not(tmp_path, open_page):
    photograph = ShownDirection.of(1, torch.zeros(1, 5, 3, 96, 96))
    page, _ = open_page(written(tmp_path, run(directions=[direction(0), photograph])))

    rendering = [
        page.locator(f"#r0-k{k} .sheet").evaluate("e => getComputedStyle(e).imageRendering")
        for k in (0, 1)
    ]
    assert rendering == ["pixelated", "auto"]


def test_the_dark_page_has_light_words(tmp_path, open_page):
    page, _ = open_page(written(tmp_path), color_scheme="dark")

    colour = page.evaluate("getComputedStyle(document.body).color")
    assert min(map(int, re.findall(r"\d+", colour))) > 200
