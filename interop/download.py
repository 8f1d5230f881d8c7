"""Public files, downloaded once into the user's cache and known by their checksums."""

import hashlib
import http.client
import os
import urllib.request
from pathlib import Path

from tqdm import tqdm

from models.errors import UserError, unknown
from models.files import atomically

# name: (url, SHA-256 in hex, or as many of its first digits as its publisher tells)
PUBLIC_FILES = {
    "pt_inception-2015-12-05-6726825d.pth": (
        "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth",
        "6726825d",
    ),
    "vgg16-397923af.pth": (
        "https://download.pytorch.org/models/vgg16-397923af.pth",
        "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
    ),
    "alexnet-owt-7be5be79.pth": (
        "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
        "7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",
    ),
    "vgg.pth": (
        "https://raw.githubusercontent.com/richzhang/PerceptualSimilarity/master/lpips/weights/v0.1/vgg.pth",
        "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868",
    ),
    "alex.pth": (
        "https://raw.githubusercontent.com/richzhang/PerceptualSimilarity/master/lpips/weights/v0.1/alex.pth",
        "df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0",
    ),
}
CHUNK = 2**20  # bytes
TIMEOUT = 60  # seconds without an answer


def cache_folder() -> Path:
    """Where downloads and features of references are kept: $XDG_CACHE_HOME or ~/.cache, /tessera."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tessera"


def public_file(name: str) -> Path:
    """The path of a file of `PUBLIC_FILES`: from the cache, or downloaded into it.

    Raises UserError for a name that the table lacks, where the download fails, and where its checksum is another one;
    then nothing is kept.
    """
    if name not in PUBLIC_FILES:
        raise unknown("public file", name, PUBLIC_FILES)
    path = cache_folder() / name
    if not path.exists():
        url, digits = PUBLIC_FILES[name]
        with atomically(path) as temporary:
            found = _download(url, temporary, path)
            if not found.startswith(digits):
                raise UserError(
                    f"{url} has the SHA-256 {found}, which should begin with {digits}; it was not kept: "
                    f"try again, or put the right file at {path}."
                )
    return path


def sha256(path: str | Path) -> str:
    """A file's SHA-256 in hex."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _download(url: str, temporary: Path, path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as answer, temporary.open("wb") as file:
            total = int(answer.headers.get("Content-Length") or 0)
            with tqdm(desc=path.name, total=total or None, unit="B", unit_scale=True, disable=None) as bar:
                while chunk := answer.read(CHUNK):
                    file.write(chunk)
                    digest.update(chunk)
                    bar.update(len(chunk))
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise UserError(f"{url} could not be downloaded ({reason}); bring the file to {path} yourself.") from None
    return digest.hexdigest()
