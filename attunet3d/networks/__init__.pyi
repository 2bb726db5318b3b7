from .attention_gate import AdditiveAttentionGate as AdditiveAttentionGate
from .attention_gate import GatedSkip as GatedSkip
from .attention_gate import GridAttentionGate as GridAttentionGate
from .attention_maps import AttentionMaps as AttentionMaps
from .attention_unet import AttentionUNet as AttentionUNet
from .folding import fold as fold
from .reference_weights import load_reference_weights as load_reference_weights
