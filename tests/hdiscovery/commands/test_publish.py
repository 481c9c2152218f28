"""publish, as a user of the command line sees it."""

import shutil

from hdiscovery.cli import main
from hdiscovery.directions.open import open_directions
from hdiscovery.directions.shipped import shipped_runs


def test_a_label_that_is_taken_away_stays_away(tmp_path, capsys):
    run = tmp_path / "digits"
    shutil.copytree(shipped_runs()["digits"], run)
    named = next(k for k, label in enumerate(open_directions(run).about.labels) if label)

    assert main(["publish", str(run), "--label", f"{named}="]) == 0
    assert open_directions(run).about.labels[named] == ""
