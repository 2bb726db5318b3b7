from .device import choose_device as choose_device
from .device import choose_precision as choose_precision
from .export import export as export
from .fast_network import FastNetwork as FastNetwork
from .fast_network import MixedPrecision as MixedPrecision
from .fast_network import prepare as prepare
from .loading import build_network as build_network
from .loading import load_network as load_network
