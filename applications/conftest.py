"""What the examples of the Python API find: a run of their own, a photo, and a folder to write."""

import shutil

import pytest


@pytest.fixture(autouse=True)
def _example_files(request, doctest_namespace, tmp_path_factory):
    if not request.node.name.startswith("hdiscovery.api."):
        return
    from hdiscovery.directions.shipped import shipped_runs
    from PIL import Image

    folder = tmp_path_factory.mktemp("api")
    shutil.copytree(shipped_runs()["digits"], folder / "digits")
    Image.new("L", (32, 32), 40).save(folder / "photo.png")
    doctest_namespace.update(folder=folder, run=folder / "digits", photo=folder / "photo.png")
