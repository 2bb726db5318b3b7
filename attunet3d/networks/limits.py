"""Sizes of a network beyond which it is a mistake: what a config or a file of weights may ask for."""

from __future__ import annotations

# What is larger no machine could train, and a config that asks for it has a slip of the pen, or means harm.
MOST_CHANNELS, MOST_LEVELS = 2048, 10
