"""Photos that a model takes."""

import pytest
import torch
from hdiscovery.data.images import listed, read_photo, save_image, to_image
from PIL import Image


def test_an_image_of_the_model_s_own_kind_is_taken_as_it_is_and_written_back(tmp_path):
    x = torch.randint(256, (3, 6, 4)) / 127.5 - 1
    save_image(x, tmp_path / "a.png")

    photo = read_photo(tmp_path / "a.png", (3, 6, 4))

    torch.testing.assert_close(photo.x, x)
    assert (photo.name, photo.changes) == ("a", "")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_what_was_done_to_an_image_is_said(tmp_path):
    colour = Image.new("RGB", (12, 4), "black")
    colour.paste("red", (2, 0, 10, 4))  # the middle, and what the filter reaches
    colour.save(tmp_path / "a.png")

    photo = read_photo(tmp_path / "a.png", (1, 2, 2))

    assert photo.changes == "made grey, cut around the centre, 12 x 4 resized to 2 x 2"
    assert photo.x.tolist() == [[[pytest.approx(76 / 127.5 - 1)] * 2] * 2]


def test_a_grey_image_becomes_rgb_and_transparency_white(tmp_path):
    Image.new("LA", (2, 2), (0, 0)).save(tmp_path / "a.png")

    photo = read_photo(tmp_path / "a.png", (3, 2, 2))

    assert (photo.x == 1).all()
    assert photo.x.shape == (3, 2, 2)
    assert "laid on white" in photo.changes


def test_sixteen_bits_are_scaled_and_not_cut_off(tmp_path):
    Image.new("I;16", (2, 2), 0x8000).save(tmp_path / "a.png")

    assert read_photo(tmp_path / "a.png", (1, 2, 2)).x.abs().max() < 0.01


def test_a_photo_is_turned_as_its_camera_says(tmp_path):
    image = Image.new("L", (4, 2))
    image.paste(255, (0, 0, 2, 2))
    exif = image.getexif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    image.save(tmp_path / "a.png", exif=exif)

    x = read_photo(tmp_path / "a.png", (1, 4, 2)).x

    assert (x[0, :2] == 1).all()
    assert (x[0, 2:] == -1).all()


def test_what_lies_outside_the_range_is_clamped():
    assert to_image(torch.tensor([[[-3.0, 0, 7]]])).tobytes() == bytes([0, 128, 255])


def test_folders_are_listed_in_order_and_files_taken_as_they_are(tmp_path):
    for name in ("b.png", "a.JPG", "notes.txt"):
        (tmp_path / name).touch()

    found = listed([tmp_path, tmp_path / "notes.txt"])

    assert [path.name for path in found] == ["a.JPG", "b.png", "notes.txt"]
    (tmp_path / "b.safetensors").touch()
    assert [path.name for path in listed([tmp_path])] == ["b.safetensors"]


def test_paths_that_cannot_be_edited_are_refused(tmp_path):
    (tmp_path / "a.png").write_text("no image")
    (tmp_path / "a.jpg").touch()
    (tmp_path / "empty").mkdir()

    with pytest.raises(ValueError, match="same name"):
        listed([tmp_path])
    with pytest.raises(FileNotFoundError, match="neither a file nor a folder"):
        listed([tmp_path / "b.png"])
    with pytest.raises(FileNotFoundError, match=r"holds no .png"):
        listed([tmp_path / "empty"])
    with pytest.raises(ValueError, match="cannot be read as an image"):
        read_photo(tmp_path / "a.png", (1, 2, 2))
    with pytest.raises(ValueError, match="have 4 channels"):
        read_photo(tmp_path / "a.png", (4, 2, 2))
