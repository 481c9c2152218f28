"""Each field of a config does what it says."""

import pytest
import torch
from hdiscovery.directions.step import SymmetricDDIM
from hdiscovery.training import checkpoint
from hdiscovery.training.algorithm1 import Objective
from hdiscovery.training.bank import Bank, drawn_pairs
from hdiscovery.training.draws import drawn
from hdiscovery.training.trainer import Trainer, average_of
from hdiscovery.training.weighted_l1 import weighted_l1
from hdiscovery.training.world import World

from tests.hdiscovery.tiny import draw, tiny


def gradients(d, batch, x_0=None):
    """Return the gradients that phase 2 of a step leaves."""
    x_T, k, s = batch
    d.D.requires_grad_(False)
    with torch.no_grad():
        x_0 = d.real(x_T) if x_0 is None else x_0
    Objective(d)(x_0, d.shifted(x_T, k, s), k, s)["loss"].backward()
    return [p.grad.clone() for p in (*d.shift_block.parameters(), *d.R.parameters())]


@pytest.mark.parametrize(
    "changes",
    [{"micro_batch": 2}, {"micro_batch": 3}, {"plan": "graph"}, {"plan": "8GiB"},
     {"frozen": "auto"}],
    ids=str,
)  # fmt: skip
def test_ways_to_save_memory_give_the_same_gradients(changes):
    batch = draw(tiny())

    expected, got = gradients(tiny(), batch), gradients(tiny(**changes), batch)

    for g, e in zip(got, expected, strict=True):
        torch.testing.assert_close(g, e, rtol=1e-9, atol=1e-13)


def test_the_symmetric_update_is_ddim_of_the_shifted_noise():
    d = tiny(update="symmetric")
    assert isinstance(d.shifted.step, SymmetricDDIM)
    x, k, s = draw(d)
    unet, step = d.dm.unet, d.shifted.step
    t, t_next = step.grid[:2]
    a, a_next = (d.dm.schedule.alpha_bar(time) for time in (t, t_next))
    encoded = unet.encode(x, torch.full((len(x),), t))
    h = unet.middle(encoded)
    epsilon = unet.decode(
        h + s[:, None, None, None] * d.shift_block(h, encoded.embedding, k), encoded
    )

    P = (x - (1 - a) ** 0.5 * epsilon) / a**0.5
    expected = a_next**0.5 * P + (1 - a_next) ** 0.5 * epsilon

    torch.testing.assert_close(step(x, 0, k, s), expected, rtol=1e-9, atol=1e-9)


def test_several_directions_at_once_are_added_to_one_h():
    d = tiny()
    x, k, s = draw(d)
    step = d.shifted.step
    h = torch.randn(4, *d.dm.unet.h_shape, dtype=torch.float64)
    embedding = torch.randn(4, d.dm.unet.embedding_channels, dtype=torch.float64)
    two_k, two_s = torch.stack([k, (k + 1) % 3], 1), torch.stack([s, 0.5 * s], 1)

    both = step.shifted(h, embedding, two_k, two_s, 999)
    one, other = (step.shifted(h, embedding, two_k[:, j], two_s[:, j], 999) - h for j in (0, 1))

    torch.testing.assert_close(both, h + one + other, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(step(x, 0, k[:, None], s[:, None]), step(x, 0, k, s))


def test_a_shift_block_that_is_not_told_the_time_has_no_use_for_its_embedding():
    d = tiny(time_invariant=True)
    h = torch.randn(2, *d.dm.unet.h_shape, dtype=torch.float64)
    k, width = torch.tensor([0, 1]), d.dm.unet.embedding_channels
    a, b = (d.shift_block(h, torch.randn(2, width, dtype=torch.float64), k) for _ in range(2))

    assert torch.equal(a, b)
    assert not any(name.startswith("emb") for name, _ in d.shift_block.named_parameters())


def test_shifts_keep_the_distance_from_zero_that_is_asked_for():
    torch.manual_seed(0)
    d = tiny(min_shift=0.5)
    _, _, s = d.draw(4000)

    assert 0.5 <= s.abs().min() < 0.51
    assert 1.99 < s.abs().max() <= 2.0
    assert abs(s.abs().mean() - 1.25) < 0.03  # uniform between the two
    assert abs((s > 0).double().mean() - 0.5) < 0.04


def test_the_weighted_l1_distance_by_hand():
    x_0 = torch.zeros(2, 1, 2, 2)
    shifted = torch.stack([torch.full((1, 2, 2), 0.3), torch.full((1, 2, 2), -0.6)])
    s = torch.tensor([0.0, -2.0])

    # gamma / (gamma + |s|) = 1 and 1/3
    assert weighted_l1(x_0, shifted, s, gamma=1.0).item() == pytest.approx((0.3 + 0.2) / 2)


def test_lambdas_weight_their_terms():
    weights = {"lambda_G": 0.0, "lambda_1": 0.0, "lambda_2": 0.0, "lambda_l1": 0.7}
    d = tiny(**weights, l1_gamma=2.0)
    x_T, k, s = draw(d)
    with torch.no_grad():
        x_0, shifted = d.real(x_T), d.shifted(x_T, k, s)
        terms = Objective(d)(x_0, shifted, k, s)

    assert terms["loss"].item() == pytest.approx(
        0.7 * weighted_l1(x_0, shifted, s, gamma=2.0).item()
    )


def test_a_discriminator_that_nobody_listens_to_is_trained_all_the_same():
    d = tiny(lambda_G=0.0)
    before = [p.clone() for p in d.D.parameters()]

    record = Trainer(d).step(*draw(d))

    assert not all(map(torch.equal, before, d.D.parameters()))
    assert record["L_D"] > 0


@pytest.mark.parametrize(("adam", "moves"), [("dense", True), ("lazy", False)])
def test_only_dense_adam_moves_directions_that_were_not_drawn(adam, moves):
    d = tiny(adam=adam)
    trainer = Trainer(d)
    x_T, _, s = draw(d)
    trainer.step(x_T, torch.zeros(4, dtype=torch.long), s)
    heads = [head.detach().clone() for head in d.shift_block.heads]

    trainer.step(x_T, torch.ones(4, dtype=torch.long), s)

    for head, before in zip(d.shift_block.heads, heads, strict=True):
        assert torch.equal(head[0], before[0]) != moves
        assert not torch.equal(head[1], before[1])
        assert torch.equal(head[2], before[2])


def test_lazy_adam_is_adam_for_a_direction_that_is_drawn_every_time():
    steps = {}
    for adam in ("dense", "lazy"):
        # Large gradients: the two add their eps in different places.
        d = tiny(adam=adam, lambda_1=1e6)
        torch.manual_seed(5)
        trainer, batch = Trainer(d), draw(d)
        for _ in range(2):
            trainer.step(batch[0], torch.zeros(4, dtype=torch.long), batch[2])
        steps[adam] = d.shift_block.weight[0].detach()

    torch.testing.assert_close(steps["dense"], steps["lazy"], rtol=1e-5, atol=1e-7)


def test_the_moving_average_is_that_of_the_weights_after_each_step():
    d = tiny(ema=0.75)
    trainer, expected = Trainer(d), None
    for _ in range(3):
        trainer.step(*draw(d))
        now = d.shift_block.weight.detach().clone()
        expected = now if expected is None else 0.75 * expected + 0.25 * now

    torch.testing.assert_close(trainer.average.module.weight, expected)
    assert not torch.allclose(expected, now)
    assert average_of(d).module is not d.shift_block


def test_steps_that_settle_have_the_directions_of_the_average():
    d = tiny(ema=0.75)
    trainer, batch = Trainer(d), draw(d)
    for _ in range(3):
        trainer.step(*draw(d))
    before = d.shift_block.weight.detach().clone()

    trainer.settle(*batch, rate=1e-3)

    average = trainer.average.module.weight
    assert not torch.equal(average, before)
    assert torch.equal(d.shift_block.weight, average)


def test_an_average_that_begins_on_the_way_begins_with_what_was_trained():
    d = tiny()
    trainer = Trainer(d)
    trainer.step(*draw(d))
    state = checkpoint.state(trainer, 1)
    later = Trainer(tiny(ema=0.75))

    checkpoint.restore(later, state)
    later.settle(*draw(d), rate=1e-3)

    assert torch.equal(later.average.module.weight, d.shift_block.weight)
    assert torch.equal(later.networks.shift_block.weight, d.shift_block.weight)


def test_rates_of_the_three_networks():
    d = tiny(learning_rate=0.1, learning_rate_R=0.2, learning_rate_D=0.3, adam="lazy")

    rates = {name: o.param_groups[0]["lr"] for name, o in Trainer(d).optimizers.items()}

    assert rates == {"phi": 0.1, "heads": 0.1, "omega": 0.2, "psi": 0.3}


def test_every_step_begins_without_the_gradients_of_the_last_one():
    trainer = Trainer(tiny(learning_rate=1e-15))
    batch = draw(trainer.networks)
    nets = (trainer.networks.shift_block, trainer.networks.R, trainer.networks.D)
    seen = []
    for _ in range(2):
        trainer.step(*batch)
        seen.append([p.grad.clone() for net in nets for p in net.parameters()])

    for first, second in zip(*seen, strict=True):
        torch.testing.assert_close(second, first, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("size", [1, 2])
def test_the_steps_of_all_processes_walk_through_a_bank_together(size):
    d = tiny(batch_size=2 * size)
    bank = Bank(torch.arange(8.0), torch.arange(8.0), seed=0)
    noise = [
        drawn(d, 2, bank, step, World(rank, size))[0]
        for step in range(4 // size)
        for rank in range(size)
    ]

    assert torch.cat(noise).sort().values.tolist() == list(range(8))


def test_a_bank_walks_through_all_its_pairs_in_each_round_and_in_another_order():
    numbers = torch.arange(7.0)
    bank = Bank(numbers, 10 * numbers, seed=3)

    walk = torch.cat([bank.pairs(first, 3)[0] for first in range(0, 21, 3)])
    rounds = [walk[7 * j : 7 * j + 7].tolist() for j in range(3)]

    assert all(sorted(part) == numbers.tolist() for part in rounds)
    assert len({tuple(part) for part in rounds}) == 3
    x_T, x_0 = bank.pairs(5, 4)
    assert torch.equal(x_T, walk[5:9])
    assert torch.equal(x_0, 10 * x_T)


def test_pairs_of_a_bank_are_what_the_frozen_model_makes_whoever_draws_them():
    d = tiny(torch.float32)
    x_T, x_0 = drawn_pairs(d, range(6))
    with torch.no_grad():
        expected = d.real(x_T)

    torch.testing.assert_close(x_0, expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(drawn_pairs(d, range(1, 6, 2))[0], x_T[1::2])
