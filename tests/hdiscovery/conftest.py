"""A tiny run, and a browser for the tests of pages; without one, they are skipped and say why."""

import shutil
from collections import namedtuple
from dataclasses import asdict

import pytest
import torch
from hdiscovery.cli import main
from hdiscovery.directions.config import DiscoveryConfig
from hdiscovery.directions.publish import publish
from hdiscovery.directions.run_folder import RunFolder
from hdiscovery.dm.adm_config import UNetConfig
from hdiscovery.dm.adm_unet import ADMUNet
from hdiscovery.dm.files import save_dm
from hdiscovery.training.loop import train

from tests.hdiscovery.tiny import TINY

Opened = namedtuple("Opened", "page dialogs")


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip(
        "playwright.sync_api", reason="no playwright: pip install 'chainograd[test]'"
    )
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no Chromium: apt-get install chromium")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser):
    """Return a function that opens a file as a user does; errors of its script fail the test."""
    contexts, errors = [], []

    def open_(path, **options):
        context = options.pop("context", None) or browser.new_context(**options)
        contexts.append(context)
        page, dialogs = context.new_page(), []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: message.type == "error" and errors.append(message.text))
        page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.accept()))
        page.goto(path.as_uri())
        return Opened(page, dialogs)

    yield open_
    for context in {id(c): c for c in contexts}.values():
        context.close()
    assert errors == []


@pytest.fixture(scope="session")
def tiny_dm(tmp_path_factory):
    """A file of a tiny ADM network."""
    torch.manual_seed(1)
    unet = ADMUNet(UNetConfig(image_size=8, in_channels=1, num_channels=32, channel_mult=(1, 1),
                              num_res_blocks=1))  # fmt: skip
    for p in unet.parameters():  # zero-initialised layers would hide everything behind them
        torch.nn.init.normal_(p, std=0.05)
    path = tmp_path_factory.mktemp("dm") / "tiny.safetensors"
    save_dm(path, unet)
    return path


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory, tiny_dm):
    """A run of one step, with a file of its directions."""
    run = tmp_path_factory.mktemp("run") / "run"
    words = (
        "train", "MNIST32-demo", "--out", run, "--dm", tiny_dm, "--K", 3, "--M", 4, "--S", 2,
        "--steps", 1, "--batch-size", 4, "--r-updates", 1,
    )  # fmt: skip
    assert main([str(word) for word in words]) == 0
    words = ("publish", run, "--to", "file", "--samples", 2, "--calibration-samples", 1)
    assert main([str(word) for word in words]) == 0
    return run


@pytest.fixture
def small(tmp_path):
    """Return a run of one step."""
    config = DiscoveryConfig.of(K=2, M=2, batch_size=2, steps=1, save_every=1,
                             reconstructor="difference")  # fmt: skip
    run = RunFolder.create(tmp_path / "small", asdict(config))
    list(train(run, config))
    return run


@pytest.fixture
def published(small, tmp_path):
    small.write_json("rca.json", {"rca": 0.5, "pairs": 8, "shift_error": 1.0,
                                  "of_direction": [0.5] * 2, "step": 1})  # fmt: skip
    return publish(small, tmp_path / "published")


@pytest.fixture
def config(tmp_path):
    """A config of four steps in which every part of training takes part."""
    torch.manual_seed(1)
    unet = ADMUNet(TINY)
    for p in unet.parameters():
        torch.nn.init.normal_(p, std=0.05)
    save_dm(tmp_path / "dm.safetensors", unet)
    return DiscoveryConfig.of(
        dm=str(tmp_path / "dm.safetensors"), K=3, S=2.0, M=2, batch_size=4, steps=4, head_std=0.1,
        reconstructor="difference",
        adam="lazy", ema=0.9, r_updates=3, bank=6, save_every=1,
    )  # fmt: skip
