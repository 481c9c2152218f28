"""What a training does with numbers that are not finite."""

import pytest
from hdiscovery.directions.config import run_config
from hdiscovery.training.loop import train
from hdiscovery.training.recent_pairs import RecentPairs


def test_a_checkpoint_is_not_written_of_weights_that_are_not_finite(small):
    config = run_config(small).replace(steps=4)
    running = train(small, config)
    before = (small.path / "checkpoint.pt").read_bytes()

    def ruined(self, pair, omega):
        next(self.R.parameters()).data.fill_(float("inf"))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RecentPairs, "train_again", ruined)
        with pytest.raises(FloatingPointError, match="is not finite at step 1"):
            list(running)
    assert (small.path / "checkpoint.pt").read_bytes() == before
