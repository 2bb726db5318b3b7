"""Averaged weights, by hand."""

import pytest
import torch
from ignite.engine import Engine
from torch import nn

from attunet3d.runtime.fast_network import FastNetwork
from attunet3d.training import AverageWeights


class One(nn.Module):
    """A weight, a statistic and a counter."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.register_buffer("statistic", torch.zeros(1))
        self.register_buffer("counter", torch.zeros((), dtype=torch.long))

    def become(self, value: float) -> None:
        with torch.no_grad():
            self.weight.fill_(value)
            self.statistic.fill_(2 * value)
            self.counter.fill_(int(value))


def values(network: nn.Module) -> list[float]:
    return [float(value) for value in network.state_dict().values()]


def test_a_sequence_by_hand() -> None:
    """1/10, 2/11 and 3/12 of the average are kept, and then, with a decay of 0.2, not more than that."""
    network = One()
    average = AverageWeights(network, 0.2)
    network.become(10)
    average.update()
    first = 9.0  # 0.1 x 0 + 0.9 x 10
    assert values(average.network) == pytest.approx([first, 2 * first, 10])
    network.become(20)
    average.update()
    second = (2 * first + 9 * 20) / 11
    assert values(average.network) == pytest.approx([second, 2 * second, 20])
    network.become(-5)
    average.update()
    third = 0.2 * second + 0.8 * -5
    assert values(average.network) == pytest.approx([third, 2 * third, -5])
    assert average.steps == 3
    assert values(network) == [-5, -10, -5], "the network in training stays as it is"


def test_it_settles_at_the_decay() -> None:
    network = One()
    average = AverageWeights(network, 0.99)
    for _ in range(900):
        average.update()
    network.become(1)
    average.update()
    assert float(average.network.weight) == pytest.approx(0.01, rel=1e-4)


def test_a_constant_is_its_own_average() -> None:
    network = One()
    network.become(3)
    average = AverageWeights(network, 0.9)
    for _ in range(50):
        average.update()
    assert values(average.network) == pytest.approx([3, 6, 3])


def test_no_decay_is_the_network_itself() -> None:
    network = One()
    average = AverageWeights(network, 0.0)
    assert average.network is network
    engine = Engine(lambda engine, batch: network.become(batch))
    average.attach(engine)
    engine.run([4.0])
    assert values(average.network) == [4, 8, 4]


def test_it_follows_a_trainer_from_the_weights_at_its_start() -> None:
    """Weights are loaded between the config's parsing and the run."""
    network = One()
    average = AverageWeights(network, 0.5)
    network.become(100)
    engine = Engine(lambda engine, batch: network.become(batch))
    average.attach(engine)
    engine.run([10.0, 20.0])
    first = 0.1 * 100 + 0.9 * 10
    assert float(average.network.weight) == pytest.approx((2 * first + 9 * 20) / 11)
    assert average.steps == 2


def test_the_average_takes_no_part_in_training() -> None:
    network = One()
    average = AverageWeights(network, 0.5)
    assert not any(p.requires_grad for p in average.network.parameters())
    assert all(p.requires_grad for p in network.parameters())


def test_its_state_goes_on() -> None:
    def sequence(average: AverageWeights, network: One, numbers: list[int]) -> None:
        for number in numbers:
            network.become(number)
            average.update()

    network = One()
    whole = AverageWeights(network, 0.9)
    sequence(whole, network, [3, 1, 4, 1, 5])
    part = AverageWeights(network, 0.9)
    network.become(0)
    part.start()
    sequence(part, network, [3, 1])
    state = {"steps": part.steps, "network": {k: v.clone() for k, v in part.state_dict()["network"].items()}}
    resumed = AverageWeights(network, 0.9)
    resumed.steps = state["steps"]
    resumed.network.load_state_dict(state["network"])
    sequence(resumed, network, [4, 1, 5])
    assert resumed.steps == whole.steps == 5
    assert values(resumed.network) == pytest.approx(values(whole.network))


@pytest.mark.parametrize("decay", [-0.1, 1.0, 2.0, float("nan")])
def test_a_decay_that_is_none(decay: float) -> None:
    with pytest.raises(ValueError, match=r"must be in \[0, 1\)"):
        AverageWeights(One(), decay)


@pytest.mark.parametrize("change", ["update", "start"])
def test_the_validated_network_notices(change: str) -> None:
    """``FastNetwork`` folds the weights it is given, and again when they have changed since."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv3d(1, 2, 1), nn.BatchNorm3d(2))
    average = AverageWeights(network, 0.9)
    validated = FastNetwork(average.network, torch.device("cpu"), torch.float32, backend="torch").eval()
    x = torch.ones(1, 1, 4, 4, 4)
    before = validated(x)
    torch.testing.assert_close(validated(x), before)
    with torch.no_grad():
        network[0].bias.add_(10.0)
    getattr(average, change)()
    after = validated(x)
    assert float((after - before).abs().min()) > 5
    torch.testing.assert_close(after, average.network.eval()(x), rtol=1e-5, atol=1e-5)
