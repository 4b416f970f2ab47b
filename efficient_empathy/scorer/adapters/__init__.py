"""The scorer inside other people's pipelines: one module a library, each thin, over one ``RowScorer``.

Nothing here imports those libraries before they are used: ``torch_data`` and ``trove`` import theirs when they are imported.
"""

from efficient_empathy.scorer.adapters.frames import score_frame
from efficient_empathy.scorer.adapters.rows import Rated, RowOptions, RowScorer

__all__ = ["Rated", "RowOptions", "RowScorer", "score_frame"]
