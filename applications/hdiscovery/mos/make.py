"""Make a study: draw every direction and write a page for each rater."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hdiscovery.mos.assignment import assign, codes
from hdiscovery.mos.study import Study
from hdiscovery.pages.draw import Progress, draw_strips, even_shifts
from hdiscovery.pages.pictures import sheet
from hdiscovery.pages.render import data_uri, render, write_whole

if TYPE_CHECKING:
    from hdiscovery.directions.direction_set import DirectionSet


def make_study(
    directions: DirectionSet,
    folder: Path,
    *,
    raters: int,
    examples: int = 8,
    strengths: int = 9,
    seed: int = 0,
    progress: Progress = iter,
) -> Study:
    """Write a study: ``study.json``, ``index.html`` for its organiser, ``raters/*.html``.

    Each rater's page is a single file. Every direction has its own examples, so a rater never sees
    a sample twice. The pages contain neither scores nor the numbers of directions.

    Costs ``K * examples * strengths`` samples.

    Args:
        directions: The directions.
        folder: The study's folder, which must not exist. It appears only when it is complete.
        raters: Number of raters, at least 2.
        examples: Samples of each direction; the paper takes 8.
        strengths: Shifts of each sample, an odd number; the paper takes 9.
        seed: Seed of samples, codes and assignment.
        progress: Wraps the loop over directions, as ``tqdm`` does.

    Returns:
        The study.

    Raises:
        FileExistsError: If ``folder`` exists.
        ValueError: If an argument is out of range.
    """
    if folder.exists():
        raise FileExistsError(
            f"The study {folder} exists already, and raters may be answering it. Choose another "
            "folder."
        )
    K, S = directions.K, directions.S
    work, names = assign(K, raters, seed=seed), codes(K, seed=seed)
    shifts = even_shifts(S, strengths)
    sheets = []
    for k in progress(range(K)):
        own = int.from_bytes(hashlib.sha256(f"{seed} {k}".encode()).digest()[:6], "big")
        sheets.append(sheet(draw_strips(directions, k, samples=examples, shifts=shifts, seed=own)))
    width = len(str(raters))
    assigned = {f"r{rater + 1:0{width}}": [names[k] for k in own] for rater, own in enumerate(work)}
    study = Study(
        id=_id(sheets, names, assigned), run=directions.name, step=directions.trained_steps, S=S,
        examples=examples, strengths=strengths, seed=seed, codes=names, raters=assigned,
    )  # fmt: skip
    _write(study, folder, sheets, directions.dm.image_shape)
    return study


def _id(sheets: Sequence[bytes], names: list[str], assigned: dict[str, list[str]]) -> str:
    digest = hashlib.sha256(repr((names, assigned)).encode())
    for picture in sheets:
        digest.update(picture)
    return digest.hexdigest()[:10]


def _write(study: Study, folder: Path, sheets: Sequence[bytes], image_shape: Sequence[int]) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        partial.chmod(0o755)
        (partial / "raters").mkdir()
        (partial / "answers").mkdir()
        write_whole(partial / "study.json", study.to_json())
        write_whole(partial / "index.html", render("mos", "organiser", study=study))
        by_code = dict(zip(study.codes, sheets, strict=True))
        for rater, own in study.raters.items():
            pictures = {code: data_uri(by_code[code]) for code in own}
            page = rater_page(study, rater, pictures, image_shape=image_shape)
            write_whole(partial / "raters" / f"{rater}.html", page)
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial)
        raise


def rater_page(
    study: Study, rater: str, pictures: dict[str, str], *, image_shape: Sequence[int]
) -> str:
    """Return the page of one rater.

    Args:
        study: The study.
        rater: The code of one of its raters.
        pictures: URL of each direction's sheet, by code, in the order of the page.
        image_shape: Shape of one image, ``[C, H, W]``.
    """
    _, H, W = image_shape
    half = study.strengths // 2
    return render(
        "mos",
        "rater",
        study=study,
        rater=rater,
        pictures=pictures,
        shifts=range(-half, half + 1),
        size=(study.strengths * W, study.examples * H),
        edge=max(H, W) * max(1, 64 // max(H, W)) if max(H, W) <= 64 else 96,
        small=max(H, W) <= 64,
        facts={"study": study.id, "rater": rater, "directions": list(pictures)},
    )
