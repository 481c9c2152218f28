"""`in_slices`: a decoder and a reward in the memory of one slice, under a loss over the batch."""

import pytest
import torch
from diffusers import AutoencoderKL

from chainograd import ChainError, CheckpointedChain, meter
from chainograd.adapters import in_slices
from tests.problems import Net, plain

TILES = 9  # of 16x16 latents, 12 apart, over 32 rows and columns


class Head(torch.nn.Module):
    """Decodes latents and scores the images against a prompt."""

    def __init__(self):
        super().__init__()
        self.decode = torch.nn.ConvTranspose2d(2, 3, 4, stride=4, dtype=torch.float64)
        self.score = torch.nn.Linear(3, 5, dtype=torch.float64)
        self.calls = []

    def forward(self, z, emb, *, scale):
        """Return the images, and a score for each sample."""
        self.calls.append(len(z))
        image = torch.tanh(self.decode(z)) * scale
        return {"image": image, "score": (self.score(image.mean((2, 3))) * emb).sum(1)}


def made_vae(dtype=torch.float32):
    torch.manual_seed(0)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(32, 64), norm_num_groups=8, sample_size=64,
    ).requires_grad_(False).eval()  # fmt: skip
    vae.tile_latent_min_size, vae.tile_sample_min_size = 16, 32
    return torch.nn.Module.to(vae, dtype)  # diffusers' own `to` warns


def images_and_gradient(decode, z):
    """Decode under a loss in which every pixel depends on all others of the batch."""
    z = z.detach().requires_grad_()
    image = decode(z).sample
    (g,) = torch.autograd.grad(((image - image.mean()) ** 3 / image.var()).mean(), z)
    return [image.detach(), g]


def distances(results, expected):
    pairs = zip(results, expected, strict=True)
    return torch.stack([torch.linalg.vector_norm(r - e) for r, e in pairs])


def peak(decode, z):
    images_and_gradient(decode, z)
    with meter() as reading:
        images_and_gradient(decode, z)
    return reading.peak_bytes


def calls_of(layer, run):
    """Return how often a layer is called. (Hooks of a block itself do not see it run again.)"""
    calls = []
    handle = layer.register_forward_hook(lambda *_: calls.append(1))
    run()
    handle.remove()
    return len(calls)


# Values and gradients


@pytest.mark.parametrize("size", [1, 2, 3, 7, 20, None])
def test_a_loss_over_the_whole_batch_has_the_gradient_of_the_plain_function(size):
    head = Head()
    z = torch.randn(7, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    emb = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    scale = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)

    def gradients(run):
        out = run(z, emb, scale=scale)
        advantage = (out["score"] - out["score"].mean()) / out["score"].std()
        loss = advantage.square().square().sum() + out["image"].std()
        return [*out.values(), *torch.autograd.grad(loss, (z, emb, scale, *head.parameters()))]

    expected = gradients(head)
    for got, e in zip(gradients(in_slices(head, micro_batch=size)), expected, strict=True):
        torch.testing.assert_close(got, e, rtol=1e-12, atol=1e-12)


def test_a_decode_in_slices_has_the_gradient_of_the_decode():
    vae, z = made_vae(torch.float64), torch.randn(3, 4, 8, 8, dtype=torch.float64)

    got = images_and_gradient(in_slices(vae.decode), z)

    for mine, expected in zip(got, images_and_gradient(vae.decode, z), strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-10, atol=1e-12)


def test_slices_are_no_further_from_double_precision_than_the_plain_decode():
    vae, z = made_vae(), torch.randn(4, 4, 8, 8)
    expected = images_and_gradient(made_vae(torch.float64).decode, z.double())

    off = distances(images_and_gradient(in_slices(vae.decode), z), expected)

    assert (off <= distances(images_and_gradient(vae.decode, z), expected)).all()


def test_slices_have_the_bits_of_the_decoder_called_on_each_sample():
    vae, z = made_vae(), torch.randn(3, 4, 8, 8)
    got = images_and_gradient(in_slices(vae.decode), z)

    vae.enable_slicing()  # diffusers' own loop over the samples

    assert all(map(torch.equal, got, images_and_gradient(vae.decode, z)))


@pytest.mark.parametrize("sliced", [False, True])
def test_tiles_as_blocks_have_the_bits_of_the_tiled_decode(sliced):
    vae, z = made_vae(), torch.randn(2, 4, 32, 32)
    vae.enable_tiling()
    vae.use_slicing = sliced
    head = in_slices(vae.decode, micro_batch=None, blocks=[vae.decoder])

    got = images_and_gradient(head, z)

    assert all(map(torch.equal, got, images_and_gradient(vae.decode, z)))


def test_the_blocks_of_a_decoder_have_the_bits_of_the_decode():
    vae, z = made_vae(), torch.randn(2, 4, 8, 8)
    head = in_slices(vae.decode, micro_batch=None, blocks="auto")

    got = images_and_gradient(head, z)

    assert all(map(torch.equal, got, images_and_gradient(vae.decode, z)))
    resnet = vae.decoder.mid_block.resnets[0]
    assert calls_of(resnet.conv1, lambda: images_and_gradient(head, z)) == 2


def test_a_sampler_and_its_loss_head_have_the_gradient_of_the_plain_loop():
    net, head = Net(3, torch.float64), Head()
    z = torch.randn(4, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    emb = torch.randn(4, 5, dtype=torch.float64)

    def gradients(sample, head):
        score = head(sample(z), emb, scale=1.0)["score"]
        return torch.autograd.grad(score.softmax(0).square().sum(), (z, *net.parameters()))

    expected = gradients(lambda z: plain(net, 5, z), head)
    got = gradients(CheckpointedChain(net, 5), in_slices(head))
    for g, e in zip(got, expected, strict=True):
        torch.testing.assert_close(g, e, rtol=1e-12, atol=1e-12)


def test_weights_of_a_decoder_that_is_trained_get_their_gradients_through_a_method():
    vae, z = made_vae(torch.float64), torch.randn(3, 4, 4, 4, dtype=torch.float64)
    weights = list(vae.decoder.requires_grad_(True).parameters())

    def gradients(decode):
        return torch.autograd.grad(decode(z).sample.std(), weights)

    expected = gradients(vae.decode)
    for g, e in zip(gradients(in_slices(vae.decode)), expected, strict=True):
        torch.testing.assert_close(g, e, rtol=1e-9, atol=1e-12)


def test_without_gradients_the_values_are_the_same():
    head = in_slices(lambda z, scale: torch.sin(z * scale).sum(1))
    z = torch.randn(5, 3, requires_grad=True)

    with torch.no_grad():
        values = head(z, scale=2.0)

    assert torch.equal(values, head(z, scale=2.0))


def test_second_derivatives_are_those_of_the_plain_function():
    z = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)

    def score(z):
        return torch.sin(z).prod(1)

    def second(run):
        (g,) = torch.autograd.grad(run(z).std(), z, create_graph=True)
        return torch.autograd.grad(g.square().sum(), z)[0]

    torch.testing.assert_close(second(in_slices(score)), second(score), rtol=1e-12, atol=1e-14)


# Memory and work


def test_four_samples_one_by_one_take_less_than_a_sixth_of_the_plain_decode():
    vae, z = made_vae(), torch.randn(4, 4, 32, 32)

    assert peak(in_slices(vae.decode), z) < peak(vae.decode, z) / 6


def test_the_graph_is_that_of_a_slice_however_large_the_batch_is():
    vae = made_vae()
    head = in_slices(vae.decode)
    images = 2 * 3 * 32 * 32 * 4  # bytes of two images

    more = peak(head, torch.randn(6, 4, 16, 16)) - peak(head, torch.randn(4, 4, 16, 16))

    # The images, their cotangents, and what the loss makes of them: no layer of the decoder.
    assert more <= 6 * images


def test_tiles_as_blocks_take_a_tenth_of_the_tiled_decode():
    vae, z = made_vae(), torch.randn(4, 4, 32, 32)
    vae.enable_tiling()
    head = in_slices(vae.decode, micro_batch=None, blocks=[vae.decoder])

    assert peak(head, z) < peak(vae.decode, z) / 10


def test_every_slice_runs_twice():
    head = Head()
    sliced = in_slices(head, micro_batch=2)
    z = torch.randn(5, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    emb = torch.randn(5, 5, dtype=torch.float64)
    sliced(z, emb, scale=1.0)  # the first call also compares slices
    head.calls.clear()

    sliced(z, emb, scale=1.0)["score"].sum().backward()

    assert head.calls == [2, 2, 1] * 2


def test_every_tile_runs_twice():
    vae, z = made_vae(), torch.randn(2, 4, 32, 32)
    vae.enable_tiling()
    head = in_slices(vae.decode, micro_batch=None, blocks=[vae.decoder])

    assert calls_of(vae.decoder.conv_in, lambda: vae.decode(z)) == TILES
    assert calls_of(vae.decoder.conv_in, lambda: images_and_gradient(head, z)) == 2 * TILES


# What is refused


def test_a_batch_norm_in_training_is_refused():
    norm = torch.nn.BatchNorm1d(3)
    head = in_slices(lambda z: norm(z).square(), micro_batch=2)

    with pytest.raises(ChainError, match=r"`micro_batch=2` would compute .*batch norm .*`eval"):
        head(torch.randn(4, 3, requires_grad=True))


def test_scores_that_are_relative_to_the_batch_are_refused():
    head = in_slices(lambda z: z.sum(1) - z.sum(1).mean())

    with pytest.raises(ChainError, match=r"`micro_batch=1` would compute .*samples see each other"):
        head(torch.randn(4, 3, requires_grad=True))


def test_a_mean_over_the_batch_is_refused_with_the_way_out():
    head = in_slices(lambda z: z.square().mean())

    with pytest.raises(ChainError, match=r"Return it with the batch as its first dimension, one "):
        head(torch.randn(4, 3, requires_grad=True))


def test_latents_without_a_batch_are_refused():
    with pytest.raises(ValueError, match=r"no floating tensor with one\. Pass `micro_batch=None`"):
        in_slices(torch.sin)(torch.ones((), requires_grad=True))


def test_what_cannot_be_called_is_refused():
    with pytest.raises(TypeError, match=r"`function` must be callable as .*, got a str"):
        in_slices("decode")


def test_a_block_that_the_function_does_not_call_is_refused():
    vae = made_vae()
    head = in_slices(vae.decode, blocks=[torch.nn.Linear(1, 1)])

    with pytest.raises(ValueError, match="names a Linear that the step does not reach"):
        head(torch.randn(2, 4, 8, 8, requires_grad=True))
