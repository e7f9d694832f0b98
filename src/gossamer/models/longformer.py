"""Longformer (Beltagy, Peters and Cohan 2020, arXiv 2004.05150), and its weights as transformers keeps them."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor, nn

from ..config import LongformerConfig
from ..nn.global_tokens import GlobalTokens
from ..nn.longformer import LongformerAttention
from . import pretrained
from .encoder import Embeddings, Encoder, EncoderOutput, require_shape, runs_of
from .heads import ClassificationHead, Head, MaskedLMHead, Pooler, QuestionAnsweringHead

HeadName = Literal["pooler", "masked_lm", "classification", "question_answering"]

FAMILY = pretrained.Family(
    model_type="longformer",
    prefix="longformer.",
    heads={
        "pooler": ("LongformerModel", ((r"^head\.dense\.", "pooler.dense."),)),
        "masked_lm": (
            "LongformerForMaskedLM",
            (
                (r"^head\.dense\.", "lm_head.dense."),
                (r"^head\.norm\.", "lm_head.layer_norm."),
                (r"^head\.bias", "lm_head.bias"),
            ),
        ),
        "classification": (
            "LongformerForSequenceClassification",
            ((r"^head\.dense\.", "classifier.dense."), (r"^head\.out\.", "classifier.out_proj.")),
        ),
        "question_answering": ("LongformerForQuestionAnswering", ((r"^head\.span\.", "qa_outputs."),)),
    },
    repeated={
        "lm_head.decoder.weight": "embeddings.word_embeddings.weight",
        "lm_head.decoder.bias": "lm_head.bias",
    },
    theirs=lambda config: not config.causal and not config.dilated,
)


class LongformerEmbeddings(Embeddings):
    """Embeddings whose positions count the tokens that are no padding, from after the padding's own row (RoBERTa)."""

    def __init__(self, config: LongformerConfig):
        super().__init__(config, padding_position=config.pad_token_id)
        self.padding = config.pad_token_id

    def places(self, tokens: Int64[Tensor, "B N"]) -> Int64[Tensor, "B N"]:
        padding = self.padding
        real = tokens.ne(padding)
        return real.cumsum(1) * real + padding


class Longformer(Encoder, pretrained.Pretrained):
    """An encoder of windows and global tokens: features of every token, and what a head makes of them.

    Heads: `pooler`, `masked_lm`, `classification` and `question_answering`; None gives features alone.

    >>> config = LongformerConfig(vocab_size=99, hidden_size=32, num_hidden_layers=1, num_attention_heads=2)
    >>> model = Longformer(config, head="masked_lm").eval()
    >>> model(torch.full((1, 20), 7)).logits.shape
    torch.Size([1, 20, 99])
    """

    family, kind = FAMILY, LongformerConfig

    def __init__(self, config: LongformerConfig, head: HeadName | None = None):
        def attention(layer: int) -> nn.Module:
            return LongformerAttention(
                config.hidden_size,
                config.num_attention_heads,
                window=config.window(layer),
                dilation=config.dilation(layer),
                causal=config.causal,
                dropout=config.attention_probs_dropout_prob,
            )

        super().__init__(config, LongformerEmbeddings(config), attention, _head(config, head))
        self.head_name = head

    def forward(
        self,
        tokens: Int64[Tensor, "B N"],
        targets: Tensor | None = None,
        *,
        attention_mask: Bool[Tensor, "B N"] | Int[Tensor, "B N"] | Float[Tensor, "B N"] | None = None,
        global_attention_mask: Bool[Tensor, "B N"] | Int[Tensor, "B N"] | None = None,
        token_type_ids: Int64[Tensor, "B N"] | None = None,
        position_ids: Int64[Tensor, "B N"] | None = None,
        return_layers: bool = False,
    ) -> EncoderOutput:
        """Features, and the head's logits or, with `targets`, its loss.

        Args:
            targets: What the head's `loss` takes; -100 is left out.
            attention_mask: 1 where a row's text is, 0 where padding before or after it is.
            global_attention_mask: 1 where a token is global. By default the first token of each text for
                classification, the question (all before the first separator) for question answering, else none.
            return_layers: Give the embeddings and every block's output too.

        Raises:
            ValueError: A shape, a dtype or a target is wrong, there are more tokens than positions or none for the
                head to read, a row of `attention_mask` is not one run of ones, or a text to answer from has no
                separator.
        """
        self._require_tokens(tokens)
        require_shape("attention_mask", attention_mask, tokens)
        require_shape("global_attention_mask", global_attention_mask, tokens)
        within = None if attention_mask is None else runs_of(attention_mask)
        chosen = self._chosen(tokens, global_attention_mask, within)
        seen = {"within": within, "chosen": chosen}
        return self.run(
            tokens,
            targets,
            seen,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            return_layers=return_layers,
        )

    def _chosen(self, tokens: Tensor, mask: Tensor | None, within: Tensor | None) -> GlobalTokens | None:
        mask = self._usual_choice(tokens, within) if mask is None else mask != 0
        if mask is None:
            return None
        if within is not None:
            positions = torch.arange(tokens.shape[1], device=tokens.device)
            mask = mask & (within[:, :1] <= positions) & (positions < within[:, 1:])
        return GlobalTokens.of(mask)

    def _usual_choice(self, tokens: Tensor, within: Tensor | None) -> Bool[Tensor, "B N"] | None:
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        if self.head_name == "classification":
            return (positions == (0 if within is None else within[:, :1])).expand_as(tokens)
        if self.head_name != "question_answering":
            return None
        ends = tokens == self.config.sep_token_id
        if not ends.any(1).all():
            raise ValueError(
                f"Longformer: a row of tokens has no sep_token_id={self.config.sep_token_id} to end its question; "
                "add one, or give global_attention_mask"
            )
        return ends.cumsum(1) == 0


def _head(config: LongformerConfig, head: HeadName | None) -> Head | None:
    match head:
        case None:
            return None
        case "pooler":
            return Pooler(config)
        case "masked_lm":
            return MaskedLMHead(config, "gelu")
        case "classification":
            return ClassificationHead(config, "tanh", config.hidden_dropout_prob)
        case "question_answering":
            return QuestionAnsweringHead(config)
    raise ValueError(f"Longformer: head is {head!r}; give {', '.join(FAMILY.heads)} or None")
