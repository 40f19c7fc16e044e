"""Which documents are for validation: chosen by their text, so that no copy of one is ever trained on.

Neither other documents nor names and places of files move a document from one side to the other.
"""

import hashlib

_PERSON = b"dla_data"  # of this use of the hash: the same texts are held out in every run


class HeldOut:
    """Tells the texts of the validation part from the others.

    Args:
        share: of the documents, at least 0 and below 1.
    """

    def __init__(self, share: float) -> None:
        self.share = share

    def __call__(self, text: str) -> bool:
        """Whether `text` is held out."""
        digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8, person=_PERSON).digest()
        return int.from_bytes(digest, "big") < self.share * 2**64

    def trained_on(self, text: str) -> bool:
        """Whether it is not."""
        return not self(text)
