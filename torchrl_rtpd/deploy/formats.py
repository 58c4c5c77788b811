"""Names of the formats that students are exported in, and the check of them that comes before anything else."""

from __future__ import annotations

from collections.abc import Sequence

from torchrl_rtpd.deploy.onnx_file import require_onnx

__all__ = ["FORMATS", "FormatError", "checked_formats"]

FORMATS = ("onnx", "onnx_int8", "pt2", "c", "numpy")


class FormatError(ValueError):
    """A format that cannot hold a network, which others may.

    Attributes:
        format: its name.
    """

    def __init__(self, format: str, message: str) -> None:
        super().__init__(message)
        self.format = format


def checked_formats(formats: Sequence[str], name: str = "formats") -> list[str]:
    """Return formats in their fixed order, each once.

    Args:
        formats: some of :data:`FORMATS`, or one of them.
        name: of the argument or key that they were given for, as messages call it.

    Raises:
        ValueError: an unknown format, or none.
        ImportError: the export extra is not installed.

    Examples:
        >>> checked_formats(["numpy", "c", "numpy"])
        ['c', 'numpy']
        >>> checked_formats(["tflite"], "export")
        Traceback (most recent call last):
        ValueError: export must be some of onnx, onnx_int8, pt2, c, numpy: got ['tflite'].
    """
    formats = [formats] if isinstance(formats, str) else list(formats)
    unknown = [form for form in formats if form not in FORMATS]
    if unknown or not formats:
        raise ValueError(f"{name} must be some of {', '.join(FORMATS)}: got {formats}.")
    if {"onnx", "onnx_int8"} & set(formats):
        require_onnx()
    return [form for form in FORMATS if form in formats]
