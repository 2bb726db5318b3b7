"""CT numbers to the network's input range: bit for bit what the training's transform gives."""

from __future__ import annotations

import pytest
import torch
from monai.transforms import ScaleIntensityRange

from attunet3d.transforms.intensity import scale_hu_


@pytest.mark.parametrize("window", [(-160.0, 240.0), (-100, 240), [-57.3, 164.1], (-1024.0, 3071.0)])
def test_window_is_scaled_as_monai_scales_it(window: tuple[float, float]) -> None:
    """``segment`` scales by itself, training and evaluation with MONAI: the network must see the same bits."""
    generator = torch.Generator().manual_seed(0)
    # Whole HU, as read, and fractions, as resampled; and both ends of the window.
    hu = torch.cat([torch.arange(-1100, 3100).float(), torch.rand(5000, generator=generator) * 4000 - 1024])
    hu = torch.cat([hu, torch.tensor(window, dtype=torch.float32)]).view(1, 2, -1)
    expected = ScaleIntensityRange(window[0], window[1], 0.0, 1.0, clip=True)(hu.clone())
    found = scale_hu_(hu, window)
    assert torch.equal(found, torch.as_tensor(expected))
    assert found.data_ptr() == hu.data_ptr()  # in place: a CT is scaled without a second copy of it
    assert found[0, 1, -2:].tolist() == pytest.approx([0.0, 1.0])
