"""The few types that pass between the parts.

Dimensions: B breasts (or exams, or images), V views of each, T texts of each, L tokens, H x W pixels, D embedding width.
All three types are pytrees of plain containers, so `jax.tree` and Orbax walk them by name without registration.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, TypedDict

from jaxtyping import Array, Bool, Float, Int, Shaped


class Batch(TypedDict, total=False):
    """What one step sees: arrays only, NumPy on the host and `jax.Array` on devices.

    A record is a row of `index.parquet`; -1 marks a padded one. A breast with one image carries it in every view; a term
    over pairs of views counts a row only where `view_mask` is True for all of its slots.

    `sentence` is -1 for tokens of no sentence: special tokens at the ends, padding. The last token of a sentence is its
    separator, where the tokenizer has one. With as many texts as views, a text goes with the view of its slot; a single
    one with all. Flips are one a row, or, with config.data.flip_each_view, one a view.
    """

    image: Shaped[Array, "B V H W"]  # uint8 or uint16, one channel, as stored in the shards
    # Instead of images, the stage maps of a frozen encoder, one a row: "map/STAGE" [B h w C] (config.task.cached_maps).
    record: Int[Array, "B V"]  # int32 row in the data set's index.parquet
    source: Int[Array, " B"]  # int32 position of the data set in config.data.train
    token_ids: Int[Array, "B T L"]  # int32, padded with the tokenizer's pad id
    token_mask: Bool[Array, "B T L"]  # True for real tokens, special ones included
    sentence: Int[Array, "B T L"]  # int32 number of the token's sentence; see below
    text_features: Float[Array, "B T C"]  # float32, pooled states; only with config.model.cached_text
    flip_horizontal: Bool[Array, "B ..."]  # to do on the device; the texts' laterality words are already swapped
    flip_vertical: Bool[Array, "B ..."]  # to do on the device; only set where no text names a position
    view_mask: Bool[Array, "B V"]  # False for a slot that holds no view of its own; absent: all do
    # 1, 0, one-hot for classes; 0 where unknown. Of images with texts those of each view's breast (data/batches/targets.py).
    target: Float[Array, "B *V K"]
    known: Bool[Array, "B *V K"]
    # Only with config.data.unpaired (data/batches/unpaired.py).
    paired: Bool[Array, " B"]  # the texts are those of the row's breast
    has_text: Bool[Array, " B"]  # False: its texts are empty
    text_target: Float[Array, "B T K"]  # labels of the texts, as target and known are those of the images
    text_known: Bool[Array, "B T K"]
    boxes: Float[Array, "B V M 4"]  # left, top, right, bottom in canvas pixels
    box_classes: Int[Array, "B V M"]  # int32, -1 where there is no box
    masks: Shaped[Array, "B V H W"]  # uint8 or uint16: bit k of a pixel is channel k of `target`, where that is known
    # Of boxes that are regions: which of C concepts nothing known of them denies, and a teacher's cosines with these.
    region_allowed: Bool[Array, "B V M C"]
    region_cosines: Float[Array, "B V M C"]  # float32, 0 where no teacher compared
    # Texts about regions, P of a row (data/batches/region_phrases.py); a place that is not filled has the level -1.
    phrase_ids: Int[Array, "B P L"]
    phrase_mask: Bool[Array, "B P L"]
    phrase_region: Int[Array, "B P 2"]  # int32 view and place in its boxes; -1, -1: none
    phrase_negated: Bool[Array, "B P"]  # it denies what it names
    phrase_level: Int[Array, "B P"]  # int32 0 a finding's name, 1 a sentence, 2 a report
    phrase_findings: Int[Array, "B P"]  # int32, a bit for each finding that it affirms, or denies
    mask: Bool[Array, " B"]  # False for rows that only fill up the batch: they never count


class Embeddings(NamedTuple):
    """What the towers return. Global vectors have unit norm, in float32."""

    image: Float[Array, "B V D"]
    text: Float[Array, "B T D"]
    logit_scale: Float[Array, ""]  # multiplies cosines: exp of the parameter, after the clamp
    logit_bias: Float[Array, ""] | None = None  # added to the logits of the sigmoid loss, where the model has one
    # What terms need besides: "image/STAGE" [B V h w c], "text/states" [B T L c], "HEAD/PART".
    named: Mapping[str, Array] = {}


class TrainState(NamedTuple):
    """Everything a step changes: one pytree of plain dicts."""

    step: Int[Array, ""]
    params: Any
    batch_stats: Any
    opt_state: Any
    ema: Any  # averaged variables, or None when config.train.ema_decay is 0
    key: Array  # PRNG key; each step folds its number in, so it never changes

    def variables(self) -> dict:
        """{"params", "batch_stats"} of the model in use: the averages, where they are kept."""
        return self.ema or {"params": self.params, "batch_stats": self.batch_stats}
