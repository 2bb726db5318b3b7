"""Limits of a network's size, for configs and weights from untrusted sources."""

from __future__ import annotations

# No machine could train a larger network: a config that asks for one is mistyped or malicious.
MOST_CHANNELS, MOST_LEVELS = 2048, 10
