"""Architectures told from state dicts: all that is there, nothing that is not."""

from dataclasses import replace

import pytest
import torch
from hdiscovery.dm.adm_answers import Answers
from hdiscovery.dm.adm_config import TABLE_3, UNetConfig
from hdiscovery.dm.adm_unet import ADMUNet
from hdiscovery.dm.inferred import infer

MULT_256 = (1, 1, 2, 2, 4, 4)
TINY = UNetConfig(image_size=8, num_channels=32, channel_mult=(1, 2), num_res_blocks=1)
PUBLISHED = {
    **TABLE_3,
    "ADM ImageNet 256": UNetConfig(
        image_size=256, num_channels=256, channel_mult=MULT_256, num_head_channels=64,
        attention_resolutions=(32, 16, 8), learn_sigma=True, num_classes=1000,
    ),
    "ADM LSUN 256": UNetConfig(
        image_size=256, num_channels=256, channel_mult=MULT_256, num_head_channels=64,
        attention_resolutions=(32, 16, 8), learn_sigma=True,
    ),
    "ADM ImageNet 512": UNetConfig(
        image_size=512, num_channels=256, channel_mult=(0.5, 1, 1, 2, 2, 4, 4),
        num_head_channels=64, attention_resolutions=(32, 16, 8), learn_sigma=True,
    ),
    "ADM ImageNet 64": UNetConfig(
        image_size=64, num_channels=192, channel_mult=(1, 2, 3, 4), num_res_blocks=3,
        num_head_channels=64, attention_resolutions=(32, 16, 8), learn_sigma=True,
        attention_order="new", num_classes=1000,
    ),
    "P2, ILVR FFHQ 256": UNetConfig(
        image_size=256, channel_mult=MULT_256, num_head_channels=64, num_res_blocks=1,
        attention_resolutions=(16,), learn_sigma=True,
    ),
    "convolutions": replace(TINY, resblock_updown=False, attention_resolutions=(8, 4)),
    "added time": replace(TINY, use_scale_shift_norm=False, in_channels=4),
    "one level": replace(TINY, channel_mult=(1,), num_res_blocks=3, attention_resolutions=(8,)),
    "thirds": replace(TINY, num_channels=96, channel_mult=(1, 5 / 3), num_heads=1),
}  # fmt: skip


def on_paper(config):
    with torch.device("meta"):
        return ADMUNet(config).state_dict()


def known_of(config):
    """The answers that a config amounts to."""
    return Answers(
        image_size=config.image_size,
        num_heads=None if config.num_head_channels else config.num_heads,
        num_head_channels=config.num_head_channels,
        attention_order=config.attention_order,
        schedule="linear",
        dropout=config.dropout,
    )


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_an_architecture_comes_back_from_its_state_dict_and_the_answers(name):
    config = PUBLISHED[name]
    state = on_paper(config)

    found = known_of(config).config(infer(state))

    assert replace(found, channel_mult=config.channel_mult) == config
    assert found.channel_mult == pytest.approx(config.channel_mult)
    again = on_paper(found)
    assert {k: v.shape for k, v in again.items()} == {k: v.shape for k, v in state.items()}
    assert infer(state).parameters == sum(v.numel() for v in state.values())


def test_heads_the_order_and_the_size_leave_no_trace():
    one = on_paper(replace(TINY, attention_resolutions=(4,), num_heads=1, attention_order="new"))
    other = on_paper(replace(TINY, image_size=16, attention_resolutions=(8,), num_heads=4))

    assert infer(one) == infer(other)


@pytest.mark.parametrize(
    ("answers", "asked"),
    [
        ({}, ["--image-size", "--heads", "--attention-order", "--schedule"]),
        ({"num_heads": 4}, ["--image-size", "--attention-order", "--schedule"]),
        ({"num_heads": 1}, ["--image-size", "--schedule"]),
        ({"num_head_channels": 64, "image_size": 8}, ["--schedule"]),
        ({"attention_order": "new", "schedule": "cosine"}, ["--image-size", "--heads"]),
    ],
)
def test_what_is_not_known_is_asked_and_nothing_else(answers, asked):
    # One attended width of 64: with 64 channels a head there is one head, and no order.
    questions = Answers(**answers).questions(infer(on_paper(TINY)))

    assert [q.option.split()[0] for q in questions] == asked
    assert all(option in questions[j].option for j, option in enumerate(asked))


def test_answers_go_round_through_the_command_lines_words():
    answers = Answers(image_size=8, num_heads=2, attention_order="new", num_train_steps=50)

    assert answers.options() == "--image-size 8 --heads 2 --attention-order new --train-steps 50"


def test_answers_that_do_not_go_with_each_other_or_the_network_are_refused():
    inferred = infer(on_paper(TINY))
    whole = known_of(TINY)

    with pytest.raises(ValueError, match=r"--heads 2.*--head-channels 32"):
        whole.but(num_heads=2, num_head_channels=32)
    with pytest.raises(ValueError, match=r"image_size.*at least 1, got 0"):
        whole.but(image_size=0)
    with pytest.raises(ValueError, match="cannot be halved 1 times"):
        whole.but(image_size=9).config(inferred)
    with pytest.raises(ValueError, match="heads must divide every width"):
        whole.but(num_heads=3).config(inferred)
    with pytest.raises(ValueError, match="still to be given: `--image-size PIXELS`"):
        whole.but(image_size=None).config(inferred)


@pytest.mark.parametrize(
    ("mend", "message"),
    [
        (lambda s: {}, "`input_blocks.0.0.weight` is not among its 0 tensors"),
        (lambda s: {**s, "out.2.weight": torch.zeros(5, 32, 3, 3)}, "5 output channels .* of 3"),
        (lambda s: {k: v for k, v in s.items() if "output" not in k}, "no `output_blocks.0`"),
        # conv_resample=False: the resolution changes without weights
        (lambda s: {k: v for k, v in s.items() if ".conv." not in k}, "input_blocks.*not among"),
        (
            lambda s: {**s, "output_blocks.0.2.conv.weight": torch.zeros(1)},
            r"the blocks \[0, 1\] double the resolution",
        ),
    ],
)  # fmt: skip
def test_what_is_no_adm_unet_is_refused_by_the_tensor(mend, message):
    state = on_paper(replace(TINY, resblock_updown=False))

    with pytest.raises(ValueError, match=f"not an ADM UNet's: .*{message}"):
        infer(mend(state))
