"""edit, invert, publish and properties, as a user of the command line sees them."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from hdiscovery.cli import main
from hdiscovery.data.images import read_photo, save_image
from hdiscovery.directions.about import Calibration
from hdiscovery.directions.portable import PortableDirections, load_directions, save_directions
from PIL import Image
from safetensors.torch import load_file


def run(*words):
    return main([str(word) for word in words])


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for j, name in enumerate(("cat", "dog")):
        save_image(
            torch.rand(3, 20, 16, generator=torch.Generator().manual_seed(j)) * 2 - 1,
            folder / f"{name}.png",
        )
    return folder


def test_quality_is_printed_before_anything_is_edited_and_named_where_it_is_bad(
    tiny_run, photos, tmp_path, capsys, monkeypatch
):
    from hdiscovery.editing import editor

    before = []
    monkeypatch.setattr(
        editor, "edit", lambda *_, **__: before.append(capsys.readouterr().out) or 1 / 0
    )

    with pytest.raises(ZeroDivisionError):
        run(
            "edit",
            tiny_run,
            "--image",
            photos / "cat.png",
            "--inversion-steps",
            3,
            "--direction",
            "1:1",
            "--out",
            tmp_path,
        )

    assert "made grey, cut around the centre, 16 x 20 resized to 8 x 8" in before[0]
    assert "reconstruction PSNR" in before[0]
    assert "comes back badly" in before[0]


def test_a_folder_is_edited_along_two_directions_at_once_and_nothing_is_overwritten(
    tiny_run, photos, tmp_path, capsys
):
    words = (
        "edit",
        tiny_run,
        "--image",
        photos,
        "--inversion-steps",
        3,
        "--direction",
        "1:1",
        "--direction",
        "0:-2",
        "--out",
        tmp_path / "out",
    )
    assert run(*words) == 0

    names = [
        f"{animal}_direct_d1+1_d0-2{end}.png" for animal in ("cat", "dog") for end in ("", "_sheet")
    ]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(names)
    with Image.open(tmp_path / "out" / names[0]) as edited:
        assert edited.size == (8, 8)
    with Image.open(tmp_path / "out" / names[1]) as sheet:
        assert min(sheet.size) > 150
    assert run(*words) == 2
    assert "exists, and 3 more" in capsys.readouterr().err
    assert run(*words, "--overwrite") == 0


@pytest.mark.parametrize("directions", [("1",), ("1", "2"), ("1", "2:1")])
def test_strips_and_grids_come_from_a_file_of_directions_too(
    tiny_run, photos, tmp_path, directions
):
    options = [word for text in directions for word in ("--direction", text)]

    assert (
        run(
            "edit",
            tiny_run / "directions.safetensors",
            "--image",
            photos / "cat.png",
            "--inversion-steps",
            3,
            "--shifts",
            3,
            "--out",
            tmp_path / "out",
            *options,
        )
        == 0
    )

    name = "_".join(f"d{text.replace(':', '+')}" for text in directions)
    assert [p.name for p in (tmp_path / "out").iterdir()] == [f"cat_mean_{name}.png"]


def test_an_inverted_image_is_edited_as_the_image_itself(tiny_run, photos, tmp_path, capsys):
    cat = photos / "cat.png"
    edit = ("--direction", "2:1", "--out")
    assert (
        run("invert", tiny_run, "--image", cat, "--inversion-steps", 3, "--out", tmp_path / "i")
        == 0
    )
    assert run("edit", tiny_run, "--image", cat, "--inversion-steps", 3, *edit, tmp_path / "a") == 0
    assert (
        run("edit", tiny_run, "--image", tmp_path / "i" / "cat.safetensors", *edit, tmp_path / "b")
        == 0
    )

    a, b = (read_photo(tmp_path / x / "cat_direct_d2+1.png", (1, 8, 8)).x for x in "ab")
    assert torch.equal(a, b)
    assert (tmp_path / "i" / "cat.png").is_file()
    assert "inverted before, in 3 steps" in capsys.readouterr().out
    assert (
        run(
            "edit",
            tiny_run,
            "--image",
            tmp_path / "i" / "cat.safetensors",
            photos / "dog.png",
            "--inversion-steps",
            2,
            *edit,
            tmp_path / "c",
        )
        == 2
    )
    assert "different numbers of steps, [2, 3]" in capsys.readouterr().err


def test_a_model_alone_inverts_as_its_run_does(tiny_run, tiny_dm, photos, tmp_path):
    for model, out in ((tiny_run, "a"), (tiny_dm, "b")):
        assert (
            run("invert", model, "--image", photos, "--inversion-steps", 2, "--out", tmp_path / out)
            == 0
        )

    a, b = (load_file(tmp_path / x / "dog.safetensors") for x in "ab")
    assert torch.equal(a["x_T"], b["x_T"])


def test_calibrated_strengths_are_those_of_the_file(tiny_run, photos, tmp_path, capsys):
    directions = load_directions(tiny_run / "directions.safetensors")
    calibration = Calibration((0.5, 1.5, None), target=0.1, features="pixels", samples=1)
    about = replace(directions.about, calibration=calibration)
    file = save_directions(
        tmp_path / "d.safetensors", PortableDirections(about, directions.global_, None)
    )
    edit = ("edit", file, "--image", photos / "cat.png", "--inversion-steps", 3, "--out", tmp_path)
    assert run(*edit, "--direction", "1:2", "--unit", "calibrated") == 0
    assert run(*edit, "--direction", "1:2") == 0
    assert run(*edit, "--direction", "1:3") == 0

    calibrated, two, three = (
        read_photo(tmp_path / f"cat_global_d1+{end}.png", (1, 8, 8)).x
        for end in ("2_calibrated", "2", "3")
    )
    assert torch.equal(calibrated, three)
    assert not torch.equal(calibrated, two)
    assert run(*edit, "--direction", "2:1", "--unit", "calibrated") == 2
    assert "Give it a plain strength" in capsys.readouterr().err


def test_directions_are_named_and_asked_for_by_name(tiny_run, photos, tmp_path, capsys):
    file = shutil.copy(tiny_run / "directions.safetensors", tmp_path / "d.safetensors")
    capsys.readouterr()
    assert run("publish", file, "--label", "1=taller", "2=x", "2=") == 0

    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("1 (taller)")
    assert lines[2].startswith("2")
    assert "(" not in lines[2]
    assert (
        run(
            "edit",
            file,
            "--image",
            photos / "cat.png",
            "--inversion-steps",
            2,
            "--direction",
            "taller:1",
            "--out",
            tmp_path / "out",
        )
        == 0
    )
    assert (tmp_path / "out" / "cat_mean_d1+1.png").is_file()


def test_likeness_is_measured_and_drawn(tiny_run, photos, tmp_path, capsys):
    assert run("properties", tiny_run, "--samples", 2, "--shifts", 3, "--out", tmp_path) == 0

    report = json.loads((tmp_path / "properties.json").read_text())
    assert [of_k["k"] for of_k in report["directions"]] == [0, 1, 2]
    for of_k in report["directions"]:
        assert all(len(values) == 2 for values in of_k["cosines"].values())
        assert of_k["differences"]["pixels"]["size"] > 0
        assert set(of_k["differences"]) == {"pixels", "encoder"}
    assert (report["images"], report["given_images"], report["num_steps"]) == (2, 0, 4)
    assert "cosine of the mean and the global direction" in capsys.readouterr().out
    with Image.open(tmp_path / "properties.png") as figure:
        assert figure.height > figure.width  # six rows of three
    assert (
        run(
            "properties",
            tiny_run,
            "--image",
            photos / "cat.png",
            "--inversion-steps",
            3,
            "--samples",
            1,
            "--direction",
            1,
            "--shifts",
            3,
            "--out",
            tmp_path,
            "--overwrite",
        )
        == 0
    )
    report = json.loads((tmp_path / "properties.json").read_text())
    assert (report["images"], report["given_images"], report["num_steps"]) == (1, 1, 3)


def test_labels_of_a_run_are_kept_where_the_gallery_reads_them(tiny_run, tmp_path, capsys):
    folder = tmp_path / "run"
    folder.mkdir()
    shutil.copy(tiny_run / "config.json", folder)
    assert run("publish", folder, "--label", "1=taller", "0=x") == 0
    assert run("publish", folder, "--label", "0=") == 0

    assert json.loads((folder / "labels.json").read_text()) == {"0": "", "1": "taller"}
    assert capsys.readouterr().out.splitlines()[-3:] == ["0", "1 (taller)", "2"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("edit", "RUN", "--image", "PHOTO"), "at least once"),
        (("edit", "RUN", "--image", "PHOTO", "--direction", "3:1"), "directions are 0 … 2"),
        (("edit", "RUN", "--image", "PHOTO", "--direction", "1", "--shifts", "4"), "odd"),
        (("edit", "RUN", "--image", "PHOTO", "--direction", "1", "--span", "0"), "`--span`"),
        (("edit", "RUN", "--image", "PHOTO", "--direction", "1", "--dm", "a"), "has its diffusion"),
        (
            (
                "edit",
                "RUN",
                "--image",
                "PHOTO",
                "--direction",
                "1",
                "--inversion-steps",
                "2",
                "--sampling-steps",
                "0",
            ),
            "must lie in 1",
        ),
        (
            (
                "edit",
                "RUN",
                "--image",
                "PHOTO",
                "--direction",
                "1",
                "--inversion-steps",
                "2",
                "--batch-size",
                "0",
            ),
            "`--batch-size` must be at least 1",
        ),
        (("edit", "RUN", "--image", "gone.png", "--direction", "1"), "neither a file nor a folder"),
        (
            ("edit", "gone", "--image", "PHOTO", "--direction", "1"),
            "There are no directions at 'gone'",
        ),
        (
            ("edit", "RUN", "--image", "PHOTO", "--direction", "1", "--inversion-steps", "0"),
            "must lie in",
        ),
        (("edit", "RUN", "--image", "PHOTO", "--direction", "1", "--device", "abacus"), "--device"),
        (("invert", "gone", "--image", "PHOTO"), "shipped are"),
        (("publish", "RUN", "--to", "file"), "--overwrite"),
        (("publish", "gone", "--to", "file"), "not a run folder"),
        (
            ("publish", "RUN", "--to", "file", "--out", "a", "--samples", "0"),
            "`samples` must be at least 1",
        ),
        (("properties", "RUN", "--seed", "0", "--out", "."), "`--seed 0` draws the samples"),
        (("publish", "RUN/directions.safetensors", "--label", "3=a"), "K in 0 … 2"),
        (("publish", "RUN/directions.safetensors", "--label", "1=2"), "a label that is a number"),
    ],
)
def test_bad_input_is_an_error_that_says_what_to_do(
    tiny_run, photos, tmp_path, capsys, monkeypatch, words, message
):
    monkeypatch.chdir(tmp_path)
    words = [
        w.replace("RUN", str(tiny_run)).replace("PHOTO", str(photos / "cat.png")) for w in words
    ]

    assert run(*words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_an_image_is_not_replaced_by_its_inversion(tmp_path, capsys):
    photo = tmp_path / "digit.png"
    save_image(torch.zeros(1, 32, 32), photo)
    before = photo.read_bytes()
    words = ["invert", "MNIST32-small", "--image", str(photo), "--out", str(tmp_path)]

    assert main([*words, "--inversion-steps", "2", "--overwrite"]) == 2
    assert "would put a result in place of the image" in capsys.readouterr().err
    assert photo.read_bytes() == before
