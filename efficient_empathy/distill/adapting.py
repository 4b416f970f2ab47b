"""Continued pre-training: the encoder fills in masked words of unlabelled dialogues before it sees a label.

Gururangan et al. 2020, "Don't Stop Pretraining": training on the task's own unlabelled text helps most where labels are few.
"""

from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor, nn

from efficient_empathy.distill.backbone import Backbone
from efficient_empathy.distill.batches import Batch, EncodedRows, training_loader
from efficient_empathy.distill.module import Progress, warmup_then_linear
from efficient_empathy.distill.training import fit_quietly
from efficient_empathy.errors import EmpathyError
from efficient_empathy.scorer.encoding import Encoded

_MASKED_SHARE = 0.2
_HEAD_RATE = 1e-3
_BATCH_SIZE = 32


class MaskedWords(nn.Module):
    """An encoder with a head that names the masked words; the word embeddings serve as its output layer."""

    def __init__(self, encoder: Any):
        super().__init__()
        self.encoder = encoder
        self.words = encoder.get_input_embeddings().weight
        count, width = self.words.shape
        # Some encoders (ALBERT, ELECTRA) have word vectors narrower than their states.
        self.transform = nn.Sequential(nn.Linear(encoder.config.hidden_size, width), nn.GELU(), nn.LayerNorm(width))
        self.bias = nn.Parameter(torch.zeros(count))
        self._has_segments = getattr(encoder.config, "type_vocab_size", 0) > 1

    def forward(self, inputs: dict[str, Tensor], masked: Tensor) -> Tensor:
        """Logits for the masked positions alone, (masked positions, words)."""
        if not self._has_segments:
            inputs = {name: value for name, value in inputs.items() if name != "token_type_ids"}
        hidden = self.encoder(**inputs).last_hidden_state[masked]
        return self.transform(hidden) @ self.words.T + self.bias


class _AdaptModule(L.LightningModule):
    def __init__(self, model: MaskedWords, rate: float, mask_id: int, special: list[int], seed: int):
        super().__init__()
        self.model, self._rate, self._mask_id = model, rate, mask_id
        self._special = torch.tensor(special)
        self._generator = torch.Generator().manual_seed(seed)

    def on_fit_start(self) -> None:
        self.model.train()

    def training_step(self, batch: Batch, _: int) -> Tensor:
        original = batch["input_ids"]
        inputs, masked = self._mask(original, batch["attention_mask"])
        logits = self.model(
            {"input_ids": inputs, "attention_mask": batch["attention_mask"], "token_type_ids": batch["token_type_ids"]},
            masked,
        )
        return nn.functional.cross_entropy(logits.float(), original[masked])

    def _mask(self, ids: Tensor, attention: Tensor) -> tuple[Tensor, Tensor]:
        """Choose a fifth of the words; of those 80 % become the mask token, 10 % another word, 10 % stay (as BERT does)."""
        draw = torch.rand(ids.shape, generator=self._generator).to(ids.device)
        kind = torch.rand(ids.shape, generator=self._generator).to(ids.device)
        other = torch.randint(self.model.bias.numel(), ids.shape, generator=self._generator).to(ids.device)
        chosen = (draw < _MASKED_SHARE) & (attention > 0) & ~torch.isin(ids, self._special.to(ids.device))
        chosen[:, 1] |= ~chosen.any(1) & (attention[:, 1] > 0)  # a step without a target has no loss
        inputs = torch.where(chosen & (kind < 0.8), self._mask_id, ids)
        return torch.where(chosen & (kind > 0.9), other, inputs), chosen

    def configure_optimizers(self) -> Any:
        self.model.words.requires_grad_(False)
        encoder = [p for p in self.model.encoder.parameters() if p.requires_grad]
        head = [*self.model.transform.parameters(), self.model.bias]
        groups = [{"params": encoder, "lr": self._rate}, {"params": head, "lr": _HEAD_RATE}]
        optimizer = torch.optim.AdamW(groups, weight_decay=0.01, fused=True)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, warmup_then_linear(int(self.trainer.estimated_stepping_batches))
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def adapt_encoder(encoder: Any, backbone: Backbone, encoded: Encoded, rate: float, seed: int) -> None:
    """Train an encoder in place for one pass over encoded pool examples.

    Args:
        encoder: the pretrained encoder.
        backbone: names the ids that are never masked.
        encoded: the pool examples.
        rate: peak learning rate.
        seed: of the order and the masks.

    Raises:
        EmpathyError: the tokenizer has no mask token.
    """
    mask_id = next((i for t in ("[MASK]", "<mask>") if (i := backbone.tokenizer.token_to_id(t)) is not None), None)
    if mask_id is None:
        raise EmpathyError(
            f"'{backbone.name}' has no mask token: set adapt_examples to 0, or choose another --backbone."
        )
    spec = backbone.encoding
    rows = EncodedRows(encoded, np.zeros((len(encoded.ids), 1)), None, spec.pad)
    module = _AdaptModule(MaskedWords(encoder), rate, mask_id, [spec.cls, spec.sep, spec.pad], seed)
    fit_quietly(module, training_loader(rows, _BATCH_SIZE, seed), None, 1, seed, [Progress("adapting the encoder")])
    encoder.cpu().eval()
