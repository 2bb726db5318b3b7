"""The network: attention gates, the Attention U-Net, and published weights for it."""

from .attention_gate import AdditiveAttentionGate, GatedSkip, GridAttentionGate
from .attention_unet import AttentionUNet
from .reference_weights import load_reference_weights

__all__ = ["AdditiveAttentionGate", "AttentionUNet", "GatedSkip", "GridAttentionGate", "load_reference_weights"]
