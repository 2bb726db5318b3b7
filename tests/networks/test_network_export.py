"""TorchScript and ONNX give what the network itself gives."""

import io
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from monai.networks.utils import convert_to_onnx
from torch import Tensor

from attunet3d.networks import AttentionUNet

NARROW = (4, 8, 16, 32, 64)
VARIANTS: dict[str, dict[str, Any]] = {
    "grid": {},
    "multi": {"gates_per_skip": 2, "gate_first_skip": True},
    "no_gate": {"gate": None, "deep_supervision": False},
    "att_u_net": {"gate": "additive", "gate_first_skip": True, "deep_supervision": False, "upsample": "conv"},
}
variants = pytest.mark.parametrize("kwargs", VARIANTS.values(), ids=VARIANTS.keys())
pytestmark = [
    # Torch's own: TorchScript is deprecated in its latest releases; MONAI exports bundles with it.
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:You are using the legacy TorchScript-based ONNX export:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The feature will be removed:DeprecationWarning"),
    # The gate compares sizes; within the network they always agree, so the branch taken is the right one everywhere.
    pytest.mark.filterwarnings("ignore:Converting a tensor to a Python boolean:torch.jit.TracerWarning"),
]


def network(**kwargs: Any) -> AttentionUNet:
    torch.manual_seed(0)
    return AttentionUNet(channels=NARROW, **kwargs).eval()


def image(*size: int) -> Tensor:
    return torch.randn((1, 1, *size), generator=torch.Generator().manual_seed(1))


@variants
def test_scripted_network_is_the_network_at_any_size(kwargs: dict[str, Any]) -> None:
    net = network(**kwargs)
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(net), buffer)
    buffer.seek(0)
    scripted = torch.jit.load(buffer)
    with torch.no_grad():
        for size in ((16, 16, 16), (17, 33, 22)):
            torch.testing.assert_close(scripted(image(*size)), net(image(*size)), rtol=1e-5, atol=1e-5)
        with pytest.raises(torch.jit.Error, match="needs at least 16 voxels"):
            scripted(image(16, 15, 16))


@variants
def test_traced_network_is_the_network_at_any_size(kwargs: dict[str, Any]) -> None:
    net = network(**kwargs)
    traced = torch.jit.trace(net, image(17, 20, 16))
    with torch.no_grad():
        for x in (image(17, 20, 16), 3 * image(17, 20, 16).flip(2), image(16, 33, 22)):
            torch.testing.assert_close(traced(x), net(x), rtol=1e-5, atol=1e-5)


@variants
@pytest.mark.parametrize("size", [(32, 16, 16), (17, 19, 23)])
def test_onnx_gives_the_same_logits(kwargs: dict[str, Any], size: tuple[int, int, int], tmp_path: Path) -> None:
    net = network(**kwargs)
    path = tmp_path / "network.onnx"
    convert_to_onnx(net, [image(*size)], input_names=["image"], output_names=["logits"], filename=path, dynamo=False)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    x = image(*size).flip(2)  # not the example it was exported with
    (found,) = session.run(["logits"], {"image": x.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(found), net(x), rtol=1e-4, atol=1e-4)
