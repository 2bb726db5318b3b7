"""``python -m attunet3d``."""

from attunet3d.cli import main

main()
