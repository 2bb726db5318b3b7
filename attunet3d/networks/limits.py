"""Limits of a network's size, for configs and weights from untrusted sources."""

from __future__ import annotations

# Larger networks could not be trained: a config with one is mistyped or malicious.
MOST_CHANNELS, MOST_LEVELS = 2048, 10
