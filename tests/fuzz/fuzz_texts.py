"""Damaged texts that people write: manifests, datalists, presets and the values of --set."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fuzz_mutations import Rng, any_of, damaged_bytes
from fuzz_target import Fault
from fuzz_values import UID, damaged_lines, damaged_text, damaged_value, json_text, nasty, yaml_text

_MORE_GB = 0.6  # for a session and a CT, beyond what the process holds


class Manifests:
    """What ``attunet3d segment-many`` is given a list of CTs in."""

    kinds = ("manifests table", "manifests semicolons", "manifests json lines", "manifests paths")
    _ROWS = (
        {"path": "ct/a.nii.gz", "id": "a", "series_uid": ""},
        {"path": "ct/b, c.nii.gz", "id": "b", "series_uid": ""},
        {"path": "dicom", "id": "first scan", "series_uid": UID},
        {"path": f"{UID}/ct.nii", "id": "", "series_uid": ""},
    )

    def damage(self, kind: str, rng: Rng, folder: Path) -> None:
        """See ``Target``."""
        (folder / "ct").mkdir()
        for name in ("a.nii.gz", "b, c.nii.gz"):
            (folder / "ct" / name).touch()
        if kind == "manifests json lines":
            lines = [json_text(rng, damaged_value(rng, dict(row))).replace("\n", " ") for row in self._ROWS[:2]]
            whole = "\n".join([*lines, *map(json.dumps, self._ROWS[2:])])
            data = damaged_text(rng, [lambda: whole, lambda: damaged_lines(rng, whole, ",")])
            (folder / "cases.jsonl").write_bytes(data)
            return
        if kind == "manifests paths":
            whole, separator = "\n".join(row["path"] for row in self._ROWS), ","
        else:
            separator = "," if kind == "manifests table" else ";"
            rows = [[f'"{v}"' if separator in v else v for v in row.values()] for row in self._ROWS]
            whole = "\n".join(separator.join(row) for row in [list(self._ROWS[0]), *rows])
        data = damaged_text(rng, [lambda: damaged_lines(rng, damaged_lines(rng, whole, separator), separator)])
        (folder / "cases.csv").write_bytes(data)

    def run(self, kind: str, folder: Path) -> str:
        """See ``Target``."""
        from attunet3d.io.printable import UID as A_UID
        from attunet3d.many import list_cases

        (path,) = (p for p in folder.iterdir() if p.is_file())
        cases = list_cases(path)
        for case in cases:
            if (folder / f"{case.id}_seg.json").parent != folder or not case.id.isprintable() or A_UID.search(case.id):
                raise Fault(f"id {case.id!r}")
        if len({case.id for case in cases}) < len(cases):
            raise Fault("an id is there twice")
        return " ".join(case.id for case in cases)


class Datalists:
    """What ``attunet3d train`` and ``evaluate`` are given: every section, the labels, and the names of the classes."""

    kinds = ("datalists folds", "datalists sections")

    def damage(self, kind: str, rng: Rng, folder: Path) -> None:
        """See ``Target``."""
        for number in range(4):
            (folder / f"ct{number}.nii.gz").touch()
            (folder / f"label{number}.nii.gz").touch()
        cases: list[dict[str, Any]] = [
            {"image": f"ct{number}.nii.gz", "label": f"label{number}.nii.gz", "fold": number % 2} for number in range(4)
        ]
        cases[0] |= {"labelled": ["pancreas"], "negative": False}
        content: dict[str, Any] = {
            "name": "fuzz",
            "labels": {"0": "background", "1": "pancreas", "2": "tumour"},
            "pancreas_labels": [1, 2],
            "folds": 2,
            "training": cases,
            "test": ["ct3.nii.gz"],
        }
        if kind == "datalists sections":
            plain = [{key: case[key] for key in ("image", "label")} for case in cases]
            content |= {"training": plain[:2], "validation": plain[2:3], "testing": plain[3:]}
            del content["test"], content["folds"]
        for _ in range(int(any_of(rng, [1, 1, 2]))):
            content = damaged_value(rng, content)
        data = damaged_text(rng, [lambda: json_text(rng, content)])
        (folder / "datalist.json").write_bytes(data)

    def run(self, kind: str, folder: Path) -> str:
        """See ``Target``."""
        from attunet3d.datasets.datalist import check_classes, label_groups, named_labels, pancreas_labels
        from attunet3d.datasets.sections import load_cases

        path = folder / "datalist.json"

        def labels() -> None:
            check_classes(label_groups(pancreas_labels(path), {"liver": [9]}), 3)

        def cases(section: str, optional: bool) -> None:
            for case in load_cases(path, folder, section, optional=optional, warn=said.append):
                if not Path(case["image"]).exists() or not Path(case["label"]).exists():
                    raise Fault(f"a case that is not there: {case}")

        said: list[str] = []
        calls: list[Callable[[], Any]] = [labels, lambda: named_labels(path)]
        for section in ("training", "validation", "test"):
            for optional in (True, False):
                if section != "test" or optional:
                    calls.append(lambda section=section, optional=optional: cases(section, optional))
        _all_of(calls)
        from attunet3d.io.printable import one_line

        return " ".join(map(one_line, said))


class Presets:
    """Presets as files: of them a session is made, which segments a CT; the configs of training are read."""

    kinds = ("presets yaml", "presets json", "presets network")

    def __init__(self, settings: dict[str, Any], weights: Path, ct: Path) -> None:
        self._settings = settings
        self._weights = weights
        self._ct = ct

    def damage(self, kind: str, rng: Rng, folder: Path) -> None:
        """See ``Target``."""
        content: dict[str, Any] = {
            **self._settings,
            "hu_window": [-100.0, 240.0],
            "overlap": 0.5,
            "skip_below": -500.0,
            "body_threshold": -300.0,
            "max_window_voxels": 10_000_000,
            "sw_batch_size": 1,
            "threshold": 0.5,
            "keep_components": 1.0,
            "antialias": True,
            "allow_uneven": False,
            "num_classes": 2,
            "network_def::gate": "grid",
            "learning_rate": 0.001,
            "max_epochs": 3,
            "patch_size": [32, 32, 32],
        }
        if kind == "presets network":
            content = {
                "spacing": content["spacing"],
                "channels": content["channels"],
                "network_def": {
                    "_target_": "attunet3d.networks.AttentionUNet",
                    "in_channels": 1,
                    "out_channels": 2,
                    "channels": content["channels"],
                },
            }
        for _ in range(int(any_of(rng, [1, 1, 2]))):
            content = damaged_value(rng, content)
        as_json = kind == "presets json" or rng.random() < 0.2
        data = damaged_text(rng, [lambda: (json_text if as_json else yaml_text)(rng, content)])
        (folder / f"preset.{'json' if kind == 'presets json' else 'yaml'}").write_bytes(data)

    def run(self, kind: str, folder: Path) -> str:
        """See ``Target``."""
        (path,) = folder.iterdir()
        from attunet3d.config.changes import changed_config
        from attunet3d.config.files import CONFIG_FILES

        for mode in CONFIG_FILES:
            changed_config(mode, [path], {})
        return self.segment(folder, presets=[path])

    def segment(self, folder: Path, **how: Any) -> str:
        """Make a session and segment a CT with it."""
        from fuzz_images import segmented

        from attunet3d import Segmenter
        from attunet3d.runtime.process_memory import resident_bytes

        limit = (resident_bytes() or 0) / 1e9 + _MORE_GB
        session = Segmenter(self._weights, device="cpu", precision="fp32", memory_limit=limit, **how)
        return segmented(session, self._ct, folder / "output")


class SetValues:
    """Values of --set, alone and several at once."""

    kinds = ("set values",)
    _PAIRS = (
        *("overlap=0.5", "spacing=6,6,6", "roi_size=[32, 32, 32]", "scales=1.0", "threshold=0,5", "hu_window=-100 240"),
        *("keep_components=1", "skip_below=-500", "antialias=true", "num_classes=2", "network_def::dropout=0.1"),
        *("sw_batch_size=2", "channels=[4,4,8,8,8]", "max_window_voxels=1000000", "backend=torch"),
    )

    def __init__(self, settings: dict[str, Any], presets: Presets) -> None:
        self._settings = settings
        self._presets = presets

    def damage(self, kind: str, rng: Rng, folder: Path) -> None:
        """See ``Target``."""
        pairs = []
        for _ in range(int(any_of(rng, [1, 1, 2]))):
            key, _, text = str(any_of(rng, list(self._PAIRS))).partition("=")
            how = int(rng.integers(6))
            if how < 3:
                value = nasty(rng)
                text = value if isinstance(value, str) and rng.random() < 0.7 else yaml_text(rng, value)
            elif how == 3:
                text = damaged_lines(rng, text, any_of(rng, [",", " "]))
            elif how == 4:
                key = str(any_of(rng, [f"{key}::0", f"+{key}", key.upper(), str(nasty(rng))[:300]]))
            pair = f"{key}={text}"
            if how == 5:
                pair = damaged_bytes(rng, bytearray(pair.encode())).decode("utf-8", "surrogateescape")
            pairs.append(pair)
        (folder / "pairs.json").write_text(json.dumps(pairs))

    def run(self, kind: str, folder: Path) -> str:
        """See ``Target``."""
        from attunet3d.cli.options import overrides_of

        pairs = json.loads((folder / "pairs.json").read_text())
        overrides = overrides_of(pairs, ("checkpoint", "device", "precision"), allow_uneven=False)
        return self._presets.segment(folder, **{**self._settings, **overrides})


def _all_of(calls: list[Callable[[], Any]]) -> None:
    """Call each; the first that was refused is raised at the end. Another error goes through."""
    from attunet3d.errors import AttUNet3dError

    refused: AttUNet3dError | None = None
    for call in calls:
        try:
            call()
        except AttUNet3dError as error:
            refused = refused or error
    if refused is not None:
        raise refused
