"""Rating examples at run time: onnxruntime, tokenizers and numpy, no torch."""

from efficient_empathy.scorer.artifact import Scale, ScorerSpec
from efficient_empathy.scorer.scorer import Scorer

__all__ = ["Scale", "Scorer", "ScorerSpec"]
