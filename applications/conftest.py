"""What the examples of the Python API find: a run of their own, a photo, and a folder to write."""

import pytest


@pytest.fixture(scope="session")
def _example_files(tmp_path_factory):
    from hdiscovery.api.train import train
    from PIL import Image

    folder = tmp_path_factory.mktemp("api")
    Image.new("L", (32, 32), 40).save(folder / "photo.png")
    run = train("MNIST32-demo", folder / "mine", K=2, M=2, steps=1, batch_size=2, device="cpu")
    return {"folder": folder, "run": run, "photo": folder / "photo.png"}


@pytest.fixture(autouse=True)
def _examples(request, doctest_namespace):
    if request.node.name.startswith("hdiscovery.api."):
        doctest_namespace.update(request.getfixturevalue("_example_files"))
