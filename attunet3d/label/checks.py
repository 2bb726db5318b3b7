"""What a request to the MONAI Label server may hold: names that stay names, and parameters with their types and ranges.

MONAI Label makes file names of the first and hands the second to a parser that can execute text.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from attunet3d.errors import ConfigError

IMAGE_SUFFIXES = (".nii.gz", ".nii", ".nrrd")
LABEL_SUFFIXES = (*IMAGE_SUFFIXES, ".bin")  # OHIF sends voxels without a header
SESSION_SUFFIXES = (*IMAGE_SUFFIXES, ".dcm")
_LONGEST_NAME = 200  # bytes; a suffix comes to it
_DEEPEST = 10
# What the server itself writes into an image's or label's information; viewers take "name" for a file's.
_KEPT_BY_SERVER = {"path", "name", "ts", "checksum", "strategy", "epistemic_entropy", "epistemic_ts"}
# DICOMweb's resources. Orthanc, for one, has others at the same place, by which it asks further servers.
_DICOMWEB = ("studies", "series", "instances", "bulkdata")


@dataclass(frozen=True)
class Parameter:
    """A parameter of a request.

    Attributes:
        expected: in words.
        fits: whether a value, of any type that JSON has, is so.
    """

    expected: str
    fits: Callable[[Any], bool]


Parameters = Mapping[str, Parameter]


def is_name(value: Any) -> bool:
    """Whether a text can only be the name of one file in the folder it is meant for, on any system."""
    return (
        isinstance(value, str)
        and value.isprintable()
        and 0 < len(value.encode()) <= _LONGEST_NAME
        and not re.search(r"[/\\]|^\.|^[A-Za-z]:", value)
    )


def is_uid(value: str) -> bool:
    """Whether a text is a UID of DICOM."""
    return len(value) <= 64 and bool(re.fullmatch(r"[0-9]+(\.[0-9]+)*", value))


def check_name(what: str, value: str) -> None:
    """Refuse what could be a path.

    Raises:
        ConfigError: it is none.
    """
    if not is_name(value):
        raise ConfigError(f"{what}: {_shown(value)} is no name: it holds / or \\, or starts with a dot or a drive")


def check_file_name(sent: str, suffixes: Collection[str]) -> str:
    """The name of an uploaded file without the folders of the sender's machine, which 3D Slicer sends along.

    Raises:
        ConfigError: it climbs out of a folder, is no name, or of another format.
    """
    parts = re.split(r"[/\\]", sent)
    if ".." in parts or not is_name(parts[-1]):
        raise ConfigError(f"{_shown(sent)} is no name of a file")
    if not parts[-1].lower().endswith(tuple(suffixes)):
        raise ConfigError(f"{_shown(parts[-1])}: expected a file with {', '.join(suffixes)}")
    return parts[-1]


def check_content(name: str, file: BinaryIO) -> None:
    """Refuse an NRRD header that takes its voxels from another file, which would be one of this machine.

    Raises:
        ConfigError: it does.
    """
    if name.lower().endswith(".nrrd"):
        header = file.read(1 << 16).partition(b"\n\n")[0].partition(b"\r\n\r\n")[0].lower()
        file.seek(0)
        if re.search(rb"^data ?file\s*:", header, re.MULTILINE):
            raise ConfigError(f"{_shown(name)}: expected an NRRD file with its voxels in it, not in another file")


def check_digest(value: str) -> None:
    """Refuse what is no checksum of a file.

    Raises:
        ConfigError: it is none.
    """
    if not re.fullmatch(r"((SHA256|SHA512|MD5):)?[0-9a-fA-F]+", value):
        raise ConfigError("check_sum: expected hexadecimal digits, after SHA256:, SHA512: or MD5:")


def check_dicomweb_path(path: str) -> None:
    """Refuse all but DICOMweb's resources below the URL of the studies.

    Raises:
        ConfigError: it is another path.
    """
    parts = path.split("/")
    if parts[0] not in _DICOMWEB or any(part.startswith(".") for part in parts) or re.search(r"[\\?#%\s]", path):
        raise ConfigError(f"{_shown(path)}: expected a path of DICOMweb: {', '.join(_DICOMWEB)}")
    if not path.isprintable():
        raise ConfigError("the path of DICOMweb holds control characters")


def check_page(path: str) -> None:
    """Refuse the path of a page that could lead out of its folder.

    Raises:
        ConfigError: it could.
    """
    if path and not all(map(is_name, path.removesuffix("/").split("/"))):
        raise ConfigError(f"{_shown(path)} is no page")


def parsed(what: str, text: str) -> Any:
    """JSON of a form's field.

    Raises:
        ConfigError: it is none.
    """
    try:
        return json.loads(text or "{}")
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{what}: expected JSON ({error})") from None


def check_parameters(what: str, given: Any, allowed: Parameters, model: str = "") -> None:
    """Refuse a parameter that is not among those allowed or does not fit.

    Args:
        what: names it all.
        given: decoded JSON.
        allowed: by name; none at all allows no parameter.
        model: these may also be given below its name, as for all models at once.

    Raises:
        ConfigError: names the parameter and what is allowed.
    """
    if not isinstance(given, dict):
        raise ConfigError(f"{what}: {_shown(given)}; expected a JSON object")
    for name, value in given.items():
        if model and name == model:
            check_parameters(what, value, allowed)
        elif name not in allowed:
            raise ConfigError(f"{what}: there is no {_shown(name)}; allowed are {', '.join(allowed) or 'none'}")
        elif not allowed[name].fits(value):
            raise ConfigError(f"{name}: {_shown(value)}; expected {allowed[name].expected}")


def check_information(what: str, given: Any) -> None:
    """Refuse, in what an annotator notes about an image or label, what only the server writes, and text that executes.

    Raises:
        ConfigError: it holds such.
    """
    if not isinstance(given, dict) or not _is_plain(given):
        raise ConfigError(f"{what}: expected a JSON object whose texts do not start with $, @ or %, nor names with _")
    if kept := _KEPT_BY_SERVER & set(given):
        raise ConfigError(f"{what}: {', '.join(sorted(kept))}: the server itself writes this")


def check_index(path: Path) -> None:
    """Refuse a list of images that a folder of studies brings along and that leads out of it.

    Args:
        path: of ``datastore_v2.json``, which MONAI Label keeps in the folder.

    Raises:
        ConfigError: it does, or cannot be read.
    """
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        folders = (index.get("images_dir", ""), index.get("labels_dir", "labels"))
        files = [
            (is_name(name), suffix)
            for image, entry in index.get("objects", {}).items()
            for name, suffix in [
                (image, entry["image"].get("ext", "")),
                *((tag, label.get("ext", "")) for tag, label in entry.get("labels", {}).items()),
            ]
        ]
    except (OSError, ValueError, RecursionError, AttributeError, KeyError, TypeError):
        raise ConfigError(f"{path}: cannot be read; delete it, and MONAI Label makes it anew") from None
    inside = folders[0] in ("", ".") and folders[1] == "labels"
    if not inside or not all(named and re.fullmatch(r"(\.[\w-]+)*", str(suffix)) for named, suffix in files):
        raise ConfigError(f"{path}: names files outside its folder; delete it, and MONAI Label makes it anew")


def _is_plain(value: Any, depth: int = 0) -> bool:
    """JSON in which nothing executes in a MONAI config: no expression, reference, macro or component."""
    if depth > _DEEPEST:
        return False
    if isinstance(value, dict):
        names = all(name.isprintable() and not name.startswith(("_", "$", "@", "%")) for name in value)
        return names and _is_plain([*value.values()], depth)
    if isinstance(value, list):
        return all(_is_plain(item, depth + 1) for item in value)
    if isinstance(value, str):
        return "\0" not in value and not value.lstrip().startswith(("$", "@", "%"))
    return not isinstance(value, float) or math.isfinite(value)


def _is_plain_name(value: Any) -> bool:
    return is_name(value) and _is_plain(value)


def _whole(low: int, high: int) -> Parameter:
    return Parameter(
        f"a whole number from {low} to {high}",
        lambda value: isinstance(value, int) and not isinstance(value, bool) and low <= value <= high,
    )


def _one_of(*allowed: str) -> Parameter:
    return Parameter(f"one of {', '.join(allowed)}", lambda value: isinstance(value, str) and value in allowed)


_FLAG = Parameter("true or false", lambda value: isinstance(value, bool))
_SHARE = Parameter(
    "a number from 0 to less than 1",
    lambda value: isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1,
)
_NAME = Parameter("a name without / and \\, that does not start with a dot, $, @ or %", _is_plain_name)
_CLIENT = Parameter(
    "a name, or null", lambda value: value is None or ((value == "" or is_name(value)) and _is_plain(value))
)
_LABELS = Parameter(
    "a list of objects, one for each label",
    lambda value: isinstance(value, list) and all(isinstance(item, dict) for item in value) and _is_plain(value),
)
_GPUS = Parameter(
    "all, or numbers with commas",
    lambda value: isinstance(value, str) and bool(re.fullmatch(r"all|[0-9]{1,3}(,[0-9]{1,3})*", value)),
)


def saving() -> dict[str, Parameter]:
    """Of a label that is saved."""
    return {"label_info": _LABELS, "client_id": _CLIENT}


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_plain_name, value))


def choosing() -> dict[str, Parameter]:
    """Of a strategy for the next case."""
    return {
        "label_tag": _NAME,
        "labels": Parameter(
            "a list of names", lambda value: isinstance(value, list) and all(map(_is_plain_name, value))
        ),
        "client_id": _CLIENT,
    }


def training(devices: Collection[str], models: Path) -> dict[str, Parameter]:
    """Of a training.

    Args:
        devices: names of GPUs that the server offers.
        models: folder of the weights that training may start from.
    """
    return {
        **_computing(devices),
        "max_epochs": _whole(1, 100_000),
        "val_split": _SHARE,
        "pretrained": _FLAG,
        "model_filename": _weights(models),
    }


def scoring(devices: Collection[str]) -> dict[str, Parameter]:
    """Of a scoring by uncertainty."""
    return {
        **_computing(devices),
        "max_samples": _whole(0, 1_000_000),
        "simulation_size": _whole(2, 100),
        "max_workers": _whole(0, 64),
    }


def inference(devices: Collection[str], models: Path) -> dict[str, Parameter]:
    """Of the segmentation of one case; see `training`."""
    return {
        "device": _device(devices),
        "model_filename": _weights(models),
        "result_extension": _one_of(*IMAGE_SUFFIXES),
        "result_dtype": _one_of("uint8", "uint16", "int16", "int32", "float32"),
        "result_compress": _FLAG,
        "restore_label_idx": _FLAG,
        "save_label": _FLAG,
        "label_tag": _NAME,
        "label_info": _LABELS,
        "logging": _one_of("DEBUG", "INFO", "WARNING", "ERROR"),
        "client_id": _CLIENT,
    }


def batch(devices: Collection[str], models: Path) -> dict[str, Parameter]:
    """Of the segmentation of many cases; see `training`."""
    return {
        **inference(devices, models),
        **_computing(devices),
        "max_workers": _whole(0, 64),
        "max_batch_size": _whole(0, 1_000_000),
    }


def _computing(devices: Collection[str]) -> dict[str, Parameter]:
    return {"device": _device(devices), "multi_gpu": _FLAG, "gpus": _GPUS, "client_id": _CLIENT}


def _device(devices: Collection[str]) -> Parameter:
    return Parameter(
        ", ".join(["cpu", "cuda", "cuda:N", *(name for name in devices if name != "cpu")]),
        lambda value: (
            isinstance(value, str) and (value in devices or bool(re.fullmatch(r"cpu|cuda(:[0-9]{1,2})?", value)))
        ),
    )


def _weights(models: Path) -> Parameter:
    def fits(value: Any) -> bool:
        names = value if isinstance(value, list) else [value]  # OHIF sends all that it was offered
        return bool(names) and all(
            is_name(name) and name.endswith(".pt") and (models / name).is_file() for name in names
        )

    return Parameter("a file of weights that the server offers", fits)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"
