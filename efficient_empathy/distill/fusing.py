"""Fusing the nodes of an exported encoder into ONNX Runtime's own operators: the same scores from a seventh of the nodes.

The exporter writes one attention block as some forty nodes; ONNX Runtime's transformers optimiser makes ``Attention``,
``SkipLayerNormalization``, ``BiasGelu`` and ``EmbedLayerNormalization`` of them. The int8 graph is made from that form. The fp32
file stays as exported: fused it was not faster on the CPU.
"""

import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from efficient_empathy.scorer.session import open_session, run_batch

_TOLERANCE = 1e-4
_log = logging.getLogger(__name__)


def fuse(source: Path, target: Path, batch: Mapping[str, np.ndarray]) -> bool:
    """Write the fused form of an fp32 file, where that gives the same scores.

    Args:
        source: the exported file.
        target: where the fused one goes.
        batch: inputs on which the two are compared; best with padding in it.

    Returns:
        Whether ``target`` can be used; an encoder that the optimiser does not know is not fused.
    """
    from onnxruntime.transformers.fusion_options import FusionOptions
    from onnxruntime.transformers.optimizer import optimize_model

    try:
        # opt_level 0: with ONNX Runtime's own passes the file would be made for this very processor.
        model = optimize_model(str(source), "bert", optimization_options=FusionOptions("bert"), opt_level=0)
    except (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError) as error:
        # It walks graphs by what it expects of them; one that it does not know must not cost a finished training.
        _log.warning("ONNX Runtime's optimiser cannot fuse this encoder (%s): int8 is slower", error)
        return False
    model.save_model_to_file(str(target))
    expected, found = (run_batch(open_session(file, "cpu"), dict(batch)) for file in (source, target))
    if not np.abs(found - expected).max() <= _TOLERANCE:
        _log.warning("the fused model gives other scores than the exported one: it is not used, int8 is slower")
        return False
    return True
