"""Files of the Hugging Face hub."""

import re
from pathlib import Path

from plumbing.errors import UserError

HUB_ID = re.compile(r"(?![^@]*(--|\.\.))\w[\w.-]*(/\w[\w.-]*)?(@\w[\w./-]*)?")  # t5-small, google/flan-t5-xxl@main


def beside_the_program(place: str | Path) -> Path:
    """Where the embedded pair is, wherever the program is called from."""
    return Path(__file__).resolve().parents[1] / place


def is_hub_id(place: str | Path) -> bool:
    """Whether this text names a repository of the Hugging Face hub; a `Path`, and what exists here, does not."""
    return isinstance(place, str) and HUB_ID.fullmatch(place) is not None and not (
        Path(place).exists() or beside_the_program(place).exists()
    )


def fetch(place: str | Path, *names: str) -> Path:
    """The first of these files that a folder, or a repository of the hub (`id` or `id@revision`), has.

    huggingface_hub downloads that file only; its cache and its HF_HOME, HF_HUB_OFFLINE, HF_ENDPOINT and HF_TOKEN count.
    UserError says that there is none, or why the hub did not give it, and what to do.
    """
    beside = beside_the_program(place)
    if not Path(place).exists() and beside.exists():
        place = beside
    failure = None
    if not is_hub_id(place):
        files = [Path(place).expanduser() / name for name in names]
        if found := [file for file in files if file.is_file()]:
            return found[0]
    else:
        import huggingface_hub as hub  # here, since whoever has folders does not need it

        repository, _, revision = place.partition("@")
        for name in names:
            options = {"revision": revision or None, "local_files_only": failure is not None}
            try:
                return Path(hub.hf_hub_download(repository, name, **options))
            except hub.errors.RemoteEntryNotFoundError:
                continue
            except Exception as e:  # of HTTP, Xet, the disk …: they share no base class
                failure = failure or e  # for the other names, only the cache is asked
    if failure is None:
        raise UserError(f"{place}: no {' or '.join(names)} there")
    problem = {
        "RepositoryNotFoundError": "no such folder here, no such repository on the hub (if private: set HF_TOKEN)",
        "GatedRepoError": "the repository is gated: ask for access on its page of the hub, then set HF_TOKEN",
        "RevisionNotFoundError": f"no revision {revision or 'main'} there: give a branch, a tag or a commit hash",
        "LocalEntryNotFoundError": "no such folder here, not in the hub's cache, and no hub "
                                   f"({str(failure.__cause__).partition('. ')[0]}): "
                                   "load it once with a connection and without HF_HUB_OFFLINE, or give a folder",
    }.get(type(failure).__name__, f"download failed ({failure}): try again; on a full disk, make room or set HF_HOME")
    raise UserError(" ".join(f"{place}: {problem}".split()))
