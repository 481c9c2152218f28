"""How a diffusion model's training goes on."""

import json
from dataclasses import asdict

from hdiscovery.directions.run_folder import RunFolder
from hdiscovery.training.pretrain import PretrainConfig, begun


def test_a_pretraining_goes_on_as_it_was_begun(tmp_path):
    config = PretrainConfig(out=tmp_path / "dm", steps=500, batch_size=16, learning_rate=3e-4)
    content = json.loads(json.dumps(asdict(config), default=str))
    RunFolder.create(tmp_path / "dm", content)

    assert begun(tmp_path / "dm") == config
