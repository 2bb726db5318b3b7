"""Extensions of MONAI Label's app ``monaibundle``; imported by the app's main.py, in the server."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import nibabel as nib
import requests
import torch

from attunet3d.errors import TrainingError, UnreadableInputError, own_error
from attunet3d.io.reader import read_ct
from attunet3d.label.access import TOKEN_VARIABLE
from attunet3d.label.checks import is_uid
from attunet3d.label.parameters import training
from attunet3d.label.torchvision_ops import make_torchvision_importable

make_torchvision_importable()

from fastapi import HTTPException  # noqa: E402
from monailabel.datastore import dicom as dicomweb  # noqa: E402
from monailabel.datastore.utils.convert import dicom_to_nifti  # noqa: E402
from monailabel.interfaces import app as monailabel_app  # noqa: E402
from monailabel.tasks.activelearning.epistemic import Epistemic  # noqa: E402
from monailabel.tasks.train.bundle import BundleTrainTask  # noqa: E402

logger = logging.getLogger(__name__)


def series_to_nifti(folder: str, is_seg: bool = False) -> str:
    """Convert a DICOM series to NIfTI with the reader of ``attunet3d segment``; a SEG as MONAI Label does.

    MONAI Label's own conversion accepts any series: missing slices or a tilted gantry would go unnoticed.

    Raises:
        AttUNet3dError: the series cannot be segmented.
    """
    if is_seg:
        return str(dicom_to_nifti(folder, is_seg=True))
    array, affine = read_ct(folder)
    with tempfile.NamedTemporaryFile(suffix=".nii.gz", delete=False) as file:
        nib.save(nib.Nifti1Image(array, affine), file.name)
    return file.name


class Archive(dicomweb.DICOMWebDatastore):  # type: ignore[misc]
    """MONAI Label's DICOMweb datastore, with a check of the archive's UIDs, which become file names.

    Raises:
        UnreadableInputError: a method that downloads finds an invalid UID.
    """

    def __init__(self, client: Any, *arguments: Any, **options: Any) -> None:
        retrieve, describe = client.retrieve_series, client.retrieve_series_metadata

        def checked(*place: Any, **how: Any) -> Any:
            instances = retrieve(*place, **how)
            _check_uids(str(instance.SOPInstanceUID) for instance in instances)
            return instances

        def checked_metadata(*place: Any, **how: Any) -> Any:
            instances = describe(*place, **how)
            _check_uids(str(instance["00080018"]["Value"][0]) for instance in instances)
            return instances

        client.retrieve_series, client.retrieve_series_metadata = checked, checked_metadata
        super().__init__(client, *arguments, **options)

    def get_image_uri(self, image_id: str) -> str:
        """Like MONAI Label's, for valid UIDs only."""
        _check_uids([image_id])
        return str(super().get_image_uri(image_id))

    def get_label_uri(self, label_id: str, label_tag: str, image_id: str = "") -> str:
        """Like MONAI Label's, for valid UIDs only."""
        _check_uids([label_id])
        return str(super().get_label_uri(label_id, label_tag, image_id))


def _check_uids(uids: Iterable[str]) -> None:
    if not all(map(is_uid, uids)):
        raise UnreadableInputError("the archive has a series or instance with an invalid UID; expected digits and dots")


dicomweb.dicom_to_nifti = series_to_nifti
monailabel_app.DICOMWebDatastore = Archive


class TrainTask(BundleTrainTask):
    """MONAI Label's bundle training, which refuses to start without labels and can start from random weights."""

    def config(self) -> dict[str, Any]:
        """Return the options that viewers show: those of MONAI Label's that a request may contain."""
        offered = training((), Path())
        return {name: value for name, value in super().config().items() if name in offered}

    def _fetch_datalist(self, request: dict[str, Any], datastore: Any) -> list[dict[str, Any]]:
        cases: list[dict[str, Any]] = super()._fetch_datalist(request, datastore)
        if not cases:
            raise TrainingError("no case has a saved label: submit one (its tag is 'final') and train again")
        return cases

    def _load_checkpoint(self, model_pytorch: str, pretrained: bool, train_handlers: list[dict[str, Any]]) -> None:
        if pretrained:  # else MONAI Label would check whether the path None exists
            super()._load_checkpoint(model_pytorch, pretrained, train_handlers)


class Additions:
    """Mixin for the app class of ``monaibundle``: weights must fit, and uncertainty can choose the next case."""

    models: dict[str, str]
    conf: dict[str, str]

    def init_infers(self) -> dict[str, Any]:
        """Like MONAI Label's, but weights of another network are refused instead of logging a warning."""
        infers: dict[str, Any] = super().init_infers()  # type: ignore[misc]
        for task in infers.values():
            task.load_strict = True
        return infers

    def init_trainers(self) -> dict[str, Any]:
        """Return a ``TrainTask`` for each bundle."""
        return {name: TrainTask(path, self.conf, load_strict=True) for name, path in self.models.items()}

    def init_strategies(self) -> dict[str, Any]:
        """Return MONAI Label's "random" and "first", and "epistemic": the case with the highest score."""
        strategies: dict[str, Any] = super().init_strategies()  # type: ignore[misc]
        return strategies | {"epistemic": Epistemic()}

    def infer(self, request: dict[str, Any], datastore: Any = None) -> dict[str, Any]:
        """Like MONAI Label's; errors of this package become the answer's detail, with status 422."""
        try:
            found: dict[str, Any] = super().infer(request, datastore)  # type: ignore[misc]
        except Exception as error:
            own = own_error(error)
            if own is None:
                raise
            raise HTTPException(status_code=422, detail=str(own)) from error
        return found

    def batch_infer(self, request: dict[str, Any], datastore: Any = None) -> dict[str, Any]:
        """Like MONAI Label's, which would distribute cases among GPUs even if there are none."""
        if not torch.cuda.is_available():
            request = {**request, "multi_gpu": False}
        found: dict[str, Any] = super().batch_infer(request, datastore)  # type: ignore[misc]
        return found

    def _local_request(self, url: str, params: dict[str, Any] | None, action: str) -> Any:
        """Like MONAI Label's, with the token: after training, its process requests new scores from the server."""
        with requests.Session() as server:
            server.trust_env = False  # no proxy, and no credentials from .netrc
            if token := os.environ.get(TOKEN_VARIABLE):
                server.headers["Authorization"] = f"Bearer {token}"
            answer = server.post(self.conf["server"] + url, json=params or {})
        if not answer.ok:
            logger.error("%s could not be started: %s", action, answer.text)
        return answer.json() if answer.ok else None
