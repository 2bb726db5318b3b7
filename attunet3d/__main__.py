"""``python -m attunet3d``."""

from .cli import main

main()
