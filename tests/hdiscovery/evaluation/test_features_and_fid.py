"""Feature nets say what they are; FID is 0 for the same images and known for others."""

import pytest
import torch
import torch.nn.functional as F
from hdiscovery.data.real import real_images
from hdiscovery.directions.pairs import pairs
from hdiscovery.evaluation.digits import digit_classifier, digit_classifier_of
from hdiscovery.evaluation.feature_maps import DigitMaps, UNetMaps
from hdiscovery.evaluation.features import (
    FeatureNet,
    feature_net,
    perceptual_distance,
    weights_hash,
)
from hdiscovery.evaluation.fid import distance_to, measure_fid
from torch import nn


class Quarters(nn.Module):
    """Describes an image by the means of its four quarters."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return self.gain * F.avg_pool2d(x, 4).flatten(1)


def test_the_hash_is_that_of_the_weights():
    a, b = nn.Linear(3, 2), nn.Linear(3, 2)
    b.load_state_dict(a.state_dict())
    same = weights_hash(a) == weights_hash(b)
    with torch.no_grad():
        b.bias[1] += 1e-6

    assert same
    assert weights_hash(a) != weights_hash(b)


def test_a_net_takes_images_within_their_range_and_stays_in_eval_mode():
    net = FeatureNet("quarters", Quarters(), (1, 8, 8)).train()
    x = torch.randn(5, 1, 8, 8) * 3

    assert not net.training
    assert net.num_features == 4
    assert torch.equal(net(x), net(x.clamp(-1, 1)))
    assert net(x).shape == (5, 4)


def test_the_unet_describes_the_mean_of_x_t_and_ends_with_h(networks):
    dm = networks.dm
    x = torch.rand(2, 1, 8, 8) * 2 - 1

    maps = UNetMaps(dm)(x)

    encoded = dm.unet.encode(dm.schedule.alpha_bar(100) ** 0.5 * x, torch.tensor([100, 100]))
    assert torch.equal(maps[-1], dm.unet.middle(encoded))
    assert len(maps) == len(encoded.skips) + 1
    assert feature_net("unet", dm)(x).shape == (2, 32)


def test_the_maps_of_a_classifier_are_those_before_its_verdict():
    classifier = digit_classifier(16).eval()

    maps = DigitMaps(classifier)(torch.rand(2, 1, 16, 16))

    assert [tuple(m.shape[1:]) for m in maps] == [(16, 8, 8), (32, 4, 4), (64, 2, 2)]


def test_the_perceptual_distance_is_0_for_the_same_and_grows_with_a_change(networks):
    net = feature_net("unet", networks.dm)
    x, noise = torch.rand(3, 1, 8, 8) - 0.5, torch.randn(3, 1, 8, 8)

    near, far = (perceptual_distance(net, x, x + c * noise) for c in (0.05, 0.4))

    assert perceptual_distance(net, x, x).abs().max() == 0
    assert (near > 0).all()
    assert (far > near).all()


def test_a_classifier_is_trained_once_and_kept_with_its_accuracy(tmp_path, monkeypatch):
    x, y = torch.randn(400, 1, 8, 8), torch.arange(400) % 10
    asked = []

    def mnist(data, *, train=True, image_size):
        asked.append(train)
        return x + y[:, None, None, None] / 3, y

    monkeypatch.setattr("hdiscovery.evaluation.digits.load_mnist", mnist)
    state = torch.get_rng_state()

    first, accuracy = digit_classifier_of((1, 8, 8), tmp_path)
    again, same = digit_classifier_of((1, 8, 8), tmp_path)

    assert torch.equal(torch.get_rng_state(), state)
    assert asked == [True, False]
    assert accuracy == same
    assert weights_hash(first) == weights_hash(again)
    with torch.no_grad():
        right = (first(mnist(tmp_path, image_size=8)[0]).argmax(1) == y).float().mean().item()
    assert accuracy == pytest.approx(right)
    with pytest.raises(ValueError, match="does not hold a classifier for digits of 16 pixels"):
        digit_classifier_of((1, 16, 16), None, tmp_path / "digits-8.safetensors")


@pytest.mark.parametrize("name", ["inception", "net.pt", "digits"])
def test_a_net_that_is_not_there_says_how_to_get_it(networks, name, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    ways = {"inception": "let torchvision download it", "net.pt": "unet, digits, inception",
            "digits": "--data DIR"}  # fmt: skip

    with pytest.raises(FileNotFoundError, match=ways[name]):
        feature_net(name, networks.dm)


def test_a_net_that_cannot_look_at_the_images_is_refused_by_name(networks):
    with pytest.raises(ValueError, match="square grey images"):
        digit_classifier_of((3, 8, 8), None)


def test_a_file_of_torch_export_is_a_feature_net(networks, tmp_path):
    n = torch.export.Dim("n", min=1)
    exported = torch.export.export(Quarters(), (torch.rand(4, 1, 8, 8),), dynamic_shapes=({0: n},))
    torch.export.save(exported, tmp_path / "net.pt2")
    x = torch.rand(3, 1, 8, 8)

    net = feature_net(str(tmp_path / "net.pt2"), networks.dm)

    torch.testing.assert_close(net(x), Quarters()(x).detach())
    assert net.described()["sha256"] == feature_net(net.name, networks.dm).sha256
    (tmp_path / "bad.pt").write_bytes(b"no module")
    with pytest.raises(ValueError, match="cannot be loaded as a module"):
        feature_net(str(tmp_path / "bad.pt"), networks.dm)


def test_fid_is_0_for_the_same_images_and_the_squared_distance_of_means_for_moved_ones():
    net = FeatureNet("quarters", Quarters(), (1, 8, 8))
    x = torch.rand(50, 1, 8, 8) - 0.5
    same, moved = (distance_to(net, [x]) for _ in range(2))

    same.update(x, real=False)
    moved.update(x + 0.3, real=False)

    assert same.compute().item() == pytest.approx(0, abs=1e-5)
    assert moved.compute().item() == pytest.approx(4 * 0.3**2, abs=1e-5)


def test_raw_and_shifted_are_the_same_samples(toy, patterns):
    net = FeatureNet("quarters", Quarters(), (1, 8, 8))
    subject = toy(0 * patterns)
    drawn = list(pairs(subject, 40, seed=1))
    real = torch.cat([x_0 for x_0, _, _, _ in drawn])

    still = measure_fid(drawn, net, real, source="itself", batch_size=16)
    other = measure_fid(pairs(toy(4 * patterns), 40, seed=1), net, real, source="itself")

    assert still.raw == pytest.approx(0, abs=1e-5)
    assert still.shifted == still.raw
    assert other.raw == pytest.approx(0, abs=1e-5)
    assert other.shifted > 0.05
    assert still.features == {**net.described(), "name": "quarters"}
    assert (still.images, still.real_images, still.real) == (40, 40, "itself")


def test_real_images_are_the_files_of_a_folder_in_the_models_shape(tmp_path):
    from PIL import Image

    for i in range(3):
        Image.new("RGB", (12, 8), (255, 0, 0)).save(tmp_path / f"{i}.png")

    images, source = real_images(tmp_path, (3, 4, 4), 2)

    assert images.shape == (2, 3, 4, 4)
    assert images[0, :, 0, 0].tolist() == [1.0, -1.0, -1.0]
    assert source.startswith("3 image files")
    with pytest.raises(FileNotFoundError, match="MNIST/raw nor image files"):
        real_images(tmp_path / "none", (3, 4, 4), 2)
