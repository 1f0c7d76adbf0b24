"""The text reader of PaddleOCR 3, by default on onnxruntime, so that paddlepaddle is not needed.

The published OCR scores come from PaddleOCR 2.9.1, language ``en``: the English detector of PP-OCRv3 and the English
recognizer of PP-OCRv4. PaddleOCR has no ONNX files of these; ``models="PP-OCRv4"`` uses RapidAI's conversions of the
same two models, checked by their SHA-256. License of code and models: Apache-2.0.
"""

from __future__ import annotations

import logging
import re
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from numpy.typing import NDArray

from flowopd_cli.errors import ArtifactError, MissingDependency, RewardError
from flowopd_cli.rewards.ocr.rapidocr import bundled_model
from flowopd_cli.rewards.ocr.reading import DROP_SCORE, SIDE_LIMIT, PageReader, describe_error
from flowopd_cli.rewards.weights import download
from flowopd_cli.system.files import atomic_write, sha256_file
from flowopd_cli.system.paths import cache_dir

ONNX, CONFIG = "inference.onnx", "inference.yml"
PUBLISHED = "PP-OCRv4"
PUBLISHED_NAMES = {"det": "PP-OCRv3_mobile_det", "rec": "en_PP-OCRv4_mobile_rec"}
_CONVERTED = "https://www.modelscope.cn/models/RapidAI/RapidOCR/resolve/v3.10.0/onnx/PP-OCRv4/"
PUBLISHED_FILES = {
    "det": ("det/en_PP-OCRv3_det_mobile.onnx", "ea07c15d38ac40cd69da3c493444ec75b44ff23840553ff8ba102c1219ed39c2"),
    "rec": ("rec/en_PP-OCRv4_rec_mobile.onnx", "e8770c967605983d1570cdf5352041dfb68fa0c21664f49f47b155abd3e0e318"),
}
KINDS = {"det": "TextDetection", "rec": "TextRecognition"}
_STEM = re.compile(r"(?:(?P<lang>[a-z_]+)_)?PP-OCRv(?P<version>\d)_(?P<kind>det|rec)_(?P<size>[a-z]+)")
_MODEL_NAME = re.compile(r"^\s+model_name:\s*['\"]?([\w.+-]+)", re.MULTILINE)
ALTERNATIVES = (
    "name folders by text_detection_model_dir and text_recognition_model_dir, or use models=rapidocr or "
    "reader=rapidocr, which download nothing"
)


@dataclass(frozen=True)
class PaddleOptions:
    """Options of :class:`PaddleTextReader`.

    ``models``: ``default`` (those of the installed paddleocr), ``PP-OCRv4`` (English, as the published scores),
    ``rapidocr`` (the files inside that wheel, no download), or ``DETECTOR+RECOGNIZER`` in paddleocr's names.
    ``engine``: ``onnxruntime``, or another of paddleocr's, such as ``paddle``. The two folders override ``models``;
    for onnxruntime each holds ``inference.onnx`` and ``inference.yml``, or is an ``.onnx`` file as in rapidocr.
    ``drop_score`` is the confidence that a line needs. ``device`` is ``cpu``, ``gpu:0`` or ``auto``.
    """

    models: str = "default"
    engine: str = "onnxruntime"
    text_detection_model_dir: str | None = None
    text_recognition_model_dir: str | None = None
    drop_score: float = DROP_SCORE
    threads: int = 1
    device: str = "auto"


class OCRModel(NamedTuple):
    """A model's name in paddleocr, its folder, and its name in reports; all ``None`` for paddleocr's default."""

    name: str | None = None
    folder: Path | None = None
    label: str | None = None


class PaddleTextReader(PageReader):
    """Reads all lines of a picture with paddleocr 3."""

    def __init__(self, **options: Any) -> None:
        """The options are the fields of :class:`PaddleOptions`.

        Raises :class:`MissingDependency`: ``paddleocr``, or ``onnxruntime`` for that engine, is not installed.
        Raises :class:`RewardError`: an option is unknown, or paddleocr does not start with them.
        Raises :class:`ArtifactError`: a model's file is missing or is not the expected one.
        """
        self.options = PaddleOptions(**options)
        super().__init__(self.options.drop_score)
        paddleocr = _import(self.options.engine)
        models = {kind: choose_model(kind, self.options) for kind in KINDS}
        self._engine = _start(paddleocr, models, self.options)
        labels = "+".join(str(models[kind].label or name) for kind, name in _names(self._engine).items())
        dropped = "" if self.options.drop_score == DROP_SCORE else f"/drop={self.options.drop_score:g}"
        self.name = f"paddleocr-{paddleocr.__version__}/{self.options.engine}/{labels}{dropped}"

    def page(self, bgr: NDArray[np.uint8]) -> Iterable[tuple[str, float, Any]]:
        """The engine's result for one page."""
        result = self._engine.predict(bgr)[0]
        return zip(result["rec_texts"], result["rec_scores"], result["rec_polys"], strict=True)


def _import(engine: str) -> Any:
    try:
        if engine == "onnxruntime":
            import onnxruntime  # noqa: F401
        import paddleocr
    except ImportError as error:
        raise MissingDependency(str(error.name or "paddleocr"), extra="paddle") from error
    logging.getLogger("paddlex").setLevel(logging.WARNING)
    return paddleocr


def choose_model(kind: str, options: PaddleOptions) -> OCRModel:
    """The model of a ``kind``, ``det`` or ``rec``, that the options select, downloaded if necessary.

    Raises :class:`RewardError`: ``models`` names none.
    Raises :class:`ArtifactError`: its file is missing or is not the expected one.
    """
    folder = options.text_detection_model_dir if kind == "det" else options.text_recognition_model_dir
    if folder is not None:
        path = Path(folder)
        return onnx_folder(path, kind) if path.suffix == ".onnx" else _model_folder(path, options.engine)
    if options.models == "default":
        return OCRModel()
    if options.models == "rapidocr":
        return onnx_folder(bundled_model(kind), kind)
    if options.models == PUBLISHED and options.engine != "onnxruntime":
        return OCRModel(PUBLISHED_NAMES[kind])
    if options.models == PUBLISHED:
        file, digest = PUBLISHED_FILES[kind]
        return onnx_folder(download(_CONVERTED + file, sha256=digest), kind, name=PUBLISHED_NAMES[kind])
    names = options.models.split("+")
    if len(names) != 2 or not all(names):
        choices = f"default, {PUBLISHED}, rapidocr, or DETECTOR+RECOGNIZER in paddleocr's names"
        raise RewardError(f"ocr: models={options.models!r}: known are {choices}")
    return OCRModel(names[0 if kind == "det" else 1])


def _model_folder(folder: Path, engine: str) -> OCRModel:
    required = (CONFIG, ONNX) if engine == "onnxruntime" else (CONFIG,)
    for name in required:
        if not (folder / name).is_file():
            raise ArtifactError(f"{folder}: a model folder for {engine} holds {' and '.join(required)}; no {name} here")
    match = _MODEL_NAME.search((folder / CONFIG).read_text(encoding="utf-8"))
    if match is None:
        raise ArtifactError(f"{folder / CONFIG}: has no model_name")
    digest = f"@{sha256_file(folder / ONNX)[:8]}" if ONNX in required else ""
    return OCRModel(match[1], folder, f"{match[1]}{digest}")


def onnx_folder(onnx: Path, kind: str, *, name: str | None = None) -> OCRModel:
    """A PP-OCR model's ONNX file as a folder that paddleocr reads, created once in the cache.

    ``name`` is paddleocr's name of the model, by default derived from rapidocr's file name.

    Raises :class:`ArtifactError`: the file is missing, its name is not that of a PP-OCR model, or a recognizer has no
    characters.
    """
    if not onnx.is_file():
        raise ArtifactError(f"{onnx}: no such file")
    name = name or _paddle_name(onnx)
    target = cache_dir() / "paddle" / f"{name}-{sha256_file(onnx)[:12]}"
    if not (target / CONFIG).is_file():
        config = yaml.safe_dump(_detector(name) if kind == "det" else _recognizer(name, onnx))
        atomic_write(target / ONNX, onnx.read_bytes())
        atomic_write(target / CONFIG, config)
    return OCRModel(name, target, onnx.stem)


def _paddle_name(onnx: Path) -> str:
    match = _STEM.fullmatch(onnx.stem)
    if match is None:
        raise ArtifactError(f"{onnx}: its name does not say which PP-OCR model it is")
    language = f"{match['lang']}_" if match["lang"] not in (None, "ch") and match["kind"] == "rec" else ""
    size = "mobile" if match["size"] == "infer" else match["size"]
    return f"{language}PP-OCRv{match['version']}_{size}_{match['kind']}"


def _config(model: str, transforms: list[dict[str, Any]], **postprocess: Any) -> dict[str, Any]:
    decode = {"DecodeImage": {"channel_first": False, "img_mode": "BGR"}}
    process = {"transform_ops": [decode, *transforms]}
    return {"Global": {"model_name": model}, "PreProcess": process, "PostProcess": postprocess}


def _detector(name: str) -> dict[str, Any]:
    """PP-OCR's detector was trained on B, G, R normalized by ImageNet's R, G, B figures in that order."""
    normalize = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "scale": "1./255.", "order": "hwc"}
    transforms: list[dict[str, Any]] = [{"DetResizeForTest": None}, {"NormalizeImage": normalize}, {"ToCHWImage": None}]
    boxes = {"thresh": 0.3, "box_thresh": 0.6, "max_candidates": 1000, "unclip_ratio": 1.5}
    return _config(name, transforms, name="DBPostProcess", **boxes)


def _recognizer(name: str, onnx: Path) -> dict[str, Any]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(onnx), providers=["CPUExecutionProvider"])
    characters = session.get_modelmeta().custom_metadata_map.get("character", "").splitlines()
    if not characters:
        raise ArtifactError(f"{onnx}: has no list of characters; it is not a recognizer of rapidocr")
    resize = {"RecResizeImg": {"image_shape": [3, 48, 320]}}
    return _config(name, [resize], name="CTCLabelDecode", character_dict=characters)


def _start(paddleocr: Any, models: dict[str, OCRModel], options: PaddleOptions) -> Any:
    disabled = ("use_doc_orientation_classify", "use_doc_unwarping", "use_textline_orientation")
    settings: dict[str, Any] = {"engine": options.engine, "device": _device(options), **dict.fromkeys(disabled, False)}
    for kind, word in (("det", "detection"), ("rec", "recognition")):
        name, folder, _ = models[kind]
        settings[f"text_{word}_model_name"] = name
        settings[f"text_{word}_model_dir"] = None if folder is None else str(folder)
    if options.models == PUBLISHED:
        settings |= {"text_det_limit_side_len": SIDE_LIMIT, "text_det_limit_type": "max"}
    if options.engine == "onnxruntime":
        settings["engine_config"] = {"intra_op_num_threads": options.threads, "log_severity_level": 4}
    try:
        return paddleocr.PaddleOCR(**settings)
    except Exception as error:
        raise RewardError(f"paddleocr does not start ({describe_error(error)}); {ALTERNATIVES}") from error


def _device(options: PaddleOptions) -> str | None:
    if options.device != "auto" or options.engine != "onnxruntime":
        return None if options.device == "auto" else options.device
    import onnxruntime

    return "gpu:0" if "CUDAExecutionProvider" in onnxruntime.get_available_providers() else "cpu"


def _names(engine: Any) -> dict[str, str]:
    """The names of the models in use, by kind."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / CONFIG
        engine.export_paddlex_config_to_yaml(str(path))
        modules = yaml.safe_load(path.read_text(encoding="utf-8"))["SubModules"]
    return {kind: str(modules[section]["model_name"]) for kind, section in KINDS.items()}
