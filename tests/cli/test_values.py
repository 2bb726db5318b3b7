"""What is meant by a ``--set ID=VALUE``, by hand."""

import pytest

from attunet3d.cli.options import overrides_of
from attunet3d.errors import ConfigError

UNDERSTOOD = {
    "overlap=0.5": 0.5,
    "overlap=.5": 0.5,
    "learning_rate=1e-4": 1e-4,
    "threshold=0,5": 0.5,
    "threshold=-0,25": -0.25,
    "threshold='0.5'": 0.5,
    "'threshold=0.5'": 0.5,
    '"threshold = 0.5"': 0.5,
    "threshold=“0.5”": 0.5,
    "max_epochs=20": 20,
    "sw_batch_size=2": 2,
    "sw_batch_size=null": None,
    "spacing=[2, 2, 2]": [2, 2, 2],
    "spacing=[2,2,2]": [2, 2, 2],
    "spacing=2,2,2": [2, 2, 2],
    "spacing=2 2 2": [2, 2, 2],
    "spacing=2, 2, 2": [2, 2, 2],
    "spacing=(2,2,2)": [2, 2, 2],
    "spacing=( 2 2 2 )": [2, 2, 2],
    "spacing={2,2,2}": [2, 2, 2],
    "spacing=[2 2 2]": [2, 2, 2],
    "spacing=[2,2,2": [2, 2, 2],
    "spacing='[2,2,2]'": [2, 2, 2],
    'spacing="2,2,2"': [2, 2, 2],
    "spacing=1.5,1.5,3": [1.5, 1.5, 3],
    "spacing=1,5;1,5;3": [1.5, 1.5, 3],
    "spacing=2": [2, 2, 2],
    "spacing=2.5": [2.5, 2.5, 2.5],
    "roi_size=96": [96, 96, 96],
    "roi_size=96x96x64": [96, 96, 64],
    "patch_size=32": [32, 32, 32],
    "hu_window=-160,240": [-160, 240],
    "hu_window=-160 240": [-160, 240],
    "scales=1": [1],
    "scales=[1]": [1],
    "scales=0.8,1": [0.8, 1],
    "channels=8,16,32": [8, 16, 32],
    "flow=[]": [],
    "roi_size=@patch_size": "@patch_size",
    "spacing=$[2] * 3": "$[2] * 3",
    "backend=torch": "torch",
    "network_def::gate=null": None,
    "network_def::dropout=0,1": 0.1,
    "layout={a: 1}": {"a": 1},
}


@pytest.mark.parametrize("pair", UNDERSTOOD)
def test_understood(pair: str) -> None:
    value = UNDERSTOOD[pair]
    (found,) = overrides_of([pair], ()).values()
    assert found == value
    assert type(found) is type(value)
    if isinstance(value, list):
        assert [type(item) for item in found] == [type(item) for item in value]


@pytest.mark.parametrize(
    ("pair", "spelling"),
    [
        ("spacing=2,2", "--set 'spacing=[3.0, 3.0, 3.0]'"),
        ("spacing=2,2,2,2", "--set 'spacing=[3.0, 3.0, 3.0]'"),
        ("spacing=2:2:2", "--set 'spacing=[3.0, 3.0, 3.0]'"),
        ("spacing=1,5 1,5 3", "--set 'spacing=[3.0, 3.0, 3.0]'"),
        ("spacing=[2, two, 2]", "--set 'spacing=[3.0, 3.0, 3.0]'"),
        ("spacing=", "--set 'spacing=[3.0, 3.0, 3.0]'"),
        ("spacing=[2,", "--set 'spacing=[3.0, 3.0, 3.0]'"),
        ("hu_window=100", "--set 'hu_window=[-160.0, 240.0]'"),
        ("channels=16", "--set 'channels=[16, 32, 64, 128, 256]'"),
        ("scales=all", "--set 'scales=[0.8, 1.0, 1.25]'"),
        ("threshold=half", "--set 'threshold=0.2'"),
        ("threshold=0.2,0.3", "--set 'threshold=0.2'"),
        ("threshold=[0.2, 0.3]", "--set 'threshold=0.2'"),
        ("threshold=0.5%", "--set 'threshold=0.2'"),
        ("max_window_voxels=3,000,000", "--set 'max_window_voxels=3000000'"),
        ("max_epochs=1,000", "--set 'max_epochs=300'"),
        ("overlap", "--set overlap=0.5"),
        ("=2", "--set overlap=0.5"),
        ("overlap:0.5", "--set overlap=0.5"),
    ],
)
def test_not_understood(pair: str, spelling: str) -> None:
    with pytest.raises(ConfigError) as caught:
        overrides_of([pair], ())
    assert spelling in str(caught.value)
    assert "\n" not in str(caught.value)
