"""A MONAI Label server on a folder of NIfTI files, asked as viewers ask it."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from conftest import HANG
from label_server import (
    CASES,
    MODEL,
    TINY_ARGUMENTS,
    TRAINING,
    Client,
    attunet3d,
    differing_voxels,
    server,
    write_cases,
)
from slicer import Slicer

from attunet3d.checkpoint import file_sha256
from attunet3d.config.files import installed_bundle

pytestmark = pytest.mark.label
OHIF = "https://ohif.example.org"


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cases(tmp_path_factory)


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("label") / "app"


@pytest.fixture(scope="module")
def client(phantoms: Path, app: Path, tiny_checkpoint: Path) -> Iterator[Client]:
    start = ["--checkpoint", str(tiny_checkpoint), *TINY_ARGUMENTS, *TRAINING]
    start += ["--epistemic", "--allow-origin", OHIF, "--allow-host", "label.example.org"]
    with server(phantoms / "imagesTr", app, *start) as started:
        yield started


def _log_lines(app: Path, text: str) -> int:
    return sum(text in line for line in app.with_suffix(".log").read_text().splitlines())


def _requests_for_scores(app: Path) -> int:
    """Those that were answered, also where an earlier scoring still ran."""
    return _log_lines(app, "- Scoring request:") + _log_lines(app, "- ++++++++++ Scoring Task is Already Running")


def test_the_server_offers_the_bundle(client: Client) -> None:
    info = client.info()
    assert list(info["models"]) == list(info["trainers"]) == list(info["scoring"]) == [MODEL]
    assert info["models"][MODEL]["labels"] == {"pancreas": 1}
    assert info["models"][MODEL]["config"]["model_filename"] == ["model.pt"]
    assert set(info["strategies"]) == {"random", "first", "epistemic"}
    assert info["datastore"]["total"] == len(CASES)


def test_only_who_has_the_token_and_comes_from_its_own_pages_is_answered(client: Client, app: Path) -> None:
    """What the page of another site can do to a server on this machine, and what it cannot."""
    import requests

    root, _, token = client.url.rpartition("/")
    bearer = {"Authorization": f"Bearer {token}"}
    evil = {"Origin": "http://evil.example"}
    train = f"{root}/train/{MODEL}"
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    for method, url, headers, expected in [
        ("GET", f"{root}/info/", {}, 401),
        ("GET", f"{root}/nowhere", {}, 401),
        ("GET", f"{root}/ohif/", {}, 401),
        ("GET", f"{root}/info/", {"Authorization": "Bearer wrong"}, 401),
        ("GET", f"{root}/{token[:-1]}/info/", {}, 401),
        ("GET", f"{root}/info/?token=wrong", {}, 401),
        ("POST", train, {}, 401),
        ("POST", train, bearer | evil, 403),
        ("POST", train, bearer | evil | form, 403),
        ("POST", train, bearer | {"Sec-Fetch-Site": "cross-site"} | form, 403),
        ("OPTIONS", train, evil | {"Access-Control-Request-Method": "POST"}, 403),
        ("GET", f"{root}/info/", bearer | {"Host": f"evil.example:{urlsplit(root).port}"}, 403),
        ("GET", f"{root}/info/", bearer, 200),
        ("GET", f"{root}/info/?token={token}", {}, 200),
        ("GET", f"{root}/info/", bearer | {"Origin": root, "Sec-Fetch-Site": "same-origin"}, 200),
        ("GET", f"{root}/info/", bearer | {"Host": f"localhost:{urlsplit(root).port}"}, 200),
        ("GET", f"{root}/info/", bearer | {"Host": "label.example.org"}, 200),
        ("GET", f"{root}/info/", {"Host": "label.example.org"}, 401),
    ]:
        answer = requests.request(method, url, headers=headers, timeout=HANG)
        assert answer.status_code == expected, (method, url, headers, answer.text)
        assert "access-control-allow-origin" not in answer.headers
    # The page that --allow-origin names: a browser asks without the token whether it may, and then with it.
    preflight = {"Origin": OHIF, "Access-Control-Request-Method": "PUT", "Access-Control-Request-Headers": "x"}
    answer = requests.options(f"{client.url}/datastore/label", headers=preflight, timeout=HANG)
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, OHIF)
    answer = requests.get(f"{client.url}/info/", headers={"Origin": OHIF, "Sec-Fetch-Site": "cross-site"}, timeout=HANG)
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, OHIF)
    assert requests.get(f"{root}/info/", headers={"Origin": OHIF}, timeout=HANG).status_code == 401
    with requests.Session() as browser:
        answer = browser.get(f"{client.url}/", headers={"Accept": "text/html"}, timeout=HANG)
        assert (answer.url, answer.json()["name"]) == (f"{root}/info/", client.info()["name"])
    # Once in all that was printed and logged: in the URL on stdout.
    assert app.with_suffix(".log").read_text().count(token) == 1
    assert app.with_suffix(".log").read_text().splitlines()[0] == f"{client.url}/"
    assert token not in (app / "logs" / "app.log").read_text()


def test_what_executes_or_leads_out_of_the_folders_is_refused(client: Client, phantoms: Path, tmp_path: Path) -> None:
    import requests

    case, outside = CASES[0], tmp_path / "outside.nii.gz"
    mask = ("mask.nii.gz", (phantoms / "labelsTr" / f"{case}.nii.gz").read_bytes())
    expression = f"$open({str(outside)!r}, 'w')"
    evil_zip = BytesIO()
    with zipfile.ZipFile(evil_zip, "w") as file:
        file.writestr("../outside.nii.gz", b"x")

    def refused(method: str, path: str, expected: int = 422, **how: Any) -> str:
        answer = requests.request(method, client.url + path, timeout=HANG, **how)
        assert answer.status_code == expected, (method, path, how, answer.text)
        return answer.text

    before = sorted(phantoms.rglob("*"))
    for params in ({"max_epochs": expression}, {"device": expression}, {"run_id": expression}, {"val_split": "@x"}):
        name = next(iter(params))
        assert name in refused("POST", f"/train/{MODEL}", json=params)
        assert name in refused("POST", "/train/", json=params)
        assert name in refused("POST", "/train/", json={MODEL: params})
    for path in ("scoring", "batch/infer", "train"):
        assert "allowed are" in refused("POST", f"/{path}/{MODEL}", json={"_target_": "os.getcwd"})
    refused("POST", f"/scoring/{MODEL}", json={"device": expression})
    refused("POST", "/activelearning/first", json={"strategy": "../x"})
    for params in ({"image": str(outside)}, {"device": expression}, {"result_extension": "/../../x"}):
        refused("POST", f"/infer/{MODEL}", params={"image": case}, data={"params": json.dumps(params)})
        refused("POST", f"/batch/infer/{MODEL}", json=params)
    for name in ("../x", "/etc/passwd", "..\\x", "a/b", ".lock", "a\0b"):
        refused("POST", f"/infer/{MODEL}", params={"image": name})
        refused("PUT", "/datastore/label", params={"image": name}, files={"label": mask})
        refused("PUT", "/datastore/label", params={"image": case, "tag": name}, files={"label": mask})
        refused("PUT", "/datastore/image", params={"image": name}, files={"file": mask})
        refused("DELETE", "/datastore/image", params={"id": name})
        refused("DELETE", "/datastore/label", params={"id": case, "tag": name})
        refused("GET", "/datastore/image", params={"image": name})
        refused("GET", "/datastore/label", params={"label": name, "tag": name})
        refused("POST", f"/infer/{MODEL}", params={"session_id": name})
    refused("DELETE", "/session/..%5Cx")
    refused("PUT", "/datastore/label", params={"image": case}, files={"label": ("../mask.nii.gz", mask[1])})
    refused("PUT", "/datastore/label", params={"image": case}, files={"label": ("mask.html", mask[1])})
    refused("PUT", "/session/", params={"uncompress": True}, files={"files": ("a.zip", evil_zip.getvalue())})
    refused("PUT", "/datastore/image/info", params={"image": case}, data={"info": '{"name": "../x"}'})
    refused("GET", "/train/", params={"max_epochs": 1})
    refused("GET", "/ohif/..%5Cx")
    refused("GET", "/ohif/assets", 404)
    refused("POST", f"/infer/{MODEL}", params={"image": case}, files={"label": ("scribbles.bin", b"x")})
    assert "image: missing" in refused("POST", f"/infer/{MODEL}")
    # What there is not, and what is not served.
    refused("POST", f"/infer/{MODEL}", 404, params={"image": "pyproject"})
    refused("POST", "/train/other", 404, json={})
    for method, path in [
        ("POST", "/reload"),
        ("GET", "/docs"),
        ("GET", "/openapi.json"),
        ("GET", "/proxy/dicom/studies"),
    ]:
        refused(method, path, 404)
    refused("PUT", f"/model/{MODEL}", 405, files={"file": ("model.pt", b"x")})
    assert sorted(phantoms.rglob("*")) == before
    assert not outside.exists()
    assert requests.get(f"{client.url}/train/", timeout=HANG).status_code == 404  # none was started


def test_slicer_is_served(client: Client, phantoms: Path) -> None:
    slicer = Slicer(client.url)
    assert slicer.ask("GET", "/auth/")[0] == 404  # it asks for a name and a password where this says so
    info = json.loads(slicer.ask("GET", "/info/")[2])
    # It sends back what it is offered, of a list the first.
    offered = info["models"][MODEL]["config"] | {"result_extension": ".nrrd", "result_dtype": "uint8"}
    params = {name: value[0] if isinstance(value, list) else value for name, value in offered.items()}
    params["client_id"] = "user-xyz"
    status, kind, content = slicer.send_form("POST", f"/infer/{MODEL}?image={CASES[0]}", params)
    assert (status, kind.partition(";")[0]) == (200, "multipart/form-data"), content
    sample = json.loads(slicer.send("POST", "/activelearning/first", {"client_id": "user-xyz"})[2])
    assert sample["id"] in CASES
    volume = (phantoms / "imagesTr" / f"{CASES[0]}.nii.gz").read_bytes()
    assert slicer.ask("GET", f"/datastore/image?image={CASES[0]}")[2] == volume
    # A volume that is not among the studies: its name can be any text.
    session = client.ask("PUT", "/session/", data={"client_id": "x"}, files={"files": ("tmp1.nii.gz", volume)}).json()
    query = f"image=3%3A+CT%2FPV&session_id={session['session_id']}"
    status, _, content = slicer.send_form("POST", f"/infer/{MODEL}?{query}", params)
    assert status == 200, content
    assert slicer.ask("DELETE", f"/session/{session['session_id']}")[0] == 200
    files = [("files", (f"tmp{number}.nii.gz", volume)) for number in range(2)]
    session = client.ask("PUT", "/session/", files=files).json()
    assert slicer.ask("GET", f"/session/{session['session_id']}?image=true")[0] == 404  # a folder
    label = (phantoms / "labelsTr" / f"{CASES[0]}.nii.gz").read_bytes()
    saved = {"label_info": [{"name": "pancreas", "idx": 1}], "client_id": "user-xyz"}
    place = r"C:\Users\jane.doe\AppData\Local\Temp\tmp2.nii.gz"
    status, _, content = slicer.send_form(
        "PUT", f"/datastore/label?image={CASES[0]}&tag=slicer", saved, "label", place, label
    )
    assert status == 200, content
    kept = phantoms / "imagesTr" / "labels" / "slicer"
    assert [path.name for path in kept.iterdir()] == [f"{CASES[0]}.nii.gz"]
    assert slicer.ask("GET", f"/datastore/label?label={CASES[0]}&tag=slicer")[2] == label
    assert slicer.ask("GET", "/train/?check_if_running=true")[0] == 404
    expected = {"device", "pretrained", "max_epochs", "val_split", "multi_gpu", "gpus", "model_filename"}
    assert set(info["trainers"][MODEL]["config"]) == expected  # all of which a training may hold


def test_masks_are_those_of_the_command_line(
    client: Client, app: Path, phantoms: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    cases = CASES[:2]
    images = [phantoms / "imagesTr" / f"{case}.nii.gz" for case in cases]
    attunet3d("segment", *images, "-o", tmp_path, "--checkpoint", tiny_checkpoint, *TINY_ARGUMENTS)
    for case in cases:
        mask = client.infer(case, tmp_path / f"{case}_server.nii.gz")
        assert differing_voxels(mask, tmp_path / f"{case}_seg.nii.gz") == 0
    # The two cases were two requests, and the network was made ready for the first one only.
    assert _log_lines(app, "network runs as") == 1


def test_cases_are_scored_and_chosen(client: Client) -> None:
    client.score()
    scores = {}
    for case in CASES:
        info = client.ask("GET", "/datastore/image/info", params={"image": case}).json()
        scores[case] = info["epistemic_entropy"]
    # The same network with dropout is unsure of each case, and not equally.
    assert min(scores.values()) > 0
    assert len(set(scores.values())) == len(CASES)
    assert client.next_sample("epistemic")["id"] == max(scores, key=lambda case: scores[case])
    assert client.next_sample("random")["id"] in CASES


def test_a_batch_is_segmented_and_kept_as_original_labels(client: Client, phantoms: Path, tmp_path: Path) -> None:
    found = client.ask("POST", f"/batch/infer/{MODEL}", params={"images": "unlabeled", "run_sync": True}).json()
    assert sorted(found) == CASES
    kept = phantoms / "imagesTr" / "labels" / "original" / f"{CASES[0]}.nii.gz"
    assert differing_voxels(client.infer(CASES[0], tmp_path / "mask.nii.gz"), kept) == 0


def test_training_without_a_label_is_refused(client: Client) -> None:
    task = client.train(max_epochs=1)
    assert task["status"] == "ERROR"
    assert "no case has a saved label" in "".join(task["details"])


@pytest.mark.parametrize(("labels", "val_split", "pretrained"), [(1, 0.2, True), (1, 0, False), (4, 0.25, True)])
def test_new_weights_are_used_by_the_next_inference(
    client: Client, app: Path, phantoms: Path, tmp_path: Path, labels: int, val_split: float, pretrained: bool
) -> None:
    models = app / "model" / MODEL / "models"
    installed = file_sha256(installed_bundle() / "models" / "model.pt")
    for case in CASES[:labels]:
        client.save_label(case, phantoms / "labelsTr" / f"{case}.nii.gz")
    assert client.info()["datastore"]["completed"] == labels
    before = client.infer(CASES[-1], tmp_path / "before.nii.gz")
    reloads, scorings = _log_lines(app, "Reload model from cache"), _requests_for_scores(app)
    old = file_sha256(models / "model.pt")
    (models / "model_final.pt").unlink(missing_ok=True)

    task = client.train(max_epochs=2, val_split=val_split, pretrained=pretrained)
    assert task["status"] == "DONE", "\n".join(task["details"])
    assert file_sha256(models / "model.pt") != old
    assert (models / "model_final.pt").is_file()
    header, *rows = (models / "history.csv").read_text().splitlines()
    assert len(rows) == 2
    assert ("val_dice" in header) == (labels == 4)
    assert not (models / "last.pt").exists()  # which the server would take for weights

    after = client.infer(CASES[-1], tmp_path / "after.nii.gz")
    image = phantoms / "imagesTr" / f"{CASES[-1]}.nii.gz"
    attunet3d("segment", image, "-o", tmp_path, "--checkpoint", models / "model.pt", *TINY_ARGUMENTS)
    assert differing_voxels(after, tmp_path / f"{CASES[-1]}_seg.nii.gz") == 0
    assert _log_lines(app, "Reload model from cache") == reloads + 1
    # Its process asked the server, which wants a token of it too, for scores of the new weights.
    assert _requests_for_scores(app) == scorings + 1
    if pretrained and labels == 1:  # later ones come from weights that were fresh, and find nothing
        assert differing_voxels(after, before) > 0
    assert file_sha256(installed_bundle() / "models" / "model.pt") == installed
