"""Names that look alike and are written with other code points."""

import typing
import unicodedata

from pydantic import AfterValidator


def composed(name: str) -> str:
    """Write a name in Unicode's composed form (NFC): macOS gives accents their own code points."""
    return unicodedata.normalize("NFC", name)


Composed = typing.Annotated[str, AfterValidator(composed)]
"""A name in the composed form, however it was given."""
