"""A MONAI Label server on Orthanc, a PACS with DICOMweb, and OHIF in a browser."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from conftest import HANG, SHARED_DATA, needs_data
from dicom_files import write_series
from label_server import MODEL, TINY_ARGUMENTS, TRAINING, Client, attunet3d, differing_voxels, free_port, server
from pydicom.uid import generate_uid

from attunet3d.datasets.phantom import make_phantom
from attunet3d.io import read_ct
from attunet3d.transforms.placing import place_on

ORTHANC = shutil.which("Orthanc", path=os.environ.get("PATH", "") + os.pathsep + "/usr/sbin")
DICOMWEB = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
CHROMIUM = shutil.which("chromium")

pytestmark = [
    pytest.mark.label,
    pytest.mark.skipif(
        ORTHANC is None or not DICOMWEB.is_file(), reason="no Orthanc: apt-get install orthanc orthanc-dicomweb"
    ),
]
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no browser: apt-get install chromium")


@dataclass(frozen=True)
class Archive:
    """An Orthanc of its own with one CT series.

    Attributes:
        url: of Orthanc.
        folder: the series' files.
        series: its UID.
        study: the UID of its study.
    """

    url: str
    folder: Path
    series: str
    study: str

    @property
    def studies(self) -> str:
        return f"{self.url}/dicom-web"

    def segmentations(self) -> list[pydicom.Dataset]:
        import requests

        found = []
        for name in requests.get(f"{self.url}/series", timeout=HANG).json():
            series = requests.get(f"{self.url}/series/{name}", timeout=HANG).json()
            if series["MainDicomTags"]["Modality"] == "SEG":
                file = requests.get(f"{self.url}/instances/{series['Instances'][0]}/file", timeout=HANG)
                found.append(pydicom.dcmread(io.BytesIO(file.content)))
        return found


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Path], Archive]]:
    """orthanc(folder of a DICOM series) -> an Orthanc that has it, on a free port of this machine."""
    import requests

    with contextlib.ExitStack() as stack:

        def start(folder: Path) -> Archive:
            home = tmp_path_factory.mktemp("orthanc")
            port = stack.enter_context(free_port())
            settings = {
                "StorageDirectory": str(home / "images"),
                "IndexDirectory": str(home / "images"),
                "HttpPort": port,
                "RemoteAccessAllowed": False,
                "AuthenticationEnabled": False,
                "DicomServerEnabled": False,
                "Plugins": [str(DICOMWEB)],
                "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
            }
            (home / "orthanc.json").write_text(json.dumps(settings))
            log = stack.enter_context((home / "log").open("w"))
            process = subprocess.Popen([str(ORTHANC), str(home / "orthanc.json")], stdout=log, stderr=log)
            stack.callback(process.wait, HANG)
            stack.callback(process.terminate)
            url = f"http://127.0.0.1:{port}"
            give_up = time.monotonic() + HANG
            while True:
                try:
                    requests.get(f"{url}/system", timeout=HANG)
                    break
                except requests.ConnectionError:
                    if process.poll() is not None or time.monotonic() > give_up:
                        pytest.fail((home / "log").read_text())
                    time.sleep(0.1)
            for path in folder.iterdir():
                requests.post(f"{url}/instances", data=path.read_bytes(), timeout=HANG).raise_for_status()
            header = pydicom.dcmread(next(folder.iterdir()), stop_before_pixels=True)
            return Archive(url, folder, str(header.SeriesInstanceUID), str(header.StudyInstanceUID))

        yield start


@pytest.fixture(scope="module")
def archive(orthanc: Callable[[Path], Archive], tmp_path_factory: pytest.TempPathFactory) -> Archive:
    """A phantom in Orthanc."""
    folder = tmp_path_factory.mktemp("dicom") / "series"
    image = make_phantom(0, shape=(60, 56, 44), spacing=(6.0, 6.0, 6.0), orientation="LPS").image
    tags = {
        "PixelSpacing": [6.0, 6.0],
        "StudyInstanceUID": generate_uid(),
        "StudyDate": "20200102",
    }
    write_series(folder, np.asarray(image), step=(0.0, 0.0, 6.0), **tags)
    return orthanc(folder)


@pytest.fixture(scope="module")
def client(archive: Archive, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    app = tmp_path_factory.mktemp("label") / "app"
    with server(archive.studies, app, "--checkpoint", str(tiny_checkpoint), *TINY_ARGUMENTS, *TRAINING) as started:
        yield started


def browse(url: str, folder: Path) -> tuple[str, Path]:
    """What a browser makes of a page after half a minute of its own clock: the document, and a picture."""
    picture = folder / "page.png"
    options = ["--headless=new", "--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
    size = ["--window-size=1500,900", "--virtual-time-budget=30000", f"--user-data-dir={folder / 'profile'}"]
    command = [str(CHROMIUM), *options, *size, f"--screenshot={picture}", "--dump-dom", url]
    page = subprocess.run(command, capture_output=True, text=True, timeout=HANG, check=True)
    return page.stdout, picture


def test_what_ohif_asks_is_served_to_its_own_page_only(client: Client, archive: Archive) -> None:
    """With the cookie of the printed URL, as axios and fetch send it; of the archive only DICOMweb can be reached."""
    import requests

    root = client.url.rpartition("/")[0]
    with requests.Session() as browser:
        page = browser.get(f"{client.url}/", headers={"Accept": "text/html"}, timeout=HANG)
        assert page.url == f"{root}/ohif/"
        assert "<html" in page.text
        browser.headers.update({"Origin": root, "Sec-Fetch-Site": "same-origin"})
        assert browser.get(f"{root}/info/", timeout=HANG).json()["datastore"]["total"] == 1
        studies = browser.get(f"{root}/proxy/dicom/qido/studies?limit=101", timeout=HANG).json()
        assert studies[0]["0020000D"]["Value"] == [archive.study]
        metadata = f"{root}/proxy/dicom/wado/studies/{archive.study}/series/{archive.series}/metadata"
        assert browser.get(metadata, timeout=HANG).status_code == 200
        sample = browser.post(f"{root}/activelearning/first", json={}, timeout=HANG)
        assert sample.json()["id"] == archive.series
        for path in (
            "%2e%2e/system",
            "..%2Fsystem",
            "studies/%2e%2e/%2e%2e/system",
            "servers",
            "wado/%2e%2e/system",
            "",
        ):
            assert browser.get(f"{root}/proxy/dicom/{path}", timeout=HANG).status_code == 422, path
        browser.headers.update({"Origin": "http://evil.example", "Sec-Fetch-Site": "cross-site"})
        assert browser.get(f"{root}/proxy/dicom/qido/studies", timeout=HANG).status_code == 403
    assert requests.get(f"{root}/proxy/dicom/qido/studies", timeout=HANG).status_code == 401


@needs_chromium
def test_ohif_lists_the_study_and_shows_it(client: Client, archive: Archive, tmp_path: Path) -> None:
    from PIL import Image

    document, _ = browse(f"{client.url}/ohif/", tmp_path)
    assert "4711" in document  # the patient's ID
    document, picture = browse(f"{client.url}/ohif/monai-label?StudyInstanceUIDs={archive.study}", tmp_path)
    assert "monaiLabelPanel" in document
    # The left view is the axial one; without a CT in it, it would be black.
    view = np.asarray(Image.open(picture).convert("L"))[250:700, 300:580]
    assert view.mean() > 10


def test_mask_is_that_of_the_command_line(
    client: Client, archive: Archive, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    mask = client.infer(archive.series, tmp_path / "server.nii.gz")
    attunet3d("segment", archive.folder, "-o", tmp_path, "--checkpoint", tiny_checkpoint, *TINY_ARGUMENTS)
    assert np.asarray(nib.load(mask).dataobj).any()
    assert differing_voxels(mask, tmp_path / "series_seg.nii.gz") == 0

    params = {"params": json.dumps({"label_info": [{"name": "pancreas"}]})}
    query = {"image": archive.series, "output": "dicom_seg"}
    answer = client.ask("POST", f"/infer/{MODEL}", params=query, data=params)
    segmentation = pydicom.dcmread(io.BytesIO(answer.content))
    assert np.array_equal(placed(segmentation, nib.load(mask)), np.asarray(nib.load(mask).dataobj))


def test_a_series_that_the_command_line_refuses_is_refused_with_its_reason(
    orthanc: Callable[[Path], Archive], tmp_path: Path
) -> None:
    """A slice is missing: MONAI Label's own conversion would close the gap, and shift all that lies beyond it."""
    import requests

    folder = tmp_path / "gap"
    image = make_phantom(0, shape=(30, 28, 22), spacing=(12.0, 12.0, 12.0), orientation="LPS").image
    files = write_series(folder, np.asarray(image), step=(0.0, 0.0, 12.0), StudyInstanceUID=generate_uid())
    files[11].unlink()
    archive = orthanc(folder)
    with server(archive.studies, tmp_path / "app") as client:
        query = {"image": archive.series, "output": "image"}
        answer = requests.post(f"{client.url}/infer/{MODEL}", params=query, timeout=HANG)
    assert answer.status_code == 422
    assert "slice" in answer.json()["detail"]


def test_a_saved_label_becomes_a_segmentation_in_the_archive_and_is_trained_on(
    client: Client, archive: Archive, tmp_path: Path
) -> None:
    mask = client.infer(archive.series, tmp_path / "server.nii.gz")
    in_body = nib.load(mask)  # what these random weights mark is no label that may be trained on
    hu = place_on(*read_ct(archive.folder), in_body.shape, in_body.affine, "the CT and its mask")
    middle = tuple(slice(n // 3, n // 3 + 12) for n in hu.shape)
    label = np.zeros(hu.shape, np.uint8)
    label[middle] = (hu[middle] > 0) & (hu[middle] < 150)
    assert label.any()
    nib.save(nib.Nifti1Image(label, in_body.affine, in_body.header), mask)
    client.save_label(archive.series, mask)
    (segmentation,) = archive.segmentations()
    assert segmentation.SegmentSequence[0].SegmentLabel == "pancreas"
    assert segmentation.ReferencedSeriesSequence[0].SeriesInstanceUID == archive.series
    assert np.array_equal(placed(segmentation, nib.load(mask)), np.asarray(nib.load(mask).dataobj))
    task = client.train(max_epochs=1)
    assert task["status"] == "DONE", "\n".join(task["details"])
    assert client.next_sample("first") == {}  # there was one case, and it has its label


def placed(segmentation: pydicom.Dataset, like: nib.Nifti1Image) -> np.ndarray:
    """The frames of a DICOM SEG in the voxels of a mask."""
    out = np.zeros(like.shape, np.uint8)
    to_voxel = np.linalg.inv(like.affine)
    shared = segmentation.SharedFunctionalGroupsSequence[0]
    row, column = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float).reshape(2, 3)
    down, along = (float(mm) for mm in shared.PixelMeasuresSequence[0].PixelSpacing)
    frames = segmentation.pixel_array.reshape(-1, segmentation.Rows, segmentation.Columns)
    for frame, group in zip(frames, segmentation.PerFrameFunctionalGroupsSequence, strict=True):
        first = np.array(group.PlanePositionSequence[0].ImagePositionPatient, float)
        for r, c in np.argwhere(frame):
            ras = (first + c * along * row + r * down * column) * (-1, -1, 1)
            out[tuple(np.rint(to_voxel[:3, :3] @ ras + to_voxel[:3, 3]).astype(int))] = 1
    return out


@needs_data
@pytest.mark.slow
def test_a_real_ct_as_nifti_and_from_the_archive(orthanc: Callable[[Path], Archive], tmp_path: Path) -> None:
    """LIDC-IDRI-0001 with the bundle's own weights."""
    archive = orthanc(SHARED_DATA / "lidc0001" / "dicom")
    studies = tmp_path / "studies"
    studies.mkdir()
    array, affine = read_ct(archive.folder)
    nib.save(nib.Nifti1Image(array, affine), studies / "lidc0001.nii.gz")
    attunet3d("segment", archive.folder, studies / "lidc0001.nii.gz", "-o", tmp_path)
    with server(studies, tmp_path / "nifti") as client:
        mask = client.infer("lidc0001", tmp_path / "from_nifti.nii.gz")
        assert differing_voxels(mask, tmp_path / "lidc0001_seg.nii.gz") == 0
    with server(archive.studies, tmp_path / "archive") as client:
        mask = client.infer(archive.series, tmp_path / "from_archive.nii.gz")
        assert differing_voxels(mask, tmp_path / "dicom_seg.nii.gz") == 0
        assert np.asarray(nib.load(mask).dataobj).sum() > 10_000
        client.save_label(archive.series, mask)
        (segmentation,) = archive.segmentations()
        assert np.array_equal(placed(segmentation, nib.load(mask)), np.asarray(nib.load(mask).dataobj))
