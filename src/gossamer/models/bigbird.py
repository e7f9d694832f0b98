"""BigBird (Zaheer et al. 2020, arXiv 2007.14062), and its weights as transformers keeps them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Self

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int64
from numpy.typing import NDArray
from torch import Tensor, nn

from ..config import BigBirdConfig
from ..nn.bigbird import BigBirdAttention
from . import pretrained
from .encoder import Embeddings, Encoder, EncoderOutput, FeedForward, require_shape, runs_of
from .heads import (
    IGNORED_TARGET,
    ClassificationHead,
    Encoded,
    Head,
    MaskedLMHead,
    Pooler,
    QuestionAnsweringHead,
)

HeadName = Literal["pooler", "masked_lm", "classification", "question_answering"]
RandomBlocks = Sequence[Int[Tensor, "H M R"] | NDArray[np.integer] | None]

FAMILY = pretrained.Family(
    model_type="big_bird",
    prefix="bert.",
    heads={
        "pooler": ("BigBirdModel", ((r"^head\.dense\.", "pooler."),)),
        "masked_lm": (
            "BigBirdForMaskedLM",
            (
                (r"^head\.dense\.", "cls.predictions.transform.dense."),
                (r"^head\.norm\.", "cls.predictions.transform.LayerNorm."),
                (r"^head\.bias", "cls.predictions.bias"),
            ),
        ),
        "classification": (
            "BigBirdForSequenceClassification",
            ((r"^head\.dense\.", "classifier.dense."), (r"^head\.out\.", "classifier.out_proj.")),
        ),
        "question_answering": (
            "BigBirdForQuestionAnswering",
            (
                (r"^head\.mlp\.up\.", "qa_classifier.intermediate.dense."),
                (r"^head\.mlp\.down\.", "qa_classifier.output.dense."),
                (r"^head\.norm\.", "qa_classifier.output.LayerNorm."),
                (r"^head\.span\.", "qa_classifier.qa_outputs."),
            ),
        ),
    },
    repeated={
        "cls.predictions.decoder.weight": "embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    },
    left=("embeddings.position_ids", "embeddings.token_type_ids", "cls.seq_relationship."),
    theirs=lambda config: not config.extra_tokens,
)


class BigBirdEmbeddings(Embeddings):
    """Embeddings that are dropped from before the norm, and whose tokens may be scaled by the root of the width."""

    def __init__(self, config: BigBirdConfig):
        super().__init__(config)
        self.scale = config.hidden_size**0.5 if config.rescale_embeddings else 1.0

    def finish(self, tokens: Float[Tensor, "B N E"], rest: Float[Tensor, "#B N E"]) -> Float[Tensor, "B N E"]:
        return self.norm(self.drop(tokens * self.scale + rest))


class BigBirdAnswerHead(QuestionAnsweringHead):
    """Logits of an answer's first and last token, minus infinity in the question but for its first token.

    The question goes up to the first separator.
    """

    def __init__(self, config: BigBirdConfig):
        super().__init__(config)
        self.separator = config.sep_token_id
        self.drop = nn.Dropout(config.hidden_dropout_prob)
        self.mlp = FeedForward(config)
        self.norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(self, encoded: Encoded) -> Float[Tensor, "B N 2"]:
        x = encoded.features
        logits = self.span(self.norm(x + self.drop(self.mlp(self.drop(x)))))
        return logits.masked_fill(self._asked(encoded)[..., None], -torch.inf)

    def loss(self, encoded: Encoded, targets: Int64[Tensor, "B 2"]) -> Float[Tensor, ""]:
        """Mean of both ends' cross-entropy; a target in the question or outside the sequence has no part in it."""
        asked, length = self._asked(encoded), encoded.tokens.shape[1]
        barred = asked.gather(1, targets.clamp(0, length - 1))
        return super().loss(encoded, targets.masked_fill(barred, IGNORED_TARGET))

    def _asked(self, encoded: Encoded) -> Bool[Tensor, "B N"]:
        """Which tokens no answer begins or ends with."""
        question = question_of(encoded.tokens, self.separator)
        first = encoded.tokens.new_zeros(len(question)) if encoded.starts is None else encoded.starts
        return question & (torch.arange(question.shape[1], device=question.device) != first[:, None])


class BigBird(Encoder, pretrained.Pretrained):
    """An encoder of blocks, near, global and random ones: features of every token, and what a head makes of them.

    Any length runs, in training and evaluation alike. With `config.extra_tokens` the first so many tokens of each row
    are the global ones: put tokens of their own there.

    Heads: `pooler`, `masked_lm`, `classification` and `question_answering`; None gives features alone.

    >>> config = BigBirdConfig(vocab_size=99, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, block_size=4)
    >>> model = BigBird(config, head="masked_lm").eval()
    >>> model(torch.full((1, 50), 7)).logits.shape
    torch.Size([1, 50, 99])
    """

    family, kind = FAMILY, BigBirdConfig

    def __init__(self, config: BigBirdConfig, head: HeadName | None = None):
        def attention(layer: int) -> nn.Module:
            return BigBirdAttention(config, layer)

        super().__init__(config, BigBirdEmbeddings(config), attention, _head(config, head))
        self.head_name = head

    def forward(
        self,
        tokens: Int64[Tensor, "B N"],
        targets: Tensor | None = None,
        *,
        attention_mask: Bool[Tensor, "B N"] | Int[Tensor, "B N"] | Float[Tensor, "B N"] | None = None,
        token_type_ids: Int64[Tensor, "B N"] | None = None,
        position_ids: Int64[Tensor, "B N"] | None = None,
        random_blocks: RandomBlocks | None = None,
        return_layers: bool = False,
    ) -> EncoderOutput:
        """Features, and the head's logits or, with `targets`, its loss.

        Args:
            targets: What the head's `loss` takes; -100 is left out.
            attention_mask: 1 where a row's text is, 0 where padding before or after it is.
            token_type_ids: By default 0; for question answering 0 up to the first separator and 1 after it.
            random_blocks: One entry a layer, as `BigBirdAttention` takes it: the blocks to see in place of those that
                are drawn here; None leaves a layer its own.
            return_layers: Give the embeddings and every block's output too.

        Raises:
            ValueError: A shape, a dtype or a target is wrong, there are more tokens than positions or none for the
                head to read, a row of `attention_mask` is not one run of ones, or `random_blocks` does not fit the
                layers or the sequence.
        """
        self._require_tokens(tokens)
        require_shape("attention_mask", attention_mask, tokens)
        handed = None if random_blocks is None else self._handed_over(random_blocks, tokens.shape[1])
        if token_type_ids is None and self.head_name == "question_answering":
            token_type_ids = (~question_of(tokens, self.config.sep_token_id)).long()
        within = None if attention_mask is None else runs_of(attention_mask)
        return self.run(
            tokens,
            targets,
            {"within": within},
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            return_layers=return_layers,
            of_layers=handed,
        )

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        head: str | None = None,
        new_head: bool = False,
        random_among: int | None = None,
        random_seed: int | None = None,
        device: torch.device | str = "cpu",
    ) -> Self:
        """The model in a folder that transformers' `save_pretrained` wrote, in float32; weights may be in shards.

        Args:
            head: Which head to read. Tensors of other heads are left.
            new_head: Where the folder has none of the head's tensors, begin it anew.
            random_among: Draw random blocks among the first so many, whatever the file says; a number that no text
                reaches draws among all.
            random_seed: Draw them from this seed, whatever the file says.

        Raises:
            FileNotFoundError: A file is missing.
            ValueError: Something is damaged, unknown, missing or out of its range; the message names the file, the
                tensor or the argument, and the fix.
        """
        return cls._read(folder, head, new_head, random_among=random_among, random_seed=random_seed).to(device)

    def _handed_over(self, random_blocks: RandomBlocks, length: int) -> list[dict[str, NDArray[np.int64]]]:
        """What each layer's attention is called with: all is read and checked before anything is computed."""
        if len(random_blocks) != len(self.blocks):
            raise ValueError(
                f"random_blocks has {len(random_blocks)} entries for {len(self.blocks)} layers; give one a layer, or "
                "None for all"
            )
        pairs = zip(self.blocks, random_blocks, strict=True)
        return [{} if own is None else {"random_blocks": block.attention.on_host(own, length)} for block, own in pairs]


def question_of(tokens: Int64[Tensor, "B N"], separator: int) -> Bool[Tensor, "B N"]:
    """Which tokens stand up to a row's first separator, itself included; the first token where a row has none.

    >>> question_of(torch.tensor([[5, 6, 2, 7, 2], [5, 6, 7, 8, 9]]), separator=2).int().tolist()
    [[1, 1, 1, 0, 0], [1, 0, 0, 0, 0]]
    """
    last = (tokens == separator).int().argmax(1, keepdim=True)  # 0 where there is none
    return torch.arange(tokens.shape[1], device=tokens.device) <= last


def _head(config: BigBirdConfig, head: HeadName | None) -> Head | None:
    match head:
        case None:
            return None
        case "pooler":
            return Pooler(config)
        case "masked_lm":
            return MaskedLMHead(config, config.hidden_act)
        case "classification":
            own = config.classifier_dropout
            return ClassificationHead(config, config.hidden_act, config.hidden_dropout_prob if own is None else own)
        case "question_answering":
            return BigBirdAnswerHead(config)
    raise ValueError(f"BigBird: head is {head!r}; give {', '.join(FAMILY.heads)} or None")
