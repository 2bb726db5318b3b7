"""The report of an evaluation: what stands in its three files, and that they appear together or not at all."""

from __future__ import annotations

import csv
import json
import math
import re
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from attunet3d.errors import CancelledError, ConfigError, OutputError
from attunet3d.report.evaluation import CaseResult, write_report
from attunet3d.report.figures import MINUS

NASTY = '<script>alert(1)</script>&"'
VOID = {"meta", "img", "source", "br", "hr", "link"}
FETCHING = {"src", "srcset", "href", "data", "poster", "action", "background", "xlink:href"}


class Page(HTMLParser):
    """A page taken apart: texts by element, attributes that fetch, and whether every element is closed in turn."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.alts: list[str] = []
        self.ids: list[str] = []
        self.texts: list[tuple[str, str]] = []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            assert not name.startswith("on")
            if name in FETCHING:
                self.addresses.append(value or "")
            if name == "id":
                self.ids.append(value or "")
        if tag == "img":
            self.alts.append(dict(attrs)["alt"] or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append((self.open[-1], data.strip()))

    def of(self, tag: str) -> list[str]:
        return [text for element, text in self.texts if element == tag]

    @property
    def text(self) -> str:
        return "\n".join(text for tag, text in self.texts if tag != "style")

    def rows(self, table: str) -> list[list[str]]:
        """Cells of the body of the n-th table."""
        body = re.findall(r"<table.*?<tbody>(.*?)</tbody>", self.source, flags=re.DOTALL)[
            ["summary", "cases"].index(table)
        ]
        rows = re.findall(r"<tr>(.*?)</tr>", body, flags=re.DOTALL)
        cells = [re.findall(r"<t[dh].*?</t[dh]>", row) for row in rows]
        return [[unescape(re.sub("<.*?>", "", cell)) for cell in row] for row in cells]


@pytest.fixture
def ct(tmp_path: Path) -> dict[str, str]:
    """A small CT, a mask in it and an empty mask."""
    affine = np.diag([4.0, 4.0, 8.0, 1.0])
    hu = np.full((20, 18, 12), 40, np.int16)
    hu[:3] = -1000
    mask = np.zeros(hu.shape, np.uint8)
    paths = {name: str(tmp_path / f"{name}.nii.gz") for name in ("image", "mask", "empty")}
    nib.save(nib.Nifti1Image(hu, affine), paths["image"])
    nib.save(nib.Nifti1Image(mask, affine), paths["empty"])
    mask[8:14, 6:12, 4:8] = 1
    nib.save(nib.Nifti1Image(mask, affine), paths["mask"])
    return paths


def result(ct: dict[str, str], name: str, dice: float = 0.8, **changes: Any) -> CaseResult:
    """A case with the numbers given, whatever its masks would score."""
    paths = {
        key: changes.pop(key, ct[of]) for key, of in (("image", "image"), ("prediction", "mask"), ("reference", "mask"))
    }
    metrics = {"dice": dice, "precision": 0.75, "recall": 0.9, "assd_mm": 1.25, "hd95_mm": 6.5, "nsd": 0.6}
    volumes = {"prediction_ml": 80.0, "reference_ml": 90.0}
    metrics = {**metrics, **volumes, **changes}
    metrics["difference_ml"] = metrics["prediction_ml"] - metrics["reference_ml"]
    return CaseResult(name, **paths, metrics=metrics)


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


def test_three_files_that_agree(tmp_path: Path, ct: dict[str, str]) -> None:
    out = tmp_path / "new" / "folder"
    results = [
        result(ct, "good", 0.9),
        result(ct, "bad", 0.5, hd95_mm=math.inf, assd_mm=math.inf),
        result(ct, NASTY, 0.7),
    ]
    settings = {"network": {"gate": "grid", "channels": [16, 32]}, "note": "<b>ü</b>", "none": None, "list": [{"a": 1}]}
    path = write_report(out, results, settings=settings, tolerance_mm=3.0)
    assert path == out / "report.html"
    assert sorted(p.name for p in out.iterdir()) == ["metrics.csv", "report.html", "summary.json"]

    with (out / "metrics.csv").open(encoding="utf-8", newline="") as f:
        table = list(csv.DictReader(f))
    assert [row["case"] for row in table] == ["good", "bad", NASTY], "in the order given"
    assert [float(row["assd_mm"]) for row in table] == [1.25, math.inf, 1.25]

    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"), parse_constant=refuse)
    assert summary["settings"] == settings
    assert (summary["cases"], summary["tolerance_mm"]) == (3, 3.0)
    assert summary["dice"]["mean"] == pytest.approx(0.7)
    assert summary["dice"]["sd"] == pytest.approx(0.2)
    assert (summary["hd95_mm"]["infinite"], summary["dice"]["infinite"]) == (1, 0)
    assert summary["worst"] == ["bad", NASTY, "good"]

    page = Page(path)
    rows = {name: cells for name, *cells in page.rows("summary")}
    assert rows["Dice"] == ["0.700 ± 0.200", "0.700", "0.500 to 0.900"]
    assert rows["NSD at 3 mm"] == ["0.600 ± 0.000", "0.600", "0.600 to 0.600"]
    assert rows["HD95 (mm)"] == ["6.50 ± 0.00", "6.50", "6.50 to ∞"]
    assert "ASSD in 1, HD95 in 1 of 3 cases" in page.text
    cases = page.rows("cases")
    assert [row[:3] for row in cases] == [
        ["1", "bad", "0.500"],
        ["2", NASTY, "0.700"],
        ["3", "good", "0.900"],
    ]
    assert cases[0][6:] == ["∞", "∞", "80.0", "90.0", f"{MINUS}10.0"]
    assert {"gate", "grid", "[16, 32]", "<b>ü</b>", "null"} <= {text for _, text in page.texts}
    assert "Research software, not a medical device." in page.of("p")
    assert "3 cases" in page.text


def test_what_is_not_defined_is_a_dash(tmp_path: Path, ct: dict[str, str]) -> None:
    """As the Dice of a tumour that neither mask has."""
    without = {"class2_dice": math.nan, "class2_hd95_mm": math.nan, "class2_reference_ml": 0.0}
    page = Page(write_report(tmp_path / "out", [result(ct, "a", **without)], settings={}))
    rows = {name: cells for name, *cells in page.rows("summary")}
    assert rows["Class 2: Dice"] == ["\N{EN DASH}", "\N{EN DASH}", "\N{EN DASH} to \N{EN DASH}"]
    assert page.rows("cases")[0][-3:] == ["\N{EN DASH}", "\N{EN DASH}", "0.0"]


def test_names_that_turn_the_text_or_are_none(tmp_path: Path, ct: dict[str, str]) -> None:
    """On the page escapes stand for it; table and summary are exact."""
    name = "a\u202eb\u2066\x1b\x85\nc\udcff"
    path = write_report(tmp_path / "out", [result(ct, name)], settings={"title": name})
    shown = r"a\u202eb\u2066\x1b\x85\nc\udcff"
    page = Page(path)
    assert page.rows("cases")[0][1] == shown
    assert any(shown in alt for alt in page.alts)
    assert not set(page.source) & set(name) - set("abc\n")
    assert json.loads((path.parent / "summary.json").read_bytes())["worst"] == [name]
    with (path.parent / "metrics.csv").open(encoding="utf-8", errors="surrogateescape", newline="") as table:
        assert [row["case"] for row in csv.DictReader(table)] == [name]


def test_the_page_fetches_and_runs_nothing(tmp_path: Path, ct: dict[str, str]) -> None:
    results = [
        result(ct, name, 0.5)
        for name in (NASTY, "https://example.org/a.png", "膵臓 Bauchspeicheldrüse", "$_$ x", "{{ 7 * 7 }}{% raw %}")
    ]
    settings = {NASTY: NASTY, "url": "https://example.org", "'>": ["javascript:alert(1)"]}
    page = Page(write_report(tmp_path / "out", results, settings=settings, title=NASTY))
    assert "script" not in page.tags
    assert "link" not in page.tags
    for address in page.addresses:
        assert address.startswith(("data:image/webp;base64,", "data:image/svg+xml;base64,", "#case-"))
    assert not re.search(r"url\(|@import", page.source)
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    assert f'<meta http-equiv="Content-Security-Policy" content="{policy}">' in page.source
    assert page.of("title") == page.of("h1") == [NASTY]
    for case in results:
        assert any(case.case in text for text in page.of("h3"))
        assert any(case.case in alt for alt in page.alts), "escaped in attributes too"
    assert {a for a in page.addresses if a.startswith("#")} == {f"#{i}" for i in page.ids}


def test_the_worst_and_the_best_are_shown(tmp_path: Path, ct: dict[str, str]) -> None:
    order = [7, 2, 11, 5, 9, 1, 10, 4, 8, 3, 6, 0]
    results = [result(ct, f"case {n}", n / 20, image=f"{ct['image']}") for n in order]
    asked: list[str] = []
    progress: list[tuple[int, int]] = []

    def attention(image: str) -> dict[str, np.ndarray]:
        asked.append(image)
        return {"level 2": np.zeros((20, 18, 12), np.float32)}

    page = Page(
        write_report(
            tmp_path / "out", results, settings={}, attention=attention, progress=lambda *at: progress.append(at)
        )
    )
    assert page.of("h3") == [
        "1. case 0", "2. case 1", "3. case 2", "4. case 3", "5. case 4", "12. case 11", "11. case 10", "10. case 9"
    ]  # fmt: skip
    assert [row[1] for row in page.rows("cases")] == [f"case {n}" for n in range(12)]
    assert {"The 5 worst cases", "The 3 best cases"} <= set(page.of("h2"))
    assert asked == [ct["image"]] * 8, "only of the cases shown"
    assert progress == [(done, 8) for done in range(1, 9)]
    assert page.of("h4") == ["Attention, level 2"] * 8
    assert sum("attention, level 2" in alt for alt in page.alts) == 3 * 8


@pytest.mark.parametrize("cases", [1, 2, 7, 8])
def test_few_cases_are_shown_once_each(tmp_path: Path, ct: dict[str, str], cases: int) -> None:
    results = [result(ct, f"case {n}") for n in range(cases)]
    page = Page(write_report(tmp_path / "out", results, settings={}))
    assert page.of("h3") == [f"{n + 1}. case {n}" for n in range(cases)], "equal ones by name"
    assert not page.of("h4"), "no attention was asked for"


def test_bland_altman_by_hand(tmp_path: Path, ct: dict[str, str]) -> None:
    volumes = [(80.0, 90.0), (85.0, 75.0), (106.0, 100.0), (52.0, 60.0)]  # differences -10, 10, 6, -8: mean -0.5
    results = [result(ct, str(n), prediction_ml=p, reference_ml=r) for n, (p, r) in enumerate(volumes)]
    page = Page(write_report(tmp_path / "out", results, settings={}))
    # Deviations -9.5, 10.5, 6.5, -7.5: squares add up to 299; sd = sqrt(299 / 3) = 9.983; 1.96 sd = 19.567
    limits = f"limits of agreement (mean ± 1.96 sd) {MINUS}20.07 to +19.07 mL"
    assert f"mean difference {MINUS}0.50 mL, {limits}" in page.text


def test_one_case(tmp_path: Path, ct: dict[str, str]) -> None:
    page = Page(write_report(tmp_path / "out", [result(ct, "only")], settings={}))
    assert "1 case ·" in page.text
    assert f"mean difference {MINUS}10.00 mL; limits of agreement take at least two cases" in page.text
    assert page.rows("summary")[0] == ["Dice", "0.800", "0.800", "0.800 to 0.800"]


def test_nothing_was_found_in_any_case(tmp_path: Path, ct: dict[str, str]) -> None:
    missed = {"prediction": ct["empty"], "assd_mm": math.inf, "hd95_mm": math.inf, "prediction_ml": 0.0}
    results = [result(ct, str(n), 0.0, **missed) for n in range(3)]
    results.append(result(ct, "both empty", 1.0, **{**missed, "reference": ct["empty"], "reference_ml": 0.0}))
    page = Page(write_report(tmp_path / "out", results, settings={}))
    assert page.rows("summary")[4] == ["ASSD (mm)", "\N{EN DASH}", "∞", "∞ to ∞"]
    assert len(page.alts) == 2 + 3 * 4
    json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8"), parse_constant=refuse)


def test_a_ct_that_is_gone_is_said_in_its_place(tmp_path: Path, ct: dict[str, str]) -> None:
    gone = tmp_path / "Doe^John" / "gone.nii.gz"
    results = [result(ct, "here", 0.9), result(ct, "not here", 0.4, image=str(gone))]
    asked: list[str] = []

    def attention(image: str) -> dict[str, np.ndarray]:
        asked.append(image)
        return {}

    page = Page(write_report(tmp_path / "out", results, settings={}, attention=attention))
    assert "No pictures: gone.nii.gz: does not exist; check the path" in page.of("p")
    assert "Doe" not in page.source, "folders may be named after patients"
    assert asked == [ct["image"]]
    assert len(page.alts) == 2 + 3


def test_a_cancelled_report_is_not_written(tmp_path: Path, ct: dict[str, str]) -> None:
    def cancel(_: str) -> dict[str, np.ndarray]:
        raise CancelledError("cancelled")

    with pytest.raises(CancelledError):
        write_report(tmp_path / "out", [result(ct, "a")], settings={}, attention=cancel)
    assert not list((tmp_path / "out").iterdir())


@pytest.fixture(params=["metrics.csv", "summary.json", "report.html"])
def blocked(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """An output folder where one of the files cannot be written."""
    (tmp_path / "out" / request.param).mkdir(parents=True)
    return tmp_path / "out" / request.param


def test_all_files_or_none(ct: dict[str, str], blocked: Path) -> None:
    with pytest.raises(OutputError, match=blocked.name):
        write_report(blocked.parent, [result(ct, "a")], settings={})
    assert list(blocked.parent.iterdir()) == [blocked]


def test_a_former_report_stays_if_the_new_one_fails(
    tmp_path: Path, ct: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    write_report(out, [result(ct, "former")], settings={})
    former = {path.name: path.read_bytes() for path in out.iterdir()}
    write = Path.write_text

    def full(path: Path, *args: Any, **kwargs: Any) -> int:
        if path.name.endswith("report.html"):
            raise OSError(28, "No space left on device")
        return write(path, *args, **kwargs)

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OutputError, match="No space left"):
        write_report(out, [result(ct, "new")], settings={})
    assert {path.name: path.read_bytes() for path in out.iterdir()} == former


def test_no_results(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at least one case"):
        write_report(tmp_path / "out", [], settings={})
