"""Reconstructors: what they see, what they return, what of them learns."""

import pytest
import torch
from hdiscovery.networks.reconstructor import LeNet, ResNet18, build_reconstructor


def build(name, **changes):
    torch.manual_seed(0)
    return build_reconstructor(
        name, **{"channels": 1, "image_size": 32, "num_directions": 6, **changes}
    )


def pair(n=4, channels=1, edge=32):
    return torch.randn(2, n, channels, edge, edge).unbind()


ALL = pytest.mark.parametrize("name", ["lenet", "resnet18", "difference", "deep-difference"])


@ALL
@pytest.mark.parametrize(("channels", "edge"), [(1, 32), (3, 64)])
def test_it_returns_k_logits_and_one_shift_a_sample(name, channels, edge):
    R = build(name, channels=channels, image_size=edge)

    logits, shift = R(*pair(channels=channels, edge=edge))

    assert (logits.shape, shift.shape) == ((4, 6), (4,))


@ALL
def test_original_and_shifted_are_not_interchangeable(name):
    R = build(name).eval()
    x_0, shifted = pair()

    assert not torch.equal(R(x_0, shifted)[1], R(shifted, x_0)[1])


@ALL
def test_every_parameter_has_a_gradient_from_either_head_or_both(name):
    R = build(name)
    logits, shift = R(*pair())

    (torch.nn.functional.cross_entropy(logits, torch.arange(4)) + shift.abs().mean()).backward()

    # A gradient of None would stop distributed training.
    assert [key for key, p in R.named_parameters() if p.grad is None] == []


@ALL
def test_the_shifted_image_gets_a_gradient(name):
    R = build(name)
    x_0, shifted = pair()
    shifted.requires_grad_()

    logits, shift = R(x_0, shifted)
    (logits.square().sum() + shift.square().sum()).backward()

    assert shifted.grad is not None
    assert shifted.grad.flatten(1).any(dim=1).all()


@ALL
def test_in_eval_mode_a_sample_is_judged_without_its_batch(name):
    R = build(name).eval()
    x_0, shifted = pair()

    together, alone = R(x_0, shifted), R(x_0[:1], shifted[:1])

    torch.testing.assert_close(together[0][:1], alone[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(together[1][:1], alone[1], rtol=1e-4, atol=1e-5)


def test_lenet_is_that_of_gan_latent_discovery():
    R = LeNet(3, 10)

    convolutions = [(2 * 3, 6), (6, 16), (16, 120)]
    expected = sum(25 * a * b + b + 2 * b for a, b in convolutions)
    expected += sum((120 * 84 + 84 + 2 * 84) + (84 * out + out) for out in (10, 1))
    assert sum(p.numel() for p in R.parameters()) == expected


def test_lenet_looks_at_32_pixels_and_averages_over_the_places_they_fit():
    R = LeNet(1, 6).eval()
    x_0, shifted = (image.repeat(1, 1, 2, 2) for image in pair(edge=4 * 8))

    logits, _ = R(x_0, shifted)

    # The three convolutions see 32 pixels, every 4: nine places along an edge of 64.
    columns = [
        R.features[:-2](torch.cat([x_0, shifted], 1)[..., i : i + 32, j : j + 32])
        for i in range(0, 33, 4)
        for j in range(0, 33, 4)
    ]
    pooled = torch.stack(columns).mean(0).flatten(1)
    torch.testing.assert_close(logits, R.logits(pooled), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("edge", [16, 28, 31])
def test_lenet_refuses_fewer_than_32_pixels(edge):
    with pytest.raises(ValueError, match=f"32 pixels or more, got \\({edge}, {edge}\\)"):
        LeNet(1, 6)(*pair(edge=edge))


def test_resnet_has_two_heads_and_no_classifier():
    R = ResNet18(3, 10)

    # Torchvision's 11,689,512 without its first convolution and classifier, with ours instead.
    body = 11_689_512 - 64 * 3 * 49 - (512 * 1000 + 1000)
    assert sum(p.numel() for p in R.parameters()) == body + 64 * 6 * 49 + 11 * (512 + 1)


@pytest.mark.parametrize("edge", [8, 16, 28, 32])
def test_difference_works_where_lenet_is_too_large(edge):
    logits, shift = build("difference", image_size=edge)(*pair(edge=edge))

    assert (logits.shape, shift.shape) == ((4, 6), (4,))


def test_an_unknown_reconstructor_says_which_exist():
    with pytest.raises(ValueError, match="lenet, resnet18, difference"):
        build_reconstructor("vgg", channels=1, image_size=32, num_directions=2)


@ALL
def test_dropout_is_before_the_heads_in_training_and_not_in_use(name):
    R, inputs = build(name, dropout=0.5), pair()
    without = build(name)

    R.train()
    assert not torch.equal(R(*inputs)[0], R(*inputs)[0])
    R.eval()
    without.eval()
    without.load_state_dict(R.state_dict())
    assert torch.equal(R(*inputs)[0], without(*inputs)[0])


def test_the_difference_looks_alike_at_all_strengths_and_nothing_stays_nothing():
    R, seen = build("difference").eval(), []
    R.features.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    x_0, change = torch.zeros(3, 1, 32, 32), torch.randn(1, 1, 32, 32)
    shifted = torch.tensor([0.0, 1.0, 3.0])[:, None, None, None] * change

    R(x_0, shifted)

    nothing, weak, strong = seen[0][:, 2:]
    assert torch.equal(seen[0][:, :2], torch.cat([x_0, shifted], 1))
    assert torch.equal(nothing, torch.zeros_like(nothing))
    torch.testing.assert_close(weak, strong, rtol=0.003, atol=0)
    assert weak.std() == pytest.approx(1, abs=0.005)
