"""The public prompt files: each at a pinned revision, checked by its sha256, kept in the cache. No torch here.

The product does not carry them. Where no digest is known, the pinned commit is all that vouches for a file, and every
fetch of it says so.
"""

from __future__ import annotations

import hashlib
import http.client
import logging
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from flowopd_cli.errors import ArtifactError, PromptError
from flowopd_cli.system.files import atomic_write, sha256_file
from flowopd_cli.system.paths import cache_dir
from flowopd_cli.system.text import suggest

RAW = "https://raw.githubusercontent.com"
TIMEOUT = 60.0
LARGEST = 64 << 20
Tell = Callable[[str], None]
_log = logging.getLogger("flowopd")


@dataclass(frozen=True)
class PromptFile:
    """A file of a repository: its path there, the name it gets here, its sha256, and how many lines it should have.

    ``sha256`` is ``None`` where none is known.
    """

    path: str
    name: str
    sha256: str | None = None
    lines: int | None = None


@dataclass(frozen=True)
class PromptSource:
    """The files of one public set of prompts at a commit of their repository."""

    name: str
    repo: str
    revision: str
    files: tuple[PromptFile, ...]
    what: str
    license: str = "MIT"

    @property
    def verified(self) -> bool:
        """Whether a digest is known for every file."""
        return all(file.sha256 for file in self.files)

    @property
    def folder(self) -> Path:
        """Where the cache keeps it."""
        return cache_dir() / "prompts" / f"{self.name}-{self.revision[:12]}"

    def url(self, file: PromptFile) -> str:
        """Where a file comes from."""
        return f"{RAW}/{self.repo}/{self.revision}/{file.path}"


@dataclass(frozen=True)
class Fetched:
    """A set as it lies on this machine: ``path`` is its file, or its folder; ``digests`` the sha256 of each file.

    ``verified`` is true when all of them are the pinned ones.
    """

    path: Path
    digests: Mapping[str, str]
    verified: bool


def _compbench() -> tuple[PromptFile, ...]:
    digests = {
        "3d_spatial_val": "c9953597315f36a5fcb41291bb19bdc6ab5f64a0fa760d691b4854a73f5d1fe9",
        "color_val": "1634259756dbc77d13093d907d414480080ec9790a8c97ad09efaea7b2534f2d",
        "complex_val": "1b808018b8d9916db3d47d5aa2ef18377a3549a56901a474156f799824cdf3b4",
        "complex_val_action": "d49ee4c7f99e3f3379fb8704a54ff5288b83bb412971edf616a4721c2473308e",
        "complex_val_spatial": "6c7ac0ab75c7c9080cfc7b421fb059b9b0febb98471707aeedf58771088abc02",
        "complex_val_spatialaction": "e02ddc7fed812e6577e7386ec2137ce0a994a5ce19771661f68df7ac349a6ca9",
        "new_objects": "f39a3d2ff6067d7738673cbf465dc659ccc750776162989a5d9916f1d5f3e231",
        "non_spatial_val": "04c56cc9ac441dc9ea6c5157652058bd1635b5308526dd31bb29a1caab9a758d",
        "numeracy_val": "dad8df141604b70ba7554bec724e3db0a80023680769b5c514854ea2d2527bbe",
        "shape_val": "37e1a276906c7ea9516cbd7ac8501be896006c0c17ca7344f260562834455bae",
        "spatial_val": "8707a1d7e42ce3002d95363cf55f74bd043c843ae27108f5125aaaa7840ca988",
        "texture_val": "fbb5363515b4a28009e360afaaaf389d2dd2289e50dbb0c6ef4ea0c7fe4f3d4f",
    }
    return tuple(PromptFile(f"examples/dataset/{k}.txt", f"{k}.txt", digest) for k, digest in digests.items())


def _flow_opd(name: str, path: str, sha256: str | None, lines: int, what: str) -> PromptSource:
    file = PromptFile(f"dataset/{path}", path.replace("/", "_"), sha256, lines)
    return PromptSource(name, "CostaliyA/Flow-OPD", "434ab16911fc580f51e22107151915846222eb6a", (file,), what)


_GENEVAL = PromptFile(
    "prompts/evaluation_metadata.jsonl",
    "geneval_evaluation_metadata.jsonl",
    "5c48e0813e812e3c373fa5c8ed07a8f0a483be30272b4427b0559c8048e67c13",
    553,
)
SOURCES: Mapping[str, PromptSource] = {
    source.name: source
    for source in (
        PromptSource(
            "geneval",
            "djghosh13/geneval",
            "af4902f24d3ca90ebbb446dd9891a59e0f82725f",
            (_GENEVAL,),
            "GenEval's 553 evaluation prompts with their metadata",
        ),
        _flow_opd(
            "ocr",
            "ocr/test.txt",
            "4dd8caf3ab6ade73bd376c7d14c6ca49b6eacfb1bd321e22c40714ae4a98d4dc",
            1018,
            "1018 test prompts with a text to write in double quotes",
        ),
        PromptSource(
            "t2i-compbench",
            "Karine-Huang/T2I-CompBench",
            "1b7094991a57f3c22abdd4f6e8ba6c1a15517073",
            _compbench(),
            "T2I-CompBench++: 8 categories of 300 prompts, the parts of complex, the object names",
        ),
        _flow_opd(
            "pickscore",
            "pickscore_sfw/test.txt",
            "d839050acb06aa045e399e76a81e4ade9a55fc743dc0e22e7b3eaeaca5c19107",
            1024,
            "1024 test prompts of Pick-a-Pic that are safe for work",
        ),
        _flow_opd("drawbench", "drawbench/test.txt", None, 1000, "DrawBench: 200 prompts, five lines each"),
        _flow_opd("ocr-train", "ocr/train.txt", None, 19653, "19,653 training prompts with a text to write"),
        _flow_opd("pickscore-train", "pickscore_sfw/train.txt", None, 15486, "training prompts of Pick-a-Pic"),
    )
}


def find(name: str) -> PromptSource:
    """The set of a name.

    Raises:
        PromptError: there is none; near names are suggested.
    """
    if name not in SOURCES:
        raise PromptError(f"no prompt set {name!r}{suggest(name, list(SOURCES))}; known: {', '.join(SOURCES)}")
    return SOURCES[name]


def fetch(
    name: str,
    *,
    local: Path | None = None,
    out: Path | None = None,
    adopt: bool = False,
    tell: Tell = _log.warning,
) -> Fetched:
    """A set from the cache, the net or, with ``local``, a file or folder; ``out`` is a folder that gets a copy.

    What was fetched and has another digest than the pinned one is refused. A local file of another digest is remarked
    on through ``tell`` and used where it is; one that is pinned goes into the cache, and with ``adopt`` also one for
    which no digest is known.

    Raises:
        PromptError: there is no such set.
        ArtifactError: a file is missing, cannot be fetched, or is not the one expected.
    """
    source = find(name)
    found = _fetched(source, tell) if local is None else _given(source, local, adopt, tell)
    if out is None:
        return found
    for file, path in zip(source.files, _paths(source, found.path), strict=True):
        _keep(out / file.name, path.read_bytes())
    return Fetched(_result(source, out), found.digests, found.verified)


def _result(source: PromptSource, folder: Path) -> Path:
    return folder / source.files[0].name if len(source.files) == 1 else folder


def _fetched(source: PromptSource, tell: Tell) -> Fetched:
    digests = {}
    for file in source.files:
        path = source.folder / file.name
        if not path.is_file() or (file.sha256 is not None and sha256_file(path) != file.sha256):
            _keep(path, _download(source, file))
        digests[file.name] = sha256_file(path)
        _remark(source, file, path, tell)
    return Fetched(_result(source, source.folder), digests, source.verified)


def _download(source: PromptSource, file: PromptFile) -> bytes:
    url = source.url(file)
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as answer:
            data = answer.read(LARGEST + 1)
    except (OSError, http.client.HTTPException) as error:
        raise ArtifactError(
            f"{url}: cannot be fetched ({error}); get it elsewhere and run: "
            f"flowopd prompts fetch {source.name} --from PATH"
        ) from error
    if len(data) > LARGEST:
        raise ArtifactError(f"{url}: is larger than {LARGEST >> 20} MB, which no file of prompts is")
    digest = hashlib.sha256(data).hexdigest()
    if file.sha256 is not None and digest != file.sha256:
        raise ArtifactError(f"{url}: sha256 is {digest}, expected {file.sha256}; the file was not kept")
    return data


def _given(source: PromptSource, local: Path, adopt: bool, tell: Tell) -> Fetched:
    """The set from a file or folder of the user's."""
    paths = list(_paths(source, local))
    digests = {file.name: sha256_file(path) for file, path in zip(source.files, paths, strict=True)}
    another = [file for file in source.files if file.sha256 not in (None, digests[file.name])]
    for file, path in zip(source.files, paths, strict=True):
        if file in another:
            tell(f"{path}: sha256 is {digests[file.name]}, that of {source.name} is {file.sha256}: used all the same")
        else:
            _remark(source, file, path, tell)
    if another or not (source.verified or adopt):
        return Fetched(paths[0] if len(paths) == 1 else local, digests, verified=False)
    for file, path in zip(source.files, paths, strict=True):
        _keep(source.folder / file.name, path.read_bytes())
    return Fetched(_result(source, source.folder), digests, source.verified)


def _keep(path: Path, data: bytes) -> None:
    try:
        atomic_write(path, data)
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be written ({error}); FLOWOPD_CACHE names another cache") from error


def _paths(source: PromptSource, place: Path) -> Iterator[Path]:
    """The files of a set at a place: the file itself, or in a folder by our name, the repository's path or its end."""
    if place.is_file() and len(source.files) == 1:
        yield place
        return
    if not place.is_dir():
        kind = "file or folder" if len(source.files) == 1 else f"folder with the {len(source.files)} files"
        raise ArtifactError(f"{place}: no such {kind} of {source.name}")
    for file in source.files:
        tried = [place / name for name in (file.name, file.path, Path(file.path).name)]
        path = next((path for path in tried if path.is_file()), None)
        if path is None:
            raise ArtifactError(f"{place}: has no {file.name} nor {file.path}")
        yield path


def _remark(source: PromptSource, file: PromptFile, path: Path, tell: Tell) -> None:
    """Say what nobody has checked."""
    if file.sha256 is not None:
        return
    tell(f"{source.name}: no sha256 is known for {file.path} at {source.revision[:12]}: not verified")
    with path.open("rb") as handle:
        lines = sum(1 for line in handle if line.strip())
    if file.lines is not None and lines != file.lines:
        tell(f"{path}: has {lines} lines, {file.lines} were expected")
