"""Text from files, made fit for terminals and records."""


def printable(text: str, most: int | None = None) -> str:
    """`text` with "?" for what is not printable (terminal escapes, line breaks, broken encodings), cut to `most`."""
    shown = "".join(c if c.isprintable() else "?" for c in text)
    return shown if most is None or len(shown) <= most else shown[: most - 1] + "…"
