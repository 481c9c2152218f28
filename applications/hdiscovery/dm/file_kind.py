"""What a file is, by its first bytes: an error that says so saves its reader a look."""

from __future__ import annotations

from pathlib import Path

HEAD = 512  # bytes that are looked at
MAGIC = {
    b"PK\x03\x04": "a zip archive, as torch.save writes it",
    b"\x80": "a pickle, as older versions of torch.save wrote it",
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"\x89HDF": "an HDF5 file",
    b"\x1f\x8b": "a gzip archive",
    b"version https://git-lfs": "a Git LFS pointer; `git lfs pull` fetches the file it stands for",
    b"<!DOCTYPE": "a web page, perhaps of a download that needs a login",
    b"<html": "a web page, perhaps of a download that needs a login",
}


def kind_of(path: Path) -> str:
    """Return what is at a path, in words.

    Raises:
        OSError: If it cannot be read.

    Example:
        >>> kind_of(Path(__file__))
        'a text file'
    """
    if path.is_dir():
        return "a folder"
    with path.open("rb") as file:
        head = file.read(HEAD)
    if not head:
        return "an empty file"
    # Safetensors: the length of a JSON object as 8 bytes, then the object.
    if len(head) > 8 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 2**27:
        return "a safetensors file"
    for magic, kind in MAGIC.items():
        if head.startswith(magic):
            return kind
    return "a text file" if _is_text(head) else "binary data of an unknown kind"


def _is_text(head: bytes) -> bool:
    # The last character may be cut.
    text = head.decode("utf-8", errors="replace").removesuffix("\ufffd")
    return all(c.isprintable() or c in "\t\r\n\f" for c in text) and "\ufffd" not in text
