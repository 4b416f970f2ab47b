"""datatrove: a block that scores the documents of a pipeline and lets some subsets through."""

from typing import Any

from datatrove.data import Document
from datatrove.pipeline.filters.base_filter import BaseFilter

from efficient_empathy.dialogues.records import FIELD_PREFIX
from efficient_empathy.errors import EmpathyError
from efficient_empathy.scorer.adapters.rows import REJECT, RowOptions, RowScorer
from efficient_empathy.scorer.job import RatesExamples


class EmpathyFilter(BaseFilter):
    """Keeps documents whose dialogue is in one of the subsets; the scores stand in the metadata.

    A document is a row: its metadata, and its text under the name of the column that the reader took it from. A conversation is
    judged by its last listener turn. What is dropped goes to the ``exclusion_writer`` with the reason ``ee_<subset>``, a document
    that cannot be read with ``ee_reject_<reason>``.
    """

    name = "💗 Efficient-Empathy"

    def __init__(
        self,
        scorer: RatesExamples,
        options: RowOptions,
        text_key: str = "response",
        exclusion_writer: Any = None,
        batch_size: int = 1000,
    ):
        """Make the block.

        Args:
            scorer: gives the scores; its session is opened in the task that runs.
            options: a policy, the subsets to keep (none named keeps all), and ``examples="last-turn"``.
            text_key: what the reader's ``text_key`` was: the column that became the document's text.
            exclusion_writer: takes the documents that are dropped.
            batch_size: documents that are scored at a time.

        Raises:
            EmpathyError: the options ask for a row a turn, or bad rows that nobody would see.
        """
        super().__init__(exclusion_writer, batch_size)
        if options.examples != "last-turn":
            raise EmpathyError("a filter decides about documents: give RowOptions(..., examples='last-turn').")
        if options.bad_rows == "drop":
            raise EmpathyError(
                "here bad_rows='keep' drops them with their reason, for the exclusion_writer; 'raise' stops."
            )
        self.text_key = text_key
        self._keep = options.keep
        # All go through the scorer: what is dropped shall have its scores too.
        self._rows = RowScorer(scorer, RowOptions(options.policy, (), options.examples, options.bad_rows))

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        """Whether one document stays, and else why not."""
        return self.filter_batch([doc])[0]

    def filter_batch(self, batch: list[Document]) -> list[bool | tuple[bool, str]]:
        """The same for several, scored together."""
        rows = [{"id": doc.id, **doc.metadata, self.text_key: doc.text} for doc in batch]
        found: list[bool | tuple[bool, str]] = []
        for doc, row in zip(batch, self._rows.rate(rows).merged(rows), strict=True):
            for name in [name for name in doc.metadata if name.startswith(FIELD_PREFIX)]:
                del doc.metadata[name]
            doc.metadata |= {name: row[name] for name in self._rows.columns if row[name] is not None}
            if row[REJECT] is not None:
                found.append((False, f"{REJECT}_{row[REJECT]}"))
                continue
            subset = row.get(FIELD_PREFIX + "subset")
            found.append(True if not self._keep or subset in self._keep else (False, f"{FIELD_PREFIX}{subset}"))
        return found
