"""Discovery training against Algorithm 1 written out by hand."""

import itertools
import math
import random
from dataclasses import asdict

import pytest
import torch
import torch.nn.functional as F
from hdiscovery.directions.config import DiscoveryConfig
from hdiscovery.directions.run_folder import RunFolder
from hdiscovery.directions.saved import open_run
from hdiscovery.dm.open import load_dm
from hdiscovery.training.algorithm1 import Objective
from hdiscovery.training.loop import train
from hdiscovery.training.trainer import Trainer

from tests.hdiscovery.tiny import CONFIG, draw, tiny


def test_the_chain_gives_the_gradients_of_algorithm_1_by_hand_and_leaves_psi_alone():
    d = tiny()
    x_T, k, s = draw(d)
    config, step = d.config, d.shifted.step
    with torch.no_grad():
        x_0 = d.real(x_T)
    d.D.requires_grad_(False)
    loss = Objective(d)

    def objective(shifted):
        terms = loss(x_0, shifted, k, s)
        expected = (
            terms["L_G"]
            + config.loss.lambda_1 * terms["cross_entropy"]
            + config.loss.lambda_2 * terms["shift_error"]
        )
        assert terms["loss"] == expected
        return terms["loss"]

    nodes, x = [], x_T.clone()
    with torch.no_grad():
        for i in range(config.sampling.M):
            nodes.append(x)
            x = step(x, i, k, s)
    leaf = x.detach().requires_grad_()
    objective(leaf).backward()
    g = leaf.grad
    for i in reversed(range(config.sampling.M)):
        node = nodes.pop().detach().requires_grad_(i > 0)
        y = step(node, i, k, s)
        if y.requires_grad:
            y.backward(g)
        g = node.grad
    assert not nodes
    trained = [*d.shift_block.parameters(), *d.R.parameters()]
    by_hand = [p.grad.clone() for p in trained]
    for p in trained:
        p.grad = None

    objective(d.shifted(x_T, k, s)).backward()

    for p, expected in zip(trained, by_hand, strict=True):
        torch.testing.assert_close(p.grad, expected, rtol=1e-12, atol=1e-15)
    assert max(g.abs().max() for g in by_hand) > 1e-6
    assert all(p.grad is None for p in d.D.parameters())


def test_a_step_ends_with_the_weights_of_algorithm_1_by_hand_bit_for_bit():
    """One step, and one more from there, against a plain loop without this package's trainer."""
    d, by_hand = tiny(), tiny()
    trainer = Trainer(d)
    adams = {net: torch.optim.Adam(getattr(by_hand, net).parameters(), lr=1e-3)
             for net in ("shift_block", "R", "D")}  # fmt: skip

    for _ in range(2):
        x_T, k, s = draw(d)
        record = trainer.step(x_T, k, s)
        L_D, loss = step_by_hand(by_hand, adams, x_T, k, s)

        assert (record["L_D"], record["loss"]) == (L_D, loss)
        for net in adams:
            pairs = zip(getattr(d, net).parameters(), getattr(by_hand, net).parameters(),
                        strict=True)  # fmt: skip
            assert all(torch.equal(a, b) for a, b in pairs), net


def step_by_hand(d, adams, x_T, k, s):
    """Return L_D and the loss of step 2: Algorithm 1 with a graph of all M steps."""
    unet, schedule, grid = d.dm.unet, d.dm.schedule, [999, 666, 333, 0, -1]

    def ddim(x, t, t_next, shifts):
        a, a_next = schedule.alpha_bar(t), schedule.alpha_bar(t_next)
        encoded = unet.encode(x, torch.full((len(x),), t))
        h = unet.middle(encoded)
        epsilon = epsilon_hat = unet.decode(h, encoded)
        if shifts and t >= 400:
            delta_h = d.shift_block(h, encoded.embedding, k)
            epsilon_hat = unet.decode(h + s[:, None, None, None] * delta_h, encoded)
        P = (x - (1 - a) ** 0.5 * epsilon_hat) / a**0.5
        return a_next**0.5 * P + (1 - a_next) ** 0.5 * epsilon

    x_0, shifted = x_T, x_T
    for t, t_next in itertools.pairwise(grid):
        with torch.no_grad():
            x_0 = ddim(x_0, t, t_next, shifts=False)
        shifted = ddim(shifted, t, t_next, shifts=True)
    real, fake = d.D(torch.cat([x_0, shifted.detach()])).chunk(2)
    one, zero = torch.ones_like(real), torch.zeros_like(real)
    bce = F.binary_cross_entropy_with_logits
    L_D = bce(real, one) + bce(fake, zero)
    adams["D"].zero_grad()
    L_D.backward()
    adams["D"].step()

    for p in d.D.parameters():
        p.requires_grad_(False)
    logits, s_hat = d.R(x_0, shifted)
    L_G = bce(d.D(shifted), one)
    loss = L_G + 0.1 * F.cross_entropy(logits, k) + 0.1 * F.l1_loss(s_hat, s)
    for net in ("shift_block", "R"):
        adams[net].zero_grad()
    loss.backward()
    for net in ("shift_block", "R"):
        adams[net].step()
    for p in d.D.parameters():
        p.requires_grad_(True)
    return L_D.item(), loss.item()


def test_step_2_leaves_the_discriminator_and_its_gradient_as_step_1_left_them():
    d = tiny()
    trainer, seen = Trainer(d), []
    trainer.optimizers["psi"].register_step_post_hook(
        lambda *_: seen.extend((p.detach().clone(), p.grad.clone()) for p in d.D.parameters())
    )

    trainer.step(*draw(d))

    assert seen
    for p, (value, grad) in zip(d.D.parameters(), seen, strict=True):
        assert torch.equal(p, value)
        assert torch.equal(p.grad, grad)


def test_training_begins_in_equilibrium_where_the_heads_are_zero():
    d = tiny(head_std=0.0)
    torch.nn.init.zeros_(d.D.out[3].weight)
    x_T, k, s = draw(d)

    record = Trainer(d).step(x_T, k, s)

    assert record["L_G"] == pytest.approx(0.6931, abs=1e-4)
    assert record["L_D"] == pytest.approx(2 * 0.6931, abs=1e-4)


def test_the_shift_enters_from_t_stop_on():
    d = tiny(t_stop=666)
    x_T, k, s = draw(d)
    step = d.shifted.step  # times 999, 666, 333, 0

    for i, moved in ((0, True), (1, True), (2, False), (3, False)):
        assert bool((step(x_T, i, k, s) != step(x_T, i, k, 0 * s)).any()) == moved
    assert torch.allclose(step(x_T, 0, k, 0 * s), d.real.step(x_T, 0), rtol=1e-12, atol=1e-12)


def test_the_shifted_noise_is_that_of_the_predicted_x_0_alone():
    d = tiny()
    x, k, s = draw(d)
    unet, t, t_next = d.dm.unet, 999, 666
    a, a_next = (d.dm.schedule.alpha_bar(time) for time in (t, t_next))
    encoded = unet.encode(x, torch.full((len(x),), t))
    h = unet.middle(encoded)
    h_hat = h + s[:, None, None, None] * d.shift_block(h, encoded.embedding, k)
    epsilon, epsilon_hat = unet.decode(h, encoded), unet.decode(h_hat, encoded)

    P = (x - math.sqrt(1 - a) * epsilon_hat) / math.sqrt(a)
    expected = math.sqrt(a_next) * P + math.sqrt(1 - a_next) * epsilon

    torch.testing.assert_close(d.shifted.step(x, 0, k, s), expected, rtol=1e-9, atol=1e-9)


def test_updates_from_the_buffer_move_the_reconstructor_and_nothing_else():
    d = tiny(r_updates=3)
    random.seed(0)
    trainer = Trainer(d)
    trainer.step(*draw(d))
    phi, psi, omega = ([p.clone() for p in net.parameters()] for net in (d.shift_block, d.D, d.R))

    trainer.recent.train_again(trainer.recent.batches[-1], trainer.optimizers["omega"])

    assert all(map(torch.equal, phi, d.shift_block.parameters()))
    assert all(map(torch.equal, psi, d.D.parameters()))
    assert not any(map(torch.equal, omega, d.R.parameters()))


def test_a_step_of_r_alone_leaves_the_directions_and_asks_for_no_graph():
    d = tiny(r_updates=2)
    trainer = Trainer(d)
    x_T, k, s = draw(d)
    trainer.step(x_T, k, s)
    phi, psi, omega = ([p.clone() for p in net.parameters()] for net in (d.shift_block, d.D, d.R))
    for p in d.shift_block.parameters():
        p.grad = None

    record = trainer.settle(x_T, k, s, rate=1e-3)

    assert all(map(torch.equal, phi, d.shift_block.parameters()))
    assert all(p.grad is None for p in d.shift_block.parameters())
    assert not any(map(torch.equal, psi, d.D.parameters()))
    assert not any(map(torch.equal, omega, d.R.parameters()))
    assert len(trainer.recent.batches) == 2
    assert record.keys() == trainer.step(x_T, k, s).keys()


@pytest.mark.parametrize("r_updates", [1, 2])
def test_a_step_of_r_alone_goes_along_its_loss_at_the_rate_it_is_told(r_updates):
    d = tiny(r_updates=r_updates)
    trainer = Trainer(d)
    before = [p.clone() for p in d.R.parameters()]

    trainer.settle(*draw(d), rate=0.0)

    assert all(map(torch.equal, before, d.R.parameters()))
    trainer.settle(*draw(d), rate=1e-2)
    moved = max((a - b).abs().max() for a, b in zip(before, d.R.parameters(), strict=True))
    assert 0.9e-2 < moved <= r_updates * 1.01e-2  # Adam's first steps are as long as its rate


def test_the_last_steps_of_a_run_are_r_s_own(tmp_path):
    config = CONFIG.replace(M=1, steps=1, batch_size=2, save_every=1)
    run = RunFolder.create(tmp_path / "run", asdict(config))
    list(train(run, config))
    before = open_run(run)

    records = list(train(run, config.replace(settle_steps=2)))

    after = open_run(run)
    assert [record["step"] for record in records] == [1, 2]
    assert torch.equal(before.shift_block.weight, after.shift_block.weight)
    assert not torch.equal(before.R.head.weight, after.R.head.weight)


def test_the_rate_of_r_falls_along_half_a_cosine():
    config = DiscoveryConfig.of(steps=10, settle_steps=4, learning_rate=1.0, learning_rate_R=8.0)

    rates = [config.settle_rate(step) for step in range(10, 14)]

    assert rates == pytest.approx([8.0, 4 + 4 / math.sqrt(2), 4.0, 4 - 4 / math.sqrt(2)])
    assert config.all_steps == 14


def test_pairs_seen_again_are_moved_when_the_run_says_so(monkeypatch):
    d, seen = tiny(r_updates=2, r_augment=True), []
    trainer = Trainer(d)
    own = trainer.recent.reconstruction
    monkeypatch.setattr(
        trainer.recent, "reconstruction", lambda *pair: seen.append(pair) or own(*pair)
    )
    trainer.step(*draw(d))

    ((x_0, shifted, k, s),), (first, *_) = seen, trainer.recent.batches
    n = len(first[0])
    assert not any(torch.equal(x_0[i : i + n], first[0]) for i in range(0, len(x_0), n))
    assert not any(torch.equal(shifted[i : i + n], first[1]) for i in range(0, len(x_0), n))
    assert torch.equal(k, first[2].repeat(4))
    assert torch.equal(s, first[3].repeat(4))


def test_the_frozen_model_stays_in_eval_mode():
    d = tiny()
    d.shifted.step.train()

    assert not d.dm.unet.training
    assert d.shift_block.training


def test_a_loss_that_is_not_a_number_stops_the_run_and_names_the_step(tmp_path, monkeypatch):
    config = DiscoveryConfig.of(K=3, M=1, batch_size=2, steps=3, save_every=1,
                             reconstructor="difference")  # fmt: skip
    run = RunFolder.create(tmp_path / "run", asdict(config))
    running = train(run, config)
    next(running)
    monkeypatch.setattr(F, "l1_loss", lambda *_: torch.tensor(float("nan")))

    with pytest.raises(FloatingPointError, match=r"shift_error is nan at step 1"):
        next(running)
    checkpoint = run.load_checkpoint()
    assert checkpoint is not None
    assert checkpoint["step"] == 1


def test_a_run_folder_in_use_is_refused(tmp_path):
    RunFolder.create(tmp_path / "run", {})

    with pytest.raises(FileExistsError, match="--resume"):
        RunFolder.create(tmp_path / "run", {})


def test_the_shipped_model_loads_and_a_truncated_or_unknown_one_says_so(tmp_path):
    dm = load_dm("MNIST32-small")
    assert dm.config.h_shape == (128, 4, 4)
    from hdiscovery.dm.open import shipped_models

    whole = shipped_models()["MNIST32-small"].read_bytes()
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(whole[:100_000])
    with pytest.raises(ValueError, match="truncated"):
        load_dm(cut)
    with pytest.raises(FileNotFoundError, match="shipped are: MNIST32-small"):
        load_dm("MNIST128")
