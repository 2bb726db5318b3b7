"""What is added to MONAI Label inside its app, without a server."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import label_server  # noqa: F401  (skips where MONAI Label is not installed)
import pytest

from attunet3d.errors import UnreadableInputError
from attunet3d.label.app import Archive

pytestmark = pytest.mark.label


@pytest.mark.parametrize("by_frame", [False, True])
def test_a_uid_that_is_a_path_leads_nowhere(tmp_path: Path, by_frame: bool) -> None:
    series, uid = "1.2.3", "../../../outside"
    instance = SimpleNamespace(SOPInstanceUID=uid, save_as=lambda path: Path(path).touch())
    found = {"0020000E": {"vr": "UI", "Value": [series]}, "0020000D": {"vr": "UI", "Value": ["1.2"]}}
    client: Any = SimpleNamespace(
        base_url="http://archive",
        search_for_series=lambda **_: [found],
        retrieve_series=lambda *_: [instance],
        retrieve_series_metadata=lambda *_: [{"00080018": {"vr": "UI", "Value": [uid]}}],
    )
    cache = tmp_path / "a" / "cache"
    archive = Archive(client, search_filter={}, cache_path=str(cache), fetch_by_frame=by_frame)
    for name in (series, "../../../outside", "..", ".", ""):
        with pytest.raises(UnreadableInputError, match="with an invalid UID"):
            archive.get_image_uri(name)
        with pytest.raises(UnreadableInputError, match="with an invalid UID"):
            archive.get_label_uri(name, "final")
    assert not list(tmp_path.rglob("outside*"))


def test_it_is_monai_labels_datastore() -> None:
    from monailabel.interfaces import app

    assert app.DICOMWebDatastore is Archive
