"""Load weights of the two published PyTorch implementations, with their key names.

These are those of github.com/ozan-oktay/Attention-Gated-Networks (``unet_CT_{dsv,single_att_dsv,
multi_att_dsv}_3D``) and github.com/LeeJunHyun/Image_Segmentation (``AttU_Net``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor

from attunet3d.errors import CheckpointError
from attunet3d.networks.attention_gate import AdditiveAttentionGate, GatedSkip
from attunet3d.networks.attention_unet import AttentionUNet

# Index of each layer in the Sequential(conv, norm, relu) that both implementations use.
_LAYERS = {"conv": "0", "norm": "1"}


def load_reference_weights(net: AttentionUNet, state_dict: Mapping[str, Tensor]) -> None:
    """Load a state dict of the published 3D network for CT, or of AttU_Net, into ``net`` in place.

    Args:
        net: a network of the same architecture: ``AttentionUNet`` with ``gates_per_skip`` 1 (single), 2 (multi) or
            ``gate=None``, or ``AttentionUNet.att_u_net``.
        state_dict: tensors by the key names of the published code, with or without DataParallel's ``module.`` prefix.

    Raises:
        CheckpointError: keys or shapes do not match ``net``.
    """
    given = {key.removeprefix("module."): value for key, value in state_dict.items()}
    if "conv1.conv1.0.weight" in given:
        source, pairs = "published 3D CT network", _ct_modules(net)
    elif "Conv1.conv.0.weight" in given:
        source, pairs = "AttU_Net", _att_u_net_modules(net)
    else:
        raise CheckpointError(
            "state dict is neither the published 3D CT network's (key conv1.conv1.0.weight) nor AttU_Net's "
            f"(key Conv1.conv.0.weight): its first keys are {list(given)[:3]}"
        )
    theirs_of = dict(pairs)
    wanted = net.state_dict()
    renamed: dict[str, Tensor] = {}
    problems: list[str] = []
    for key, value in wanted.items():
        module, _, leaf = key.rpartition(".")
        theirs = f"{theirs_of[module]}.{leaf}" if module in theirs_of else None
        found = given.pop(theirs, None) if theirs is not None else None
        if found is None and leaf == "num_batches_tracked":
            found = value  # absent before torch 0.4.1; not used at inference
        if found is None:
            problems.append(f"lacks {theirs or key}")
        elif found.shape != value.shape:
            problems.append(f"{theirs} is {tuple(found.shape)}, not {tuple(value.shape)}")
        else:
            renamed[key] = found
    problems += [f"has the unexpected key {key}" for key in given]
    if problems:
        raise CheckpointError(
            f"state dict of the {source} does not fit this network ({len(problems)} keys differ; it {problems[0]}): "
            "build AttentionUNet with the same channels, gates_per_skip and classes"
        )
    net.load_state_dict(renamed)


def _block(ours: str, theirs: str) -> Iterator[tuple[str, str]]:
    """Yield (our module, their module) for one conv + norm block."""
    for layer, index in _LAYERS.items():
        yield f"{ours}.{layer}", f"{theirs}.{index}"


def _ct_modules(net: AttentionUNet) -> Iterator[tuple[str, str]]:
    deepest = len(net.encoder)
    for level in range(1, deepest + 1):
        name = "center" if level == deepest else f"conv{level}"
        yield from _block(f"encoder.{level - 1}.first", f"{name}.conv1")
        yield from _block(f"encoder.{level - 1}.second", f"{name}.conv2")
    yield from _block("gating", "gating.conv1")
    for step, decoder_level in enumerate(net.decoder):
        level = deepest - 1 - step
        ours = f"decoder.{step}"
        yield from _block(f"{ours}.conv.first", f"up_concat{level}.conv.conv1")
        yield from _block(f"{ours}.conv.second", f"up_concat{level}.conv.conv2")
        gate = decoder_level.gate
        if isinstance(gate, GatedSkip):
            for index in range(len(gate.gates)):
                mine, other = f"{ours}.gate.gates.{index}", f"attentionblock{level}.gate_block_{index + 1}"
                yield f"{mine}.w_x", f"{other}.theta"
                yield f"{mine}.w_g", f"{other}.phi"
                yield f"{mine}.psi", f"{other}.psi"
                yield from _block(f"{mine}.w_out", f"{other}.W")
            yield from _block(f"{ours}.gate.combine", f"attentionblock{level}.combine_gates")
        yield f"heads.{step}", "dsv1" if level == 1 else f"dsv{level}.dsv.0"
    yield "final", "final"


def _att_u_net_modules(net: AttentionUNet) -> Iterator[tuple[str, str]]:
    def convs(ours: str, theirs: str) -> Iterator[tuple[str, str]]:
        # One Sequential holds both blocks: conv, norm, relu, conv, norm, relu.
        for block, offset in (("first", 0), ("second", 3)):
            yield f"{ours}.{block}.conv", f"{theirs}.conv.{offset}"
            yield f"{ours}.{block}.norm", f"{theirs}.conv.{offset + 1}"

    deepest = len(net.encoder)
    for level in range(1, deepest + 1):
        yield from convs(f"encoder.{level - 1}", f"Conv{level}")
    for step, decoder_level in enumerate(net.decoder):
        level = deepest - step  # AttU_Net numbers decoder steps by their coarser level
        ours = f"decoder.{step}"
        # Their Upsample is the first module of the Sequential.
        yield f"{ours}.up_conv.conv", f"Up{level}.up.1"
        yield f"{ours}.up_conv.norm", f"Up{level}.up.2"
        gate = decoder_level.gate
        if isinstance(gate, GatedSkip) and isinstance(gate.gates[0], AdditiveAttentionGate):
            for layer, name in (("w_x", "W_x"), ("w_g", "W_g"), ("psi", "psi")):
                yield from _block(f"{ours}.gate.gates.0.{layer}", f"Att{level}.{name}")
        yield from convs(f"{ours}.conv", f"Up_conv{level}")
    yield "heads.0", "Conv_1x1"
