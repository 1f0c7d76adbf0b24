"""The public prompt files, each at a pinned commit and with its digest; fetched into the cache."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from flowopd_cli.errors import ArtifactError, PromptError
from flowopd_cli.system.files import atomic_write, sha256_file
from flowopd_cli.system.paths import cache_dir
from flowopd_cli.system.text import suggest

RAW = "https://raw.githubusercontent.com"
TIMEOUT = 60.0
LARGEST = 64 << 20  # bytes of a file of prompts
GIT_DIGITS = 40
_log = logging.getLogger("flowopd")


@dataclass(frozen=True)
class PromptFile:
    """A file of a repository: its path there, its name here, and its digest, sha256 or git's own SHA-1."""

    path: str
    name: str
    pin: str

    @property
    def kind(self) -> str:
        """The kind of the digest."""
        return "git's SHA-1" if len(self.pin) == GIT_DIGITS else "sha256"

    def digest(self, data: bytes) -> str:
        """The digest of a content, of the kind of the pinned one."""
        if len(self.pin) == GIT_DIGITS:
            return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
        return hashlib.sha256(data).hexdigest()


@dataclass(frozen=True)
class PromptSource:
    """The files of one public set of prompts at a commit of their repository."""

    name: str
    repo: str
    revision: str
    files: tuple[PromptFile, ...]
    what: str

    @property
    def folder(self) -> Path:
        """Its folder in the cache."""
        return cache_dir() / "prompts" / f"{self.name}-{self.revision[:12]}"


@dataclass(frozen=True)
class Fetched:
    """A local copy of a set: its file or folder, the sha256 of each file, and whether all match their pins."""

    path: Path
    digests: Mapping[str, str]
    verified: bool


_COMPBENCH = {
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
_GENEVAL = PromptFile(
    "prompts/evaluation_metadata.jsonl",
    "geneval_evaluation_metadata.jsonl",
    "5c48e0813e812e3c373fa5c8ed07a8f0a483be30272b4427b0559c8048e67c13",
)
_GENEVAL2 = PromptFile(
    "geneval2_data.jsonl",
    "geneval2_data.jsonl",
    "09233adbc9f877fba205f1a20efa4a8640e7e62a91dfd55893562bed8a928e43",
)
_CVTG = {
    "CVTG/2": "e8aa98a4f5d609f8699131328876760fbbf33db8320770188fc3979f3fa345c8",
    "CVTG/3": "36fca11a221236643ed9595d5302884db01e832309a61b230fab3eefdeff1be0",
    "CVTG/4": "24fb02addf2caae050d2e67e29af98fe10d1e086093cf43d3592bcdac8557c2c",
    "CVTG/5": "24d5a3afc060477cdcf5b678018d81c78e18dc0054aafacf8b02a69ae24118b2",
    "CVTG-Style/2": "61324577c690c4383597fffe53614d87088be108a3e577288d8e8baf71381489",
    "CVTG-Style/3": "26a92b4a53e5dc497317fb3a219121790b7a7c9da10b87b8dd3633fcadff0f97",
    "CVTG-Style/4": "1d1fe6c367191fd8a3939687f70b3e8bda83c0539344977506e09e2732e4e3ff",
    "CVTG-Style/5": "da102c0239726d1fcdf3f4cfccacd34e71d4c0a588e5a893f4bc94b03fff353a",
}


def _flow_opd(name: str, path: str, what: str, pin: str) -> PromptSource:
    file = PromptFile(f"dataset/{path}", path.replace("/", "_"), pin)
    return PromptSource(name, "CostaliyA/Flow-OPD", "434ab16911fc580f51e22107151915846222eb6a", (file,), what)


def _longtext(language: str, file: str, sha256: str) -> PromptSource:
    what = f"LongText-Bench: 160 {'English' if language == 'en' else 'Chinese'} prompts with texts to write"
    return PromptSource(
        f"longtext-{language}",
        "X-Omni-Team/X-Omni",
        "2b8237bb3789638c290eeda3e83ed81bd3652c3b",
        (PromptFile(f"textbench/{file}", f"longtext_{file}", sha256),),
        what,
    )


_SOURCES = (
    PromptSource(
        "geneval",
        "djghosh13/geneval",
        "af4902f24d3ca90ebbb446dd9891a59e0f82725f",
        (_GENEVAL,),
        "GenEval's 553 evaluation prompts with their metadata",
    ),
    PromptSource(
        "geneval2",
        "facebookresearch/GenEval2",
        "a6e82d2289e8d418f27f0adee77908b07060eea3",
        (_GENEVAL2,),
        "GenEval 2's 800 prompts with their questions (CC BY-NC 4.0)",
    ),
    _flow_opd(
        "ocr",
        "ocr/test.txt",
        "1018 test prompts with a text to write in double quotes",
        "4dd8caf3ab6ade73bd376c7d14c6ca49b6eacfb1bd321e22c40714ae4a98d4dc",
    ),
    PromptSource(
        "t2i-compbench",
        "Karine-Huang/T2I-CompBench",
        "1b7094991a57f3c22abdd4f6e8ba6c1a15517073",
        tuple(PromptFile(f"examples/dataset/{k}.txt", f"{k}.txt", digest) for k, digest in _COMPBENCH.items()),
        "T2I-CompBench++: 8 categories of 300 prompts, the parts of complex, the object names",
    ),
    _flow_opd(
        "pickscore",
        "pickscore_sfw/test.txt",
        "1024 test prompts of Pick-a-Pic that are safe for work",
        "d839050acb06aa045e399e76a81e4ade9a55fc743dc0e22e7b3eaeaca5c19107",
    ),
    _longtext("en", "text_prompts.jsonl", "a2130769e72bd8560470a066114cdac87f80f1eb071ba6bc0f7033225a9be0d8"),
    _longtext("zh", "text_prompts_zh.jsonl", "6512cd121ac093e8113e114d76eb2c0ce967c220b18e2049e1063554ce496758"),
    PromptSource(
        "cvtg-2k",
        "zlab-princeton/i1",  # a copy of the authors' archive on the Hub, dnkdnk/CVTG-2K
        "b58a62f4a301370f35c5873bcb453bf7eea9f0e4",
        tuple(
            PromptFile(f"benchmark_eval/cvtg-2k/prompts/{name}.json", f"{name}.json", digest)
            for name, digest in _CVTG.items()
        ),
        "CVTG-2K: 2,000 prompts with 2 to 5 texts to write (Apache-2.0)",
    ),
    _flow_opd(
        "drawbench",
        "drawbench/test.txt",
        "DrawBench: 200 prompts, five lines each",
        "9006b98feabb94b28a2bc0c88de42fd4f31a9ec3c2a19e308a02c5385b7172f0",
    ),
    PromptSource(
        "dpg-bench",
        "TencentQQGYLab/ELLA",
        "3c228f1dc6c4d3cad0a47493816151a419f14db3",
        (PromptFile("dpg_bench/dpg_bench.csv", "dpg_bench.csv", "98457fc9901943f51ff9a30367250fc292533bed"),),
        "DPG-Bench: 1,065 prompts with their questions",
    ),
    _flow_opd(
        "ocr-train",
        "ocr/train.txt",
        "19,653 training prompts with a text to write",
        "3ce0521b77b0a9031191d66ecc36ebaaf27a3922",
    ),
    _flow_opd(
        "pickscore-train",
        "pickscore_sfw/train.txt",
        "15,486 training prompts of Pick-a-Pic",
        "edb46f78d7d93df0bafb30568074463822312ee339200f627195ccb2ff1d2f7a",
    ),
)
SOURCES: Mapping[str, PromptSource] = {source.name: source for source in _SOURCES}


def fetch(
    name: str,
    *,
    local: Path | None = None,
    out: Path | None = None,
    warn: Callable[[str], None] = _log.warning,
) -> Fetched:
    """A set from the cache, the network or, with ``local``, a file or folder; ``out`` is a folder that gets a copy.

    A download whose digest differs from the pinned one is refused; such a local file is used in place, with a warning.
    Local files with the pinned digests are copied to the cache.

    Raises :class:`PromptError`: there is no such set; near names are suggested.
    Raises :class:`ArtifactError`: a file is missing, cannot be fetched, or has another digest than the pinned one.
    Raises :class:`StorageError`: the cache or ``out`` cannot be written.
    """
    if name not in SOURCES:
        raise PromptError(f"no prompt set {name!r}{suggest(name, list(SOURCES))}; known: {', '.join(SOURCES)}")
    source = SOURCES[name]
    folder = local or source.folder
    paths = _cached(source) if local is None else _local(source, local)
    digests = {file.name: sha256_file(path) for file, path in zip(source.files, paths, strict=True)}
    verified = True
    for file, path in zip(source.files, paths, strict=True):
        digest = file.digest(path.read_bytes())
        if digest != file.pin:
            verified = False
            warn(f"{path}: {file.kind} is {digest}, that of {name} is {file.pin}: used all the same")
    for target in [source.folder] * (local is not None and verified) + ([out] if out else []):
        for file, path in zip(source.files, paths, strict=True):
            atomic_write(target / file.name, path.read_bytes())
        folder, paths = target, [target / file.name for file in source.files]
    return Fetched(paths[0] if len(paths) == 1 else folder, digests, verified)


def is_public(name: str, local: str | Path | None, files: Sequence[str] = ()) -> bool:
    """Whether a local file or folder has the pinned digests of a set, or of some of its ``files`` by our names.

    ``None``, which stands for the fetched files, has.

    Raises :class:`ArtifactError`: a file is missing.
    """
    if local is None:
        return True
    source = SOURCES[name]
    source = replace(source, files=tuple(file for file in source.files if not files or file.name in files))
    paths = _local(source, Path(local))
    return all(file.digest(path.read_bytes()) == file.pin for file, path in zip(source.files, paths, strict=True))


def _cached(source: PromptSource) -> list[Path]:
    paths = [source.folder / file.name for file in source.files]
    for file, path in zip(source.files, paths, strict=True):
        if not path.is_file() or file.digest(path.read_bytes()) != file.pin:
            atomic_write(path, _download(source, file))
    return paths


def _download(source: PromptSource, file: PromptFile) -> bytes:
    import httpx2 as httpx

    url = f"{RAW}/{source.repo}/{source.revision}/{file.path}"
    try:
        data = b""
        with httpx.stream("GET", url, timeout=TIMEOUT, follow_redirects=True) as answer:
            for chunk in answer.raise_for_status().iter_bytes():
                data += chunk
                if len(data) > LARGEST:
                    raise ArtifactError(f"{url}: is larger than {LARGEST} bytes; nothing was stored")
    except httpx.HTTPError as error:
        reason = str(error).partition("\n")[0]
        raise ArtifactError(
            f"{url}: cannot be fetched ({reason}); download it yourself and run: "
            f"flowopd prompts fetch {source.name} --from PATH"
        ) from error
    digest = file.digest(data)
    if digest != file.pin:
        raise ArtifactError(f"{url}: {file.kind} is {digest}, expected {file.pin}; the file was discarded")
    return data


def _local(source: PromptSource, place: Path) -> list[Path]:
    """The files of a set: the given file, or files of a folder under our name, the repository path or its last part."""
    if place.is_file() and len(source.files) == 1:
        return [place]
    if not place.is_dir():
        kind = "file or folder" if len(source.files) == 1 else f"folder with the {len(source.files)} files"
        raise ArtifactError(f"{place}: no such {kind} of {source.name}")
    paths = []
    for file in source.files:
        candidates = [place / name for name in (file.name, file.path, Path(file.path).name)]
        path = next((path for path in candidates if path.is_file()), None)
        if path is None:
            raise ArtifactError(f"{place}: has no {file.name} nor {file.path}")
        paths.append(path)
    return paths
