"""Answers ranked by the noise-prediction error, in a network that was trained for a few seconds."""

import math

import pytest
import torch
import torch.nn.functional as F
from hdiscovery.dm.adm_answers import Answers
from hdiscovery.dm.adm_config import UNetConfig
from hdiscovery.dm.adm_unet import ADMUNet
from hdiscovery.dm.candidates import Ranked, attentions, computed, rank, ranked
from hdiscovery.dm.inferred import infer
from hdiscovery.dm.noise_error import LEVELS, Probe, noise_error, trivial_error

from chainograd.samplers import NoiseSchedule

CONFIG = UNetConfig(
    image_size=8, in_channels=1, num_channels=32, channel_mult=(1,), num_res_blocks=1,
    num_heads=4, attention_order="new", resblock_updown=False,
)  # fmt: skip
TRUE = Answers(image_size=8, num_heads=4, attention_order="new", schedule="cosine")


def waves(n, seed):
    """Plane waves of one length and any direction and phase, ``[n, 1, 8, 8]``."""
    g = torch.Generator().manual_seed(seed)
    phase, angle = 2 * math.pi * torch.rand(2, n, 1, 1, 1, generator=g)
    Y, X = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    return torch.cos(1.5 * (X * angle.cos() + Y * angle.sin()) + phase)


@pytest.fixture(scope="module")
def state():
    torch.manual_seed(0)
    unet, schedule = ADMUNet(CONFIG), NoiseSchedule.cosine()
    optimizer = torch.optim.Adam(unet.parameters(), 5e-3)
    for step in range(80):
        x_0, t = waves(16, step), torch.randint(1000, (16,))
        noise = torch.randn_like(x_0)
        loss = F.mse_loss(unet(schedule.noise(x_0, t, noise), t), noise)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return unet.state_dict()


@pytest.fixture(scope="module")
def ranking(state):
    return rank(state, infer(state), Answers(image_size=8), Probe.of_images(waves(64, -1)))


def test_the_true_answers_fit_best_on_images(ranking):
    assert ranking[0].answers == TRUE
    assert ranking[0].error < 0.5 * ranking[0].trivial


def test_the_other_order_and_the_other_schedule_are_clearly_worse(ranking):
    by = {(r.answers.num_heads, r.answers.attention_order, r.answers.schedule): r for r in ranking}
    others = [r for key, r in by.items() if key[1] == "legacy" or key[2] == "linear"]

    assert by[4, "legacy", "cosine"] in others
    assert all(ranking[0].clearly_better_than(other) for other in others), ranking
    assert not ranking[0].clearly_better_than(ranking[0])


def test_a_wrong_answer_is_among_those_that_it_is_compared_with(state):
    wrong = TRUE.but(attention_order="legacy", schedule="linear")
    inferred = infer(state)

    found = rank(state, inferred, wrong, Probe.of_images(waves(4, -1)))

    keys = [computed(inferred, r.answers) for r in found]
    assert computed(inferred, wrong) in keys
    assert computed(inferred, TRUE) in keys
    assert len(keys) == len(set(keys))


def test_without_images_heads_and_order_are_compared_on_noise_and_schedules_are_not(state):
    found = rank(state, infer(state), Answers(image_size=8), Probe.of_noise((1, 8, 8)))

    assert {r.answers.schedule for r in found} == {"linear"}
    errors = {(r.answers.num_heads, r.answers.attention_order): r.error for r in found}
    assert errors[4, "new"] < errors[4, "legacy"]


def test_every_way_of_heads_that_divides_the_widths_is_looked_at_once(state):
    inferred = infer(state)
    found = list(attentions(inferred, TRUE))

    heads = {candidate.heads(inferred) for candidate in found}
    assert heads == {(1,), (2,), (4,), (8,), (16,)}


def test_the_error_is_that_of_the_noise_and_the_trivial_one_that_of_the_best_multiple():
    schedule = NoiseSchedule.linear()
    few, probe = Probe.of_images(waves(8, 1)), Probe.of_images(waves(64, 1))
    knowing = ADMUNet(CONFIG).eval()
    knowing.decode = lambda h, encoded: few.noise + 0.5
    silent = ADMUNet(CONFIG).eval()  # its last layer is zero

    assert noise_error(knowing, schedule, few).tolist() == pytest.approx([0.25] * 8)
    assert noise_error(silent, schedule, probe).mean() == pytest.approx(1, abs=0.1)
    # The variance of these images is 1/2: a / 2 of x_t's a / 2 + 1 - a is not noise.
    expected = sum(a / 2 / (a / 2 + 1 - a) for a in LEVELS) / len(LEVELS)
    assert trivial_error(probe) == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("schedule", [NoiseSchedule.linear(), NoiseSchedule.cosine()])
def test_samples_have_the_levels_of_noise_that_the_schedule_has_at_their_times(schedule):
    probe = Probe.of_images(waves(4, 1))
    for x, t in zip(probe.inputs(), probe.times(schedule), strict=True):
        times = torch.full((4,), t)
        expected = schedule.noise(probe.images, times, probe.noise)
        torch.testing.assert_close(x, expected, atol=0.01, rtol=0)


def test_the_probe_is_the_same_each_time_and_classes_are_given_where_they_are_needed():
    assert torch.equal(Probe.of_noise((1, 8, 8)).noise, Probe.of_noise((1, 8, 8)).noise)
    config = UNetConfig(image_size=8, num_channels=32, channel_mult=(1, 1), num_res_blocks=1,
                        num_classes=3)  # fmt: skip
    state = ADMUNet(config).state_dict()

    found = ranked(state, infer(state), TRUE, Probe.of_noise((3, 8, 8)))

    assert found.errors.shape == (8,)


@pytest.mark.parametrize(
    ("mine", "others", "clear"),
    [
        ([0.1, 0.2, 0.3, 0.4], [0.2, 0.3, 0.4, 0.5], True),
        ([0.1, 0.2, 0.3, 0.4], [0.1001, 0.2001, 0.3001, 0.4001], False),
        ([0.1, 0.2, 0.3, 0.4], [0.5, 0.1, 0.2, 0.4], False),
        ([0.1, 0.2, 0.3, 0.4], [0.0, 0.1, 0.2, 0.3], False),
    ],
    ids=["by far", "by next to nothing", "by chance", "not at all"],
)
def test_clearly_better_is_more_than_chance_and_more_than_nothing(mine, others, clear):
    a, b = (Ranked(TRUE, torch.tensor(errors), 1.0) for errors in (mine, others))

    assert a.clearly_better_than(b) == clear
