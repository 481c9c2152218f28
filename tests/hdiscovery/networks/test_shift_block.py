"""The shift block: nothing at the start, linear in its heads, one head a sample."""

import pytest
import torch
import torch.nn.functional as F
from hdiscovery.dm.adm_config import TABLE_3
from hdiscovery.networks.shift_block import ShiftBlock

# Two channels a group: with one, GroupNorm takes the time embedding out again.
C = 64


def inputs(n=4, dtype=torch.float64, edge=3):
    return torch.randn(n, C, edge, edge, dtype=dtype), torch.randn(n, 16, dtype=dtype)


K_OF_N = torch.tensor([0, 4, 4, 2])


def block(**changes):
    torch.manual_seed(0)
    return ShiftBlock(C, 16, 5, **changes)


@pytest.mark.parametrize(
    ("row", "K", "heads"), [("MNIST32", 32, 2.11), ("Anime64", 128, 33.6), ("AFHQ128", 256, 67.2)]
)
def test_the_heads_have_the_size_the_paper_trains(row, K, heads):
    config = TABLE_3[row]
    with torch.device("meta"):
        shift = ShiftBlock(config.h_shape[0], config.embedding_channels, K)

    assert (shift.weight.numel() + shift.bias.numel()) / 1e6 == pytest.approx(heads, rel=3e-3)


def test_a_new_block_shifts_nothing_by_nothing_at_all():
    h, emb = inputs(dtype=torch.float32)

    assert not block()(h, emb, K_OF_N).any()


def test_at_zero_heads_the_trunk_has_a_gradient_of_exactly_zero():
    shift, (h, emb) = block(), inputs(dtype=torch.float32)
    dh = shift(h, emb, K_OF_N)

    (dh * torch.randn_like(dh)).sum().backward()

    trunk = {name: p for name, p in shift.named_parameters() if name not in ("weight", "bias")}
    assert trunk
    assert all(p.grad is not None and not p.grad.any() for p in trunk.values())
    assert shift.weight.grad is not None
    assert shift.weight.grad[K_OF_N].flatten(1).any(dim=1).all()


def test_away_from_zero_every_parameter_learns():
    shift, (h, emb) = block(head_std=0.1), inputs(dtype=torch.float32)

    shift(h, emb, K_OF_N).square().sum().backward()

    for name, p in shift.named_parameters():
        assert p.grad is not None, name
        assert p.grad.any(), name


def test_the_shift_is_the_drawn_head_applied_to_the_trunk_pixel_by_pixel():
    shift, (h, emb) = block(head_std=1.0).double(), inputs()
    torch.nn.init.normal_(shift.bias)

    dh = shift(h, emb, K_OF_N)

    conv_in, linear = shift.conv_in, shift.emb
    matrix = conv_in.weight[:, :, 0, 0]
    constant = F.silu(emb) @ linear.weight.T + linear.bias + conv_in.bias
    for n, k in enumerate(K_OF_N.tolist()):
        x = F.silu(F.group_norm(h[n : n + 1], 32, shift.norm_in.weight, shift.norm_in.bias))[0]
        x = torch.einsum("dc,chw->dhw", matrix, x)
        x = x + constant[n, :, None, None]
        x = F.group_norm(x[None], 32, shift.norm_out.weight, shift.norm_out.bias)[0]
        expected = torch.einsum("dc,chw->dhw", shift.weight[k], F.silu(x))
        expected = expected + shift.bias[k][:, None, None]
        torch.testing.assert_close(dh[n], expected, rtol=1e-10, atol=1e-10)


def test_the_ddpm_form_is_the_adm_form_without_the_norm_and_activation_in_front():
    ddpm, adm = block(form="ddpm", head_std=1.0).double(), block(head_std=1.0).double()
    missing = adm.load_state_dict(ddpm.state_dict(), strict=False).missing_keys
    h, emb = inputs()

    in_front = F.silu(adm.norm_in(h))

    assert missing == ["norm_in.weight", "norm_in.bias"]
    assert (ddpm.norm_out.eps, adm.norm_out.eps) == (1e-6, 1e-5)
    ddpm.norm_out.eps = 1e-5
    torch.testing.assert_close(ddpm(in_front, emb, K_OF_N), adm(h, emb, K_OF_N))


def test_an_unknown_form_says_which_exist():
    with pytest.raises(ValueError, match="adm, ddpm, got 'asyrp'"):
        block(form="asyrp")


def test_the_shift_depends_on_the_time():
    shift, (h, emb) = block(head_std=1.0).double(), inputs()

    difference = shift(h, emb, K_OF_N) - shift(h, emb + 1, K_OF_N)

    assert difference.abs().max() > 0.1


def test_no_sample_sees_another():
    shift, (h, emb) = block(head_std=1.0).double(), inputs()
    h.requires_grad_()

    (gradient,) = torch.autograd.grad(shift(h, emb, K_OF_N)[1].sum(), h)

    assert gradient[1].any()
    assert not gradient[[0, 2, 3]].any()


def test_the_heads_gradient_of_a_direction_is_the_sum_over_its_samples():
    shift, (h, emb) = block(head_std=1.0).double(), inputs()

    def head_gradient(n):
        loss = shift(h[n], emb[n], K_OF_N[n]).square().sum()
        return torch.autograd.grad(loss, (shift.weight, shift.bias))

    together = head_gradient(slice(None))
    alone = [sum(g) for g in zip(*(head_gradient([n]) for n in range(4)), strict=True)]

    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_the_gradient_of_a_shift_is_that_of_finite_differences():
    shift = block(head_std=0.3).double()
    h, emb = inputs(n=2, edge=1)
    a = torch.tensor([0.4, -0.7], dtype=torch.float64, requires_grad=True)

    def along(a):
        return shift(h * a[0], emb * a[1], K_OF_N[:2]).square().mean()

    assert torch.autograd.gradcheck(along, (a,))
