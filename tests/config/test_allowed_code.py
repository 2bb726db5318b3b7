"""Presets and ``--set`` are data: nothing in them runs, is imported or is read elsewhere unless that is allowed.

Each attack would make a folder, "ran", in the working directory.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from conftest import PLAIN, ROOT, TINY, Run
from monai.bundle import ConfigParser
from torch import Tensor, nn

from attunet3d import AttentionUNet, Segmenter, bundle_root, workflow
from attunet3d.benchmarks.inference import _command_line, run_benchmark
from attunet3d.config.changes import changed_config, config_changes, inference_values
from attunet3d.config.files import installed_bundle
from attunet3d.config.plain import NETWORKS, for_monai
from attunet3d.errors import ConfigError
from attunet3d.many import segment_many
from attunet3d.many.worker import Job, Worker
from attunet3d.runtime.loading import build_network

MAKE = "__import__('os').mkdir('ran')"
PRESETS = sorted(path.stem for path in (ROOT / "configs").glob("*.yaml"))
# Id, value, and what the message names; in a preset and as an override.
ATTACKS: list[tuple[str, Any, str]] = [
    ("network_def", {"_target_": "os.mkdir", "path": "ran"}, "network_def::_target_"),
    ("network_def::_target_", "os.mkdir", "network_def::_target_"),
    ("network_def#_target_", "attunet3d.networks.attention_unet.torch.hub.load", "network_def::_target_"),
    ("network_def::_target_", "attunet3d.networks.attention_unet.nn.Identity", "network_def::_target_"),
    ("network_def::_target_", "attunet3d.networks.load_reference_weights", "network_def::_target_"),
    ("network_def::_target_", f"${MAKE}", "network_def::_target_"),
    ("network_def::_target_", ["os.mkdir"], "network_def::_target_"),
    ("network_def::gate", {"_target_": "os.mkdir", "path": "ran"}, "network_def::gate::_target_"),
    ("network_def", {"_target_": min(NETWORKS), "gate": f"${MAKE}"}, "network_def::gate"),
    ("network_def", {"_target_": min(NETWORKS), "_mode_": "debug"}, "network_def::_mode_"),
    ("network_def", {"_target_": min(NETWORKS), "_requires_": f"${MAKE}"}, "network_def::_requires_"),
    ("network_def", {"_target_": min(NETWORKS), "_disabled_": f"${MAKE}"}, "network_def::_disabled_"),
    ("network_def", {"_target_": min(NETWORKS), "_desc_": "a text"}, "network_def::_desc_"),
    ("network_def", {"_target_": min(NETWORKS), "+channels": [4]}, "network_def::+channels"),
    ("network_def", "%evil.yaml::network_def", "network_def"),
    ("network_def", [[{"a": {"b": [f"${MAKE}"]}}]], "network_def::0::0::a::b::0"),
    ("overlap", f"${MAKE}", "overlap"),
    ("overlap", f"  ${MAKE}", "overlap"),
    ("overlap", "$import antigravity", "overlap"),
    ("overlap", "@bundle_root", "overlap"),
    ("overlap", "@network", "overlap"),
    ("channels", ["@overlap"], "channels::0"),  # of which a few, of one another, make a value without end
    ("channels", [f"${MAKE}"], "channels::0"),
    ("spacing", ({"x": {"_target_": "os.mkdir"}},), "spacing::0::x::_target_"),
    ("spacing", {"a::_target_": "os.mkdir"}, "spacing::a::_target_"),
]
TRAINING_ATTACKS: list[tuple[str, Any, str]] = [
    ("loss::_target_", "os.mkdir", "loss::_target_"),
    ("optimizer::_target_", "torch.optim.SGD", "optimizer::_target_"),
    ("optimizer", {"_target_": "os.mkdir", "path": "ran"}, "optimizer::_target_"),
    ("train#trainer#max_epochs", f"${MAKE}", "train::trainer::max_epochs"),
    ("train::handlers", [{"_target_": "os.mkdir", "path": "ran"}], "train::handlers::0::_target_"),
    ("validate", {"evaluator": {"_requires_": [f"${MAKE}"]}}, "validate::evaluator::_requires_"),
    ("imports", ["$import os"], "imports::0"),
    ("initialize", [f"${MAKE}"], "initialize::0"),
    ("run", [f"${MAKE}"], "run::0"),
    ("organs", {f"${MAKE}": [1]}, f"organs::${MAKE}"),
    ("cache_dir", "%evil.yaml::cache_dir", "cache_dir"),
    ("seed", "@ckpt_dir", "seed"),
    ("initial_checkpoint", "$str(@bundle_root) + '/models/model.pt'", "initial_checkpoint"),
]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def preset(folder: Path, content: Mapping[str, Any] | str | bytes, name: str = "evil.yaml") -> Path:
    path = folder / name
    if isinstance(content, Mapping):
        content = yaml.safe_dump(dict(content))
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@contextmanager
def refused(*said: str) -> Iterator[None]:
    with pytest.raises(ConfigError) as caught:
        yield
    message = str(caught.value)
    for text in (*said, "allow_code=True", "can run any program"):
        assert text in message
    assert not Path("ran").exists()


class Threshold(nn.Conv3d):
    """A user's own network: two classes by a threshold."""

    min_size = 8

    def __init__(self) -> None:
        super().__init__(1, 2, 1)
        with torch.no_grad():
            self.weight.copy_(torch.tensor([0.0, 10.0]).reshape(2, 1, 1, 1, 1))
            self.bias.copy_(torch.tensor([5.0, 0.0]))

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1, X, Y, Z) -> logits (B, 2, X, Y, Z)."""
        return super().forward(x)


OWN = {"network_def": {"_target_": f"{__name__}.Threshold"}}


# --- what is refused


@pytest.mark.parametrize("mode", ["train", "evaluate", "inference"])
def test_code_is_refused_in_presets_and_overrides(here: Path, mode: Any) -> None:
    before = set(sys.modules)
    for key, value, named in ATTACKS + TRAINING_ATTACKS:
        plain = list(value) if isinstance(value, tuple) else value
        with refused(repr(named), "evil.yaml: id "):  # also where the id is another config's
            config_changes(mode, [preset(here, {key: plain})], {})
        with refused(repr(named), "evil.yaml: id "):
            config_changes(mode, [preset(here, {f"+{key}": plain})], {})
        with refused(repr(named)):
            config_changes(mode, [], {key: value})
        assert config_changes("train", [], {key: value}, allow_code=True)
    assert "antigravity" not in set(sys.modules) - before


def test_a_network_is_one_of_this_packages_before_anything_is_imported(here: Path) -> None:
    for target in NETWORKS:
        assert isinstance(build_network({"_target_": target, "channels": [4, 4]}), AttentionUNet)
        assert inference_values([], {"network_def::_target_": target})["network_def"]["_target_"] == target
    for target in (
        "os.mkdir", "", "mkdir", "this.anything", "attunet3d.networks.attention_unet.torch.hub.load",
        "attunet3d.networks.GridAttentionGate", "attunet3d.networks.AttentionUNet.__init__", [min(NETWORKS)],
        "attunet3d.AttentionUNet ", "attunet3d.networks.attention_unet.nn.Conv3d", None,
    ):  # fmt: skip
        with refused("is no network of this package"):
            build_network({"_target_": target, "path": "ran"})
    assert "this" not in sys.modules


def test_every_verb_refuses(
    run: Run, here: Path, tiny_checkpoint: Path, write_phantom: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before it reads anything, or makes a folder."""
    ct = write_phantom()
    (here / "m.csv").write_text(f"path\n{ct}\n")
    main = preset(here, "", "main.py")
    monkeypatch.setattr("attunet3d.label.folder.sample_app", lambda: main)
    monkeypatch.setattr("attunet3d.label.server.check_address", lambda *_: "")
    monkeypatch.setattr("attunet3d.many.cluster.connected", None)  # Ray is not asked for
    study = ["--dataset-dir", here, "--datalist", here / "none.json"]
    verbs = [
        ["segment", ct, "-o", "out"],
        ["segment", ct, "-o", "out", "--attention"],
        ["segment-many", "m.csv", "-o", "out"],
        ["train", *study, "-o", "out"],
        ["evaluate", *study, "--checkpoint", tiny_checkpoint, "-o", "out"],
        ["benchmark", ct, "-o", "out"],
        ["label", here, "--app", "out"],
    ]
    evil = preset(here, {"network_def": {"_target_": "os.mkdir", "path": "ran"}})
    ways = [
        (["-c", evil], f"{evil}: id 'network_def::_target_'"),
        (["--set", "network_def={_target_: os.mkdir, path: ran}"], "id 'network_def::_target_'"),
        (["--set", 'network_def={"_target_": "os.mkdir", "path": "ran"}'], "id 'network_def::_target_'"),
        (["--set", "network_def::_target_=os.mkdir"], "id 'network_def::_target_'"),
        (["--set", "network_def=%evil.yaml::network_def"], "id 'network_def'"),
        (["--set", "overlap=' $1 + 1'"], "id 'overlap'"),
        (["--set", "network_def=@network"], "id 'network_def'"),
    ]
    for verb in verbs:
        for way, said in ways:
            code, stdout, stderr = run(*verb, *way)
            assert (code, stdout) == (2, ""), verb
            (line,) = [line for line in stderr.splitlines() if line.startswith("error: ")]
            assert said in line
            assert line.endswith(" (--allow-code)")
            assert "can run any program" in line
    assert not Path("ran").exists()
    assert not Path("out").exists()


def test_the_python_interface_refuses(here: Path, tiny_checkpoint: Path, write_phantom: Callable[..., Path]) -> None:
    evil = preset(here, {"overlap": f"${MAKE}"})
    for session in ({"presets": [evil]}, {"overlap": f"${MAKE}"}, {"network_def": {"_target_": "os.mkdir"}}):
        for call in (
            lambda **more: Segmenter(tiny_checkpoint, **more),
            lambda **more: Worker(Job(str(here / "out"), {"checkpoint": str(tiny_checkpoint), **more})).load(),
            lambda **more: segment_many(here, here / "out", **more),
            lambda **more: workflow.train(here, here / "none.json", here / "out", **more),
            lambda **more: workflow.evaluate(here, here / "none.json", tiny_checkpoint, here / "out", **more),
            lambda **more: run_benchmark(write_phantom(), here / "out", **more),
        ):
            with refused():
                call(**session)
    assert not Path("out").exists()


def test_an_argument_of_the_interface_is_no_id(run: Run, here: Path, write_phantom: Callable[..., Path]) -> None:
    """Or ``--set allow_code=true``, and ``presets``, would be given to what takes the values."""
    preset(here, {"overlap": f"${MAKE}"})
    study = ["--dataset-dir", here, "--datalist", here / "none.json", "-o", "out"]
    for verb in (["segment", write_phantom(), "-o", "out"], ["train", *study], ["segment-many", here, "-o", "out"]):
        for pair in ("allow_code=true", "presets=[evil.yaml]"):
            code, _, stderr = run(*verb, "--set", pair)
            assert (code, len(stderr.splitlines())) == (2, 1)
            assert f"id {pair.partition('=')[0]!r} is not in the bundle's configs" in stderr
    code, _, stderr = run("train", *study, "--set", "output_dir=x")
    assert code == 2
    assert "output_dir has an option of its own" in stderr


def test_a_folder_that_looks_like_the_bundle_is_not_run(
    run: Run, here: Path, tiny_checkpoint: Path, write_phantom: Callable[..., Path]
) -> None:
    (here / "configs").mkdir()
    preset(here / "configs", (installed_bundle() / "configs" / "metadata.json").read_bytes(), "metadata.json")
    evil = {"imports": [f"${MAKE}"], "initialize": [f"${MAKE}"], "network_def": {"_target_": "os.mkdir", "path": "ran"}}
    for name in ("train.yaml", "evaluate.yaml", "inference.yaml"):
        preset(here / "configs", evil, name)
    preset(here, f"import os; {MAKE}", "monai.py")
    assert bundle_root() == here  # for `python -m monai.bundle run`, which is told to run its configs
    Segmenter(tiny_checkpoint, "cpu", "fp32", **TINY, **PLAIN)
    made = workflow.make_workflow("train", ["smoke"])
    made.parser.parse()
    assert made.parser.get_parsed_content("bundle_root") == str(installed_bundle())
    code, _, _ = run("train", "--dataset-dir", here, "--datalist", "none.json", "-o", "out", "-c", "smoke")
    assert code == 2
    assert not Path("ran").exists()


# --- with --allow-code


def test_allowed_code_runs(run: Run, here: Path, tiny_checkpoint: Path) -> None:
    """Which also shows that the attacks above are none in vain."""
    study = ["--dataset-dir", here, "--datalist", here / "none.json"]
    for verb in (["train", *study, "-o", "out"], ["evaluate", *study, "--checkpoint", tiny_checkpoint, "-o", "out"]):
        for way in (["--set", f"fold=${MAKE} or 0"], ["-c", preset(here, {"fold": f"${MAKE} or 0"})]):
            code, _, stderr = run(*verb, *way, "--allow-code")
            assert (code, "none.json" in stderr) == (2, True)
            Path("ran").rmdir()
    with pytest.raises(ConfigError, match="is not a torch module"):
        Segmenter(tiny_checkpoint, "cpu", network_def={"_target_": "os.mkdir", "path": "ran"}, allow_code=True)
    Path("ran").rmdir()


def test_a_users_own_network_segments(run: Run, here: Path, write_phantom: Callable[..., Path]) -> None:
    torch.save(Threshold().state_dict(), "$own.pt")
    mine = preset(here, {**OWN, **PLAIN, "spacing": [6.0] * 3, "hu_window": [-160.0, 240.0]}, "mine.yaml")
    begin = ["segment", write_phantom(), "-o", "%out", "--checkpoint", "$own.pt", "--precision", "fp32", "-c", mine]
    assert run(*begin)[0] == 2
    code, stdout, stderr = run(*begin, "--allow-code")
    assert (code, stderr) == (0, "")
    assert np.asarray(nib.load(stdout.strip()).dataobj).any()


def test_a_users_own_network_and_expressions_train(here: Path) -> None:
    values = {**OWN, "learning_rate": "$0.5 / 1000", "loss::_target_": "monai.losses.DiceCELoss"}
    made = workflow.make_workflow("train", [preset(here, values)], {"ckpt_dir": Path("$run")}, allow_code=True)
    made.parser.parse()
    assert isinstance(workflow.parsed(made, "network_def"), Threshold)
    assert workflow.parsed(made, "optimizer").param_groups[0]["lr"] == 0.0005
    assert workflow.parsed(made, "ckpt_dir") == "$run"


def test_a_benchmarks_command_line_allows_what_its_caller_did() -> None:
    plan, ours = {"ct": "ct", "device": "cpu"}, {"output_dir": "out", "overlap": 0.5}
    assert "--allow-code" in _command_line(plan, {**ours, "allow_code": True})
    assert "--allow-code" not in _command_line(plan, {**ours, "allow_code": False})


# --- what is shipped, and plain values


@pytest.mark.parametrize("name", PRESETS)
def test_presets_that_are_shipped_need_no_code(name: str) -> None:
    for mode in ("train", "evaluate", "inference"):
        assert config_changes(mode, [name], {}) == config_changes(mode, [name], {}, allow_code=True)


def test_fine_tuning_starts_from_the_bundles_weights(tmp_path: Path) -> None:
    """Also in MONAI's own run, which reads the preset as one more config."""
    parser = ConfigParser()
    parser.read_config([str(installed_bundle() / "configs" / "train.yaml"), str(ROOT / "configs" / "fine_tune.yaml")])
    parser["device"] = "cpu"
    parser.get_parsed_content("run::0")
    started = parser.get_parsed_content("network_def").state_dict()
    bundled = torch.load(installed_bundle() / "models" / "model.pt", weights_only=True)
    assert all(torch.equal(started[key], value.float()) for key, value in bundled.items() if "auxiliary" not in key)

    torch.manual_seed(5)
    own = AttentionUNet(channels=TINY["channels"]).state_dict()
    torch.save(own, tmp_path / "bundled")
    for value, same in ((str(tmp_path / "bundled"), True), ("", False)):
        made = workflow.make_workflow("train", ["fine_tune"], {**TINY, "initial_checkpoint": value})
        made.parser.parse()
        workflow.parsed(made, "run::0")
        started = workflow.parsed(made, "network_def").state_dict()
        assert torch.equal(started["final.weight"], own["final.weight"]) == same


def test_the_optimizer_is_one_that_is_known() -> None:
    made = workflow.make_workflow("train", [], {**TINY, "optimizer_name": "SGD"})
    made.parser.parse()
    with pytest.raises(ConfigError, match="optimizer_name 'SGD' is not known: use AdamW, Adam"):
        workflow.parsed(made, "optimizer")


def test_monai_takes_texts_as_they_stand() -> None:
    for text in ("$1", "@a", "%a.yaml::b", "a#b", "x@#y%##z", "\\@'\"$", "a\udcff\n@", "import #", "plain", "", "$'@'"):
        for value in (Path(text), [Path(text)], {"a": [Path(text)]}):
            parser = ConfigParser({"a": 1, "x": for_monai(value), "y": "$[@x]"})
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                expected = {"p": str(Path(text)), "q": [str(Path(text))], "r": {"a": [str(Path(text))]}}
            found = parser.get_parsed_content("y")[0]
            assert found in expected.values()
            assert type(found) in (str, list, dict)
    parser = ConfigParser({"x": for_monai({"a": "1#2 $ @ %"})})
    assert parser.get_parsed_content("x") == {"a": "1#2 $ @ %"}


def test_the_label_servers_configs_hold_texts_as_they_stand() -> None:
    config = changed_config("train", [], {"cache_dir": "cases#1@#", "ckpt_dir": Path("$models")})
    parser = ConfigParser(yaml.safe_load(yaml.safe_dump(config)))
    assert parser.get_parsed_content("cache_dir") == "cases#1@#"
    assert parser.get_parsed_content("ckpt_dir") == "$models"


def test_references_to_plain_values_stay() -> None:
    made = workflow.make_workflow("train", [], {"roi_size": "@patch_size", "patch_size": [16, 16, 16]})
    made.parser.parse()
    assert workflow.parsed(made, "roi_size") == [16, 16, 16]
    for changes in ({"seed": "@nothing"}, {"seed": "@fold", "fold": "@seed"}, {"seed": "@#fold"}, {"seed": "@"}):
        with pytest.raises(ConfigError, match="cannot be resolved"):
            workflow.make_workflow("train", [], changes)


def test_an_object_that_is_made_a_value_is_refused() -> None:
    made = workflow.make_workflow("train", [], {"network_def": {"gate": "grid"}})
    with pytest.raises(ConfigError, match="config id 'initialize' cannot be built"):
        workflow._run(made, "train::trainer")


# --- files without end


BOMB = "a: &a [x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 8)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGES = "a: &a {k: 1}\n" + "".join(f"a{n}: &a{n} {{<<: [*a{n - 1 or ''}, *a{n - 1 or ''}]}}\n" for n in range(1, 40))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (BOMB, "more than 10000 values, with its aliases expanded"),
        (MERGES, "more than 10000 values, with its aliases expanded"),
        ("overlap: &a [*a]", "the alias *a has no anchor, or is a part of its own value"),
        ("overlap: *nothing", "the alias *nothing has no anchor"),
        ("overlap: " + "[" * 5000, "nested more than 50 deep"),
        ("overlap: " + "[" * 200 + "]" * 200, "nested more than 50 deep"),
        ("- " * 3000 + "x", "nested more than 50 deep"),
        ("overlap: " + "{a: " * 3000, "nested more than 50 deep"),
        ("overlap: [" + "1, " * 20_000 + "1]", "more than 10000 values"),
        ("overlap: " + "1" * 200_000, "more than 100000 characters"),
        (b"overlap: \xff\xfe", "the preset cannot be read"),
        ("overlap: 0.5".encode("utf-16"), "the preset cannot be read"),
        (b"overlap: \0", "the preset cannot be read"),
        ("overlap: 2001-13-45", "the preset cannot be read"),
        ("overlap: !!int x", "the preset cannot be read"),
        ("overlap: !!bool x", "the preset cannot be read"),
        ("overlap: !!timestamp x", "the preset cannot be read"),
        ("overlap: !!int ''", "the preset cannot be read"),
        ("overlap: " + "9" * 5000, "the preset cannot be read"),
        ("overlap: 0x" + "f" * 5000, "a number of 20000 bits"),  # Python reads it, and prints it in no message
        ("? 0b" + "1" * 5000 + "\n: 1", "a number of 5000 bits"),
        ("overlap: 1" + ":1" * 2000, "a number of 11814 bits"),
        ("overlap: !!python/object/apply:os.mkdir [ran]", "the preset cannot be read"),
        ("--- \na: 1\n--- \na: 2", "the preset cannot be read"),
        ("[" * 40 + "]" * 40, "a preset is a mapping of ids to values"),
    ],
)
def test_presets_without_end_or_sense_are_refused(here: Path, content: str | bytes, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        inference_values([preset(here, content)])
    assert "evil.yaml" in str(caught.value)
    assert said in str(caught.value)
    assert not Path("ran").exists()


def test_anchors_of_a_size_are_read(here: Path) -> None:
    values = inference_values([preset(here, "spacing: &three [2.0, 2.0, 2.0]\nroi_size: *three\nchannels: &c [4, 8]")])
    assert values["roi_size"] == values["spacing"] == [2.0, 2.0, 2.0]


@pytest.mark.parametrize(
    "text",
    [
        "[&a [x, x, x, x, x, x, x, x, x, x], &b [" + "*a, " * 50 + "*a], [" + "*b, " * 50 + "*b]]",
        "&a [*a]",
        "[" * 3000,
        "[" * 60 + "]" * 60,
        "{a: " * 60 + "1" + "}" * 60,
        "1" + " " * 50_000 + "1",
        "[" + "1, " * 20_000 + "1]",
        "!!python/object/apply:os.mkdir [ran]",
        "!!bool x",
        "0x" + "f" * 5000,
        "[[0x" + "f" * 5000 + "]]",
        "{a: 0x" + "f" * 5000 + "}",
        "'9' x 2001-13-45",
    ],
)
@pytest.mark.parametrize("key", ["spacing", "overlap", "network_def"])
def test_values_without_end_or_sense_are_refused(run: Run, here: Path, key: str, text: str) -> None:
    ct = here / "none.nii.gz"
    code, stdout, stderr = run("segment", ct, "-o", "out", "--device", "cpu", "--set", f"{key}={text}")
    assert (code, stdout) == (2, "")
    assert stderr.startswith("error: ")
    assert len(stderr.splitlines()) == 1
    assert not Path("ran").exists()


def test_values_of_python_without_end_are_refused() -> None:
    value: list[Any] = []
    value.append(value)
    with pytest.raises(ConfigError, match="id 'channels': nested more than 50 deep"):
        inference_values([], {"channels": value})
