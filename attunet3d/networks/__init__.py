"""The network: attention gates, the Attention U-Net, and published weights for it."""

from attunet3d.networks.attention_gate import AdditiveAttentionGate, GatedSkip, GridAttentionGate
from attunet3d.networks.attention_unet import AttentionUNet
from attunet3d.networks.reference_weights import load_reference_weights

__all__ = ["AdditiveAttentionGate", "AttentionUNet", "GatedSkip", "GridAttentionGate", "load_reference_weights"]
