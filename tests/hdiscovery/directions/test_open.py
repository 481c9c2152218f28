"""A run, or a file that stands for it."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from hdiscovery.directions.about import Calibration
from hdiscovery.directions.fingerprint import dm_hash, weights_hash
from hdiscovery.directions.open import open_directions
from hdiscovery.directions.portable import PortableDirections, load_directions, save_directions
from hdiscovery.dm.adm_unet import ADMUNet
from hdiscovery.dm.files import save_dm
from hdiscovery.dm.open import load_dm
from hdiscovery.dm.walk import draw_noise
from hdiscovery.editing.editor import edit
from torch import nn

FILE = "directions.safetensors"


@pytest.fixture
def run(tiny_run, tmp_path):
    """A copy of the tiny run."""
    return shutil.copytree(tiny_run, tmp_path / "run")


def trunk_made_constant(run):
    """Change a run's shift block so that it does not look at h or t any more."""
    checkpoint = torch.load(run / "checkpoint.pt")
    for name, value in checkpoint["shift_block"].items():
        if name == "weight":
            value.zero_()
        if name == "bias":
            value.copy_(torch.arange(float(value.numel())).view_as(value) / 64)
    torch.save(checkpoint, run / "checkpoint.pt")


def test_all_three_give_the_same_images_where_the_shift_block_does_not_look_at_h(run):
    from hdiscovery.cli import main

    trunk_made_constant(run)
    assert main(["directions", str(run), "--no-calibration", "--samples", "2", "--overwrite"]) == 0
    x_T, s = torch.randn(2, 1, 8, 8), torch.tensor([[1.0], [-2.0]])

    images = {
        kind: edit(open_directions(path, kind), x_T, [1], s, num_steps=5)
        for path, kind in (
            (run, "direct"),
            (run, "mean"),
            (run / FILE, "mean"),
            (run / FILE, "global"),
        )
    }

    assert torch.equal(images["direct"], images["mean"])
    assert torch.equal(images["direct"], images["global"])
    assert (images["direct"][:, 0] - images["direct"][:, 1]).abs().max() > 1e-3


def test_a_file_says_all_that_its_run_does(tiny_run):
    from_run, from_file = open_directions(tiny_run), open_directions(tiny_run / FILE)

    assert (from_run.kind, from_file.kind) == ("direct", "mean")
    assert from_file.about == replace(from_run.about, samples=2, seed=0)
    assert from_file.about.times == (999, 666)
    assert (from_file.about.K, from_file.about.M, from_file.about.S) == (3, 4, 2.0)
    assert isinstance(from_file.about.calibration, Calibration)


def test_a_file_s_mean_is_the_measured_one_and_may_be_left_out(tiny_run, tmp_path):
    whole = load_directions(tiny_run / FILE)
    small = tmp_path / "small.safetensors"
    save_directions(small, PortableDirections(whole.about, whole.global_, None))

    assert whole.mean is not None
    assert whole.mean.dtype == torch.float16
    assert whole.mean.shape == (3, 2, 32, 4, 4)
    torch.testing.assert_close(
        whole.global_, whole.mean.float().mean(1).half(), rtol=1e-2, atol=1e-4
    )
    assert open_directions(small).kind == "global"
    with pytest.raises(ValueError, match="without the mean directions"):
        open_directions(small, "mean")
    with pytest.raises(ValueError, match="pass the run's folder"):
        open_directions(small, "direct")


def test_another_diffusion_model_is_refused_unless_it_is_asked_for(tiny_run, tiny_dm, tmp_path):
    dm = load_dm(tiny_dm)
    changed = ADMUNet(dm.config)
    changed.load_state_dict(dm.unet.state_dict())
    with torch.no_grad():
        next(changed.parameters())[0] += 0.5
    other = tmp_path / "other.safetensors"
    save_dm(other, changed)
    wider = tmp_path / "wider.safetensors"
    save_dm(wider, ADMUNet(replace(dm.config, image_size=16)))

    with pytest.raises(ValueError, match=r"other is another one.*--another-dm"):
        open_directions(tiny_run / FILE, dm=str(other))
    source = open_directions(tiny_run / FILE, dm=str(other), another_dm=True)
    assert source.dm.name == "other"
    with pytest.raises(ValueError, match=r"h-space of shape \(32, 8, 8\)"):
        open_directions(tiny_run / FILE, dm=str(wider), another_dm=True)
    with pytest.raises(FileNotFoundError, match=r"Pass `--dm FILE`"):
        open_directions(tiny_run / FILE, dm="nowhere.safetensors")


def test_a_schedule_or_a_single_weight_makes_another_model_and_a_cast_does_not(tiny_dm, tmp_path):
    dm, again = load_dm(tiny_dm), load_dm(tiny_dm)
    again.unet.double()
    cosine = tmp_path / "cosine.safetensors"
    save_dm(cosine, dm.adm, schedule="cosine")

    assert dm_hash(dm) == dm_hash(again)
    assert dm_hash(dm) != dm_hash(load_dm(cosine))
    with torch.no_grad():
        list(again.unet.parameters())[-1][0] += 1e-3
    assert dm_hash(dm) != dm_hash(again)


def test_the_hash_is_that_of_names_and_values_in_the_order_of_the_names():
    a, b = nn.Linear(2, 3), nn.Linear(2, 3)
    one, other = nn.ModuleDict({"a": a, "b": b}), nn.ModuleDict({"b": b, "a": a})

    assert weights_hash(one) == weights_hash(other)
    assert weights_hash(one) != weights_hash(nn.ModuleDict({"a": b, "b": a}))


def test_means_of_another_state_of_the_shift_block_are_refused(run):
    trunk_made_constant(run)

    with pytest.raises(ValueError, match="another state of the shift block"):
        open_directions(run, "mean")
    assert open_directions(run).about.calibration is None


def test_labels_of_the_run_win_over_those_of_its_file_which_outlive_a_training(run):
    whole = load_directions(run / FILE)
    about = replace(whole.about, labels=("round", "thick", ""))
    save_directions(run / FILE, PortableDirections(about, whole.global_, whole.mean))
    (run / "labels.json").write_text('{"1": "bold"}')
    trunk_made_constant(run)

    assert open_directions(run).about.labels == ("round", "bold", "")


def test_scores_are_those_of_the_ranking_or_else_recalls(run):
    (run / "rca.json").write_text(json.dumps({"of_direction": [0.5, None, 0.25]}))
    recalls = open_directions(run).about
    (run / "ranking.json").write_text(json.dumps({"directions": [{"k": 2, "score": 0.9}]}))
    ranked = open_directions(run).about
    (run / "ranking.json").write_text("{}")

    assert (recalls.score_name, recalls.scores) == ("RCA recall", (0.5, None, 0.25))
    assert (ranked.score_name, ranked.scores) == ("ranking score", (None, None, 0.9))
    damaged = open_directions(run)  # it can be ranked anew
    with pytest.raises(ValueError, match=r"ranking.json or rca.json"):
        _ = damaged.scores


def test_damaged_files_are_refused_by_what_is_wrong(tiny_run, tmp_path):
    whole, path = load_directions(tiny_run / FILE), tmp_path / "a.safetensors"

    with pytest.raises(FileNotFoundError, match="hdiscovery publish RUN --to file"):
        load_directions(path)
    path.write_bytes((tiny_run / FILE).read_bytes()[:900])
    with pytest.raises(ValueError, match="cannot be read"):
        load_directions(path)
    save_directions(path, PortableDirections(whole.about, whole.global_[:2], whole.mean))
    with pytest.raises(ValueError, match=r"'global' is \[2, 32, 4, 4\], expected \[3, C, H, W\]"):
        load_directions(path)
    save_directions(path, PortableDirections(whole.about, whole.global_ * float("nan"), None))
    with pytest.raises(ValueError, match="'global' is not finite"):
        load_directions(path)
    with pytest.raises(ValueError, match="`labels` must have one entry for each of the 3"):
        replace(whole.about, labels=("",))


def test_noise_of_samples_depends_on_the_seed_alone(tiny_dm):
    dm = load_dm(tiny_dm)

    assert torch.equal(draw_noise(dm, 2, 5), draw_noise(dm, 2, 5))
    assert not torch.equal(draw_noise(dm, 2, 5), draw_noise(dm, 2, 6))
    with pytest.raises(ValueError, match="`samples` must be at least 1"):
        draw_noise(dm, 0, 5)
