"""Any file that a user may pass is refused in words, and the error says what the file is."""

import io
import pickle

import pytest
import torch
from hdiscovery.directions.open import open_directions
from hdiscovery.dm.adm_weights import read_weights
from hdiscovery.dm.file_kind import kind_of
from hdiscovery.dm.open import load_dm
from PIL import Image


def png():
    file = io.BytesIO()
    Image.new("L", (4, 4)).save(file, format="PNG")
    return file.getvalue()


def checkpoint():
    file = io.BytesIO()
    torch.save({"w": torch.zeros(64)}, file)
    return file.getvalue()


FILES = {
    "empty": (b"", "an empty file"),
    "text": (b"hello\n", "a text file"),
    "unicode": ("gr\u00fc\u00df dich " * 60).encode(),
    "json": (b'{"format": 1}', "a text file"),
    "html": (b"<!DOCTYPE html><title>Sign in</title>", "a web page"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    "png": (png(), "a PNG image"),
    "cut zip": (checkpoint()[:200], "a zip archive"),
    "pickle": (pickle.dumps({"w": [1, 2]}), "a pickle"),
    "noise": (bytes(range(7, 256)) * 3, "an unknown kind"),
    "cut safetensors": ((4096).to_bytes(8, "little") + b'{"a": {"dtype"', "a safetensors file"),
}
FILES["unicode"] = (FILES["unicode"], "a text file")
each = pytest.mark.parametrize(("content", "kind"), FILES.values(), ids=FILES)


@each
def test_a_file_is_known_by_its_first_bytes(tmp_path, content, kind):
    (tmp_path / "a").write_bytes(content)

    assert kind in kind_of(tmp_path / "a")


@each
@pytest.mark.parametrize("suffix", [".pt", ".txt", ".safetensors", ""])
def test_a_file_that_is_no_diffusion_model_is_refused_with_what_it_is(
    tmp_path, content, kind, suffix
):
    path = tmp_path / f"hello{suffix}"
    path.write_bytes(content)

    with pytest.raises(ValueError, match="another kind") as refused:
        load_dm(path)

    assert str(path) in str(refused.value)
    assert kind in str(refused.value)


@each
@pytest.mark.parametrize("suffix", [".pt", ".txt", ".safetensors"])
def test_a_file_that_holds_no_weights_is_refused_with_what_it_is(tmp_path, content, kind, suffix):
    path = tmp_path / f"x{suffix}"
    path.write_bytes(content)

    words = r"another kind|no state dict|more than tensors"
    with pytest.raises(ValueError, match=words) as refused:
        read_weights(path)

    assert str(path) in str(refused.value)
    assert kind in str(refused.value) or kind == "a pickle"


@each
def test_a_file_that_holds_no_directions_is_refused_with_what_it_is(tmp_path, content, kind):
    path = tmp_path / "directions.safetensors"
    path.write_bytes(content)

    with pytest.raises(ValueError, match="another kind") as refused:
        open_directions(path)

    assert str(path) in str(refused.value)
    assert kind in str(refused.value)


def test_a_folder_of_something_else_is_refused_by_every_opener(tmp_path):
    with pytest.raises(FileNotFoundError, match="not a run folder"):
        open_directions(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"scheduler/scheduler_config\.json"):
        load_dm(tmp_path)
    with pytest.raises(FileNotFoundError, match="is not a file"):
        read_weights(tmp_path)


def test_what_is_not_there_is_refused_with_what_could_be_meant(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"runs that come with the package: digits"):
        open_directions(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="MNIST32-small"):
        load_dm("")


def test_a_diffusion_model_s_file_is_not_taken_for_directions(tiny_dm):
    with pytest.raises(ValueError, match="hdiscovery-dm-1"):
        open_directions(tiny_dm)
