"""One reading of what is trained on feeds every audit that looks at it.

    documents --blocks--> look, of each audit that wants more --> stamp, of each

A corpus from the hub takes hours to read. So an audit does not read: it is shown documents, and says at the end what
it found in them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

from leveret.audit.finding import Stamp
from leveret.data.sources import Document

BLOCK = 256
"""Documents that are shown together."""
CHARACTERS = 2**20
"""After so many, a block has fewer documents."""


class CorpusAudit(Protocol):
    """An audit of what is trained on."""

    @property
    def wants_more(self) -> bool:
        """Whether a further document could change what it says."""
        ...

    def look(self, documents: Sequence[Document]) -> None:
        """Takes the next documents, in their order."""
        ...

    def stamp(self) -> Stamp:
        """What it found in all that it was shown."""
        ...


def read_once(documents: Iterable[Document], audits: Sequence[CorpusAudit]) -> None:
    """Shows the documents to each audit, up to where none wants more; reads them once."""
    if not any(audit.wants_more for audit in audits):
        return
    for block in in_blocks(documents):
        for audit in audits:
            if audit.wants_more:
                audit.look(block)
        if not any(audit.wants_more for audit in audits):
            return


def in_blocks(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """The documents a few at a time: of short ones more, so that they are searched together."""
    block: list[Document] = []
    size = 0
    for document in documents:
        block.append(document)
        size += len(document.text)
        if len(block) == BLOCK or size >= CHARACTERS:
            yield block
            block, size = [], 0
    if block:
        yield block
