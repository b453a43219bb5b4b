"""The official files of the data sets, downloaded once."""

import os
import urllib.request
import zipfile
import zlib
from http.client import HTTPException
from pathlib import Path

from filelock import FileLock
from tqdm import tqdm

from plumbing import files
from plumbing.errors import UserError

# name → official file → (address, bytes, SHA-256). HotpotQA's address is plain http, as its README has it: whatever
# happens on the way, only the right bytes pass.
_HOTPOTQA = "http://curtis.ml.cmu.edu/datasets/hotpot/hotpot_"
_2WIKI = ("https://www.dropbox.com/s/ms2m13252h6xubs/data_ids_april7.zip?dl=1", 258_968_175,
          "95df2bf56fdabe034e27aebc580e02264232203cf52552f9efe8a919e5529eef")  # fmt: skip
OFFICIAL = {
    "hotpotqa": {
        "train": (_HOTPOTQA + "train_v1.1.json", 566_426_227,
                  "26650cf50234ef5fb2e664ed70bbecdfd87815e6bffc257e068efea5cf7cd316"),
        "dev": (_HOTPOTQA + "dev_distractor_v1.json", 46_320_117,
                "4e9ecb5c8d3b719f624d66b60f8d56bf227f03914f5f0753d6fa1b359d7104ea"),
    },
    "2wiki": {"train": _2WIKI, "dev": _2WIKI},
}  # fmt: skip


def official_file(name: str, part: str) -> tuple[Path, bytes]:
    """Where the records of a data set's part, "train" or "dev", stand, and what stands there.

    UserError says why the download failed or what is damaged."""
    path = download(*OFFICIAL[name][part])
    if path.suffix != ".zip":
        return path, path.read_bytes()
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.namelist():
                if Path(member).name == f"{part}.json":  # in whatever folder
                    return path / member, archive.read(member)
        raise zipfile.BadZipFile(f"it has no {part}.json")
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise UserError(f"{path} is damaged ({error}): delete it, and the same command downloads it anew") from None


def download(url: str, size: int, sha256: str) -> Path:
    """The file of `size` bytes at `url`, downloaded into the folder LMCOT_DATA (~/.cache/lmcot) if it is not there.

    What has arrived stays in a .part file, and the next call goes on with it. One process downloads; others wait.
    UserError says why a download failed, and where to put the file by hand."""
    folder = Path(os.environ.get("LMCOT_DATA") or "~/.cache/lmcot").expanduser()
    path = folder / url.split("?")[0].split("/")[-1]
    part = folder / f"{path.name}.part"
    if path.exists():
        return path
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # The operating system's lock ends with its process. A soft lock would outlive a process that was killed.
        with FileLock(f"{path}.lock", fallback_to_soft=False):
            if path.exists():  # another process was faster
                return path
            _append_rest(url, part, size)
            if files.sha256(part) != sha256:
                os.truncate(part, 0)
                raise OSError("what came is not the official file, for its SHA-256 differs")
            part.replace(path)
            return path
    except (OSError, HTTPException) as error:
        by_hand = f"or put {path.name} into {folder} by hand"
        raise UserError(f"{url}: {error}; run the same command again to go on, {by_hand}") from None


def _append_rest(url: str, part: Path, size: int) -> None:
    """Downloads what the file `part` still lacks of its `size` bytes."""
    with open(part, "ab") as file:
        here = file.tell()
        if here == size:
            return
        request = urllib.request.Request(url, headers={"Range": f"bytes={here}-"})
        with urllib.request.urlopen(request, timeout=60) as response:  # seconds without a byte
            if here and response.status != 206:  # 206: the rest, as asked for; 200: all of it
                here = 0
                file.truncate(here)
            if response.length not in (None, size - here):
                raise OSError(f"the file there has {here + response.length:,} bytes instead of {size:,}")
            # disable=False: under torchrun, where only the first process shows bars, another one may be here
            with tqdm(desc=part.stem, total=size, initial=here, unit="B", unit_scale=True, disable=False) as bar:
                while chunk := response.read1(min(1 << 20, size - here)):
                    here += file.write(chunk)
                    bar.update(len(chunk))
    if here < size:
        raise OSError(f"the connection was cut after {here:,} of {size:,} bytes")
