"""What the pictures of a direction hold."""

import io
import math

import numpy as np
import pytest
import torch
from hdiscovery.pages.pictures import animation, sheet
from PIL import Image, ImageSequence


def opened(picture):
    return Image.open(io.BytesIO(picture))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_sheet_has_a_row_a_sample_and_a_column_a_shift_pixel_for_pixel(channels):
    pixels = torch.randint(0, 256, (2, 3, channels, 8, 5), dtype=torch.uint8)

    with opened(sheet(pixels / 127.5 - 1)) as image:
        shown = np.array(image.convert("RGB"))

    assert shown.shape == (2 * 8, 3 * 5, 3)
    for sample in range(2):
        for column in range(3):
            part = shown[8 * sample : 8 * sample + 8, 5 * column : 5 * column + 5]
            given = pixels[sample, column].expand(3, -1, -1).permute(1, 2, 0).numpy()
            assert np.array_equal(part, given)


def test_pixels_out_of_range_are_clamped_and_nan_is_grey():
    values = torch.tensor([-math.inf, -3.0, math.nan, 3.0, math.inf])

    with opened(sheet(values.expand(1, 3, 1, 1, 5).to(torch.bfloat16))) as image:
        assert np.array(image.convert("L"))[0, :5].tolist() == [0, 0, 128, 255, 255]


def test_large_images_are_kept_as_photographs_are():
    noise = torch.rand(1, 3, 3, 128, 128, generator=torch.Generator().manual_seed(0)) * 2 - 1

    picture = sheet(noise)

    assert len(picture) < noise.numel() / 2
    with opened(picture) as image:
        assert image.size == (3 * 128, 128)


def test_an_animation_goes_from_end_to_end_and_back_without_a_stop():
    levels = torch.tensor([-1.0, 0.0, 1.0]).view(1, 3, 1, 1, 1).expand(2, 3, 1, 32, 32)

    with opened(animation(levels)) as image:
        frames = [np.array(f.convert("L"))[10, 10] for f in ImageSequence.Iterator(image)]
        assert image.info["loop"] == 0
        assert image.size == (2 * 96 + 2, 96)

    assert np.allclose(frames, [0, 128, 255, 128], atol=3)


def test_the_samples_of_an_animation_stand_in_rows_of_six():
    with opened(animation(torch.zeros(7, 3, 1, 32, 32))) as image:
        assert image.size == (6 * 96 + 5 * 2, 2 * 96 + 2)


@pytest.mark.parametrize(
    ("strips", "message"),
    [
        (torch.zeros(3, 1, 8, 8), r"got \[3, 1, 8, 8\].*strips\[None\]"),
        (torch.zeros(1, 3, 2, 8, 8), "C = 1 or 3"),
        (torch.zeros(0, 3, 1, 8, 8), r"got \[0, 3, 1, 8, 8\]"),
        (torch.zeros(1, 3, 1, 8, 8).byte(), "torch.uint8.*127.5"),
        (torch.zeros(1, 1, 1, 1, 1).expand(1, 3, 1, 1, 6000), "larger than WebP's"),
    ],
)
def test_what_cannot_be_a_sheet_is_refused_with_the_way_out(strips, message):
    with pytest.raises(ValueError, match=message):
        sheet(strips)
