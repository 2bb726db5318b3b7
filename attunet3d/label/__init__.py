"""The bundle in MONAI Label: ``folder.make_app`` sets up its app, ``server.serve`` starts it, ``app`` runs in it."""
