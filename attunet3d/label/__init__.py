"""Serve the bundle with MONAI Label: ``folder`` creates its app, ``server`` starts it, and ``app`` runs in it."""
