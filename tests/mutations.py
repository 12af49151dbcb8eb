"""Breaks the package in one place after another, and shows that the tests notice each time.

    python tests/mutations.py --jobs=2 --json=mutations.json

Each of MUTATIONS is a small mistake, mostly of the kind that gives plausible numbers: a sign, a mask, an axis, an
off-by-one. For each one, the tests named with it run in a copy of the tracked files of --tree with that one place
changed. It fails unless

  - all these tests pass while nothing is broken (--skip-baseline leaves this out),
  - for each mutation a test fails, and not because the program does not run at all any more.

Prints a Markdown table: what is broken, where, the first test that fails, and the seconds that took.
"""

import argparse
import concurrent.futures
import contextlib
import json
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

PACKAGE, TESTS = "mammoclip_jax", "tests"
TIMEOUT = 600  # seconds for the tests of one mutation
OPTIONS = ("-q", "-n", "0", "-p", "no:cacheprovider", "-m", "not parity and not slow", "--tb=no", "-rfE")
# A program with such an error does not run: that a test fails then says nothing of what the test compares.
BROKEN = (
    "AttributeError",
    "ImportError",
    "IndentationError",
    "ModuleNotFoundError",
    "NameError",
    "SyntaxError",
    "UnboundLocalError",
)
SURVIVED, AT_IMPORT, TIMED_OUT = "SURVIVED", "broken at import", "timed out"
IMAGES, TEXTS = "models/test_image_encoders.py", "models/test_text_encoders.py"


class Mutation(NamedTuple):
    """One mistake: in `file` of the package, `old`, which stands there once, becomes `new`.

    `tests` are what should notice, the likeliest first: files, or single tests of files that hold slow ones too. Files
    that a tree does not have are left out, and in place of a test that is not there its whole file is run.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


MUTATIONS = (
    # --- before the work, and what is said of it ---
    Mutation(
        "an interval of one number is an interval",
        "evaluation/statistics/bootstrap.py",
        "if np.isclose(low, high, rtol=1e-9, atol=1e-12):",
        "if not np.isfinite(low - high):",
        ("evaluation/statistics/test_statistics.py",),
    ),
    Mutation(
        "a task does not read what lies below its parts",
        "config.py",
        'return any(f"{field}.".startswith(f"{name}.") for name in names)',
        "return any(field == name for name in names)",
        ("test_config_check.py",),
    ),
    Mutation(
        "a learning rate of nothing is right",
        "tasks/limits.py",
        "lambda value: value > 0,",
        "lambda value: value >= 0,",
        ("test_config_check.py",),
    ),
    # --- chest radiographs ---
    Mutation(
        "5x200: a second finding that is uncertain does not matter",
        "data/sources/chest_labels.py",
        "return there[0] if len(there) == 1 and not doubtful else",
        "return there[0] if len(there) == 1 else",
        ("data/sources/test_chest_labels.py",),
    ),
    Mutation(
        "chest reports: what is possible is there",
        "data/text/chest_findings.py",
        "states |= {None if _UNCERTAIN.search(clause) else 1 for",
        "states |= {1 for",
        ("data/text/test_chest_findings.py",),
    ),
    # --- scores ---
    Mutation(
        "mirrored looks: texts keep their side",
        "inference/mirrored.py",
        "said = [*texts, *map(swap_laterality, texts)]",
        "said = [*texts, *texts]",
        ("inference/test_mirrored.py",),
    ),
    Mutation(
        "windows: boxes are moved by the wrong corner",
        "inference/windows.py",
        "tiles.boxes[:, None, [0, 1, 0, 1]]",
        "tiles.boxes[:, None, [1, 0, 1, 0]]",
        ("inference/test_windows.py",),
    ),
    Mutation(
        "merged boxes: a look that misses one does not count",
        "inference/wrapped.py",
        "np.mean(highest, axis=0)",
        "np.max(highest, axis=0)",
        ("inference/test_mirrored.py", "inference/test_ensemble.py"),
    ),
    Mutation(
        "calibration: the maximum of a breast is calibrated as its mean",
        "inference/calibration.py",
        '"max": f"{level}_max"',
        '"max": level',
        ("inference/test_score_meaning.py",),
    ),
    # --- losses ---
    Mutation(
        "contrastive loss: mean over rows that do not count too",
        "losses/objectives.py",
        "return loss.sum() / jnp.maximum(rows.sum(), 1)",
        "return loss.mean()",
        ("losses/test_losses.py", "losses/test_forms.py"),
    ),
    Mutation(
        "contrastive loss: sums of blocks merged without their common maximum",
        "losses/objectives.py",
        "(parts.exponentials * rescale).sum(0)",
        "parts.exponentials.sum(0)",
        ("losses/test_forms.py",),
    ),
    Mutation(
        "contrastive loss: gradient through the subtracted maximum",
        "losses/objectives.py",
        "    logits = jax.lax.stop_gradient(logits)\n",
        "",
        ("losses/test_losses.py", "losses/test_forms.py"),
    ),
    Mutation(
        "contrastive loss, gathered: columns as this device alone saw them",
        "losses/forms.py",
        "objective.merge(jax.lax.all_to_all(parts, axes, split_axis=0, concat_axis=0))",
        "objective.merge(parts)",
        ("losses/test_forms.py", "losses/test_losses.py"),
    ),
    Mutation(
        "contrastive loss, ring: mean in place of the sum over devices",
        "losses/ring.py",
        "jax.lax.psum((gradients.scale, gradients.bias), axes)",
        "jax.lax.pmean((gradients.scale, gradients.bias), axes)",
        ("losses/test_forms.py", "losses/test_losses.py"),
    ),
    Mutation(
        "region contrast: the nearest positive alone, not the sum of all",
        "losses/objectives.py",
        "gap + jnp.log(exponentials) - jnp.log(positives), 0)",
        "gap + jnp.log(exponentials) - jnp.minimum(jnp.log(positives), 0), 0)",
        ("losses/test_regions_loss.py",),
    ),
    Mutation(
        "region contrast: blocks of positives merged without their own maximum",
        "losses/objectives.py",
        "(parts.positives * rescale).sum(0)",
        "parts.positives.sum(0)",
        ("losses/test_regions_loss.py",),
    ),
    Mutation(
        "pseudo-labels: a concept that is denied may be one",
        "losses/regions.py",
        "jnp.where(allowed, cosines / temperature, LOWEST)",
        "cosines / temperature",
        ("losses/test_regions_loss.py",),
    ),
    Mutation(
        "pseudo-labels: concepts that the image's labels deny take part",
        "inference/region_methods/teacher.py",
        "np.where(allowed, cosines.astype(np.float64) / temperature, -np.inf)",
        "cosines.astype(np.float64) / temperature",
        ("inference/region_methods/test_teacher.py",),
    ),
    Mutation(
        "regions found in parts: a stopped run begins anew",
        "data/regions/job.py",
        'if not (folder / f"{part}.json").is_file()]',
        "]",
        ("data/regions/test_region_job.py",),
    ),
    Mutation(
        "shortcut of phantoms: it is there in validation and test too",
        "data/phantom/skin_marker.py",
        "return coin if held_out(parameters, patient) else bool(finding == agrees)",
        "return bool(finding == agrees)",
        ("data/phantom/test_skin_marker.py",),
    ),
    Mutation(
        "slices of two folders: rows side by side instead of the same image",
        "evaluation/slices/join.py",
        'left, right = both["first"].to_numpy(), both["second"].to_numpy()',
        'left, right = both["first"].to_numpy(), both["first"].to_numpy()',
        ("evaluation/slices/test_gather.py",),
    ),
    Mutation(
        "repaired head: its bias stays the old one",
        "weights/repaired.py",
        "kernel[:, labels.index(label)], biases[labels.index(label)] = weights, bias",
        "kernel[:, labels.index(label)] = weights",
        ("weights/test_repaired.py",),
    ),
    Mutation(
        "sliding boxes: specks are not looked for",
        "data/regions/sliding.py",
        "for part in (image, _specks(image))",
        "for part in (image, image)",
        ("data/regions/test_sliding.py",),
    ),
    Mutation(
        "soft targets: blocks of targets merged without their common maximum",
        "losses/objectives.py",
        "(parts.shared * rescale_target).sum(0)",
        "parts.shared.sum(0)",
        ("losses/test_soft_targets.py",),
    ),
    Mutation(
        "soft targets: a row without labels has a uniform target",
        "losses/soft_targets.py",
        "jnp.where(labelled(labels, similarity), pair, 1.0) if unlabelled_pair",
        "jnp.full(size, pair) if unlabelled_pair",
        ("losses/test_soft_targets.py",),
    ),
    Mutation(
        "label similarity: fields that one side alone knows count",
        "losses/soft_targets.py",
        "queries.known[:, f, None] & keys.known[:, f]",
        "queries.known[:, f, None] | keys.known[:, f]",
        ("losses/test_soft_targets.py",),
    ),
    Mutation(
        "soft targets: a text has the labels of the view, not of its own breast",
        "losses/soft_targets.py",
        "Labels(target[:, text], known[:, text])",
        "Labels(target[:, view], known[:, view])",
        ("losses/test_soft_targets.py",),
    ),
    Mutation(
        "soft targets: a text that is not its image's own is its pair",
        "losses/soft_targets.py",
        "(queries.index[:, None] == keys.index) & keys.paired",
        "queries.index[:, None] == keys.index",
        ("losses/test_soft_targets.py",),
    ),
    Mutation(
        "regions: the label of a table stands although the image denies it",
        "data/batches/regions.py",
        "labels) & image",
        "labels) | image",
        ("data/batches/test_region_batches.py",),
    ),
    Mutation(
        "regions: boxes half a cell off",
        "models/dual_encoder.py",
        "/ stride + 0.5",
        "/ stride",
        ("models/test_regions_head.py",),
    ),
    Mutation(
        "regions: a concept's vector is the sum of its prompts'",
        "tasks/pretrain.py",
        "1 / np.bincount(owners)[owners]",
        "1",
        ("training/test_region_training.py::test_concepts_are_the_mean_of_their_prompts_and_padding_counts_nothing",),
    ),
    Mutation(
        "regions and phrases: a denial counts for every region",
        "losses/region_phrase.py",
        "(keys.spoken | (keys.denies & shared))",
        "(keys.spoken | keys.denies)",
        ("losses/test_region_phrase.py",),
    ),
    Mutation(
        "concepts: what denies the general finding leaves its kinds",
        "data/text/concepts.py",
        'for name in (*general, "abnormal")',
        'for name in ("abnormal",)',
        ("data/text/test_concepts.py",),
    ),
    Mutation(
        "labels from texts: the sentences of both breasts",
        "data/batches/targets.py",
        "reports.for_side(text, side)",
        "text",
        ("data/batches/test_targets.py",),
    ),
    Mutation(
        "one breast's text: left alone where its own side is not named",
        "data/text/reports.py",
        '_MAY_NAME["R" if laterality == "L" else "L"].search(text)',
        "_MAY_NAME[laterality].search(text)",
        ("data/text/test_reports.py",),
    ),
    Mutation(
        "grey: a window is a line of what is stored",
        "data/pixels/intensity.py",
        "if np.abs(off).max() < 2e-7 else None",
        "if np.abs(off).max() < 2 else None",
        ("data/pixels/test_intensity.py",),
    ),
    Mutation(
        "RLE: bytes of a pixel the other way round",
        "data/pixels/rle.py",
        "cv2.merge(planes[::-1])",
        "cv2.merge(planes)",
        ("data/pixels/test_rle.py",),
    ),
    Mutation(
        "labels from texts: what dense tissue may obscure is there",
        "data/text/findings.py",
        '_NOT_SEEN.sub("", sentence)',
        "sentence",
        ("data/text/test_findings.py", "data/batches/test_targets.py"),
    ),
    Mutation(
        "multi-view loss: duplicates by the text of the view's number",
        "losses/multiview.py",
        "ids=of_text[t]",
        "ids=of_text[v]",
        ("losses/test_losses.py",),
    ),
    Mutation(
        "focal loss: alpha and 1 - alpha exchanged",
        "losses/detection.py",
        "jnp.where(targets, alpha, 1 - alpha)",
        "jnp.where(targets, 1 - alpha, alpha)",
        ("losses/test_detection_loss.py",),
    ),
    Mutation(
        "box loss: sum over the four regressions, not their mean",
        "losses/detection.py",
        "jnp.maximum(4 * positives, 1)",
        "jnp.maximum(positives, 1)",
        ("losses/test_detection_loss.py",),
    ),
    Mutation(
        "box loss: images that fill up the batch count",
        "losses/detection.py",
        '"box": jnp.where(mask, box, 0).sum() / images',
        '"box": box.sum() / images',
        ("losses/test_detection_loss.py",),
    ),
    # --- models ---
    Mutation(
        "RoIAlign: samples past the border are not left out",
        "models/roi_align.py",
        "(index < count) & (at >= -1) & (at <= n)",
        "index < count",
        ("models/test_roi_align.py",),
    ),
    Mutation(
        "RoIAlign: half a cell too far",
        "models/roi_align.py",
        "start = start - 0.5",
        "start = start - 0.0",
        ("models/test_roi_align.py",),
    ),
    Mutation(
        "RoIAlign: the samples of a long box begin where it begins",
        "models/roi_align.py",
        "index = jnp.maximum(outside, 0) + jnp.arange(n + 3)",
        "index = jnp.zeros_like(outside) + jnp.arange(n + 3)",
        ("models/test_roi_align.py",),
    ),
    Mutation(
        "BERT: padded keys are seen",
        "models/bert.py",
        "        scores = jnp.where(mask[:, None, None, :], scores, jnp.finfo(scores.dtype).min)\n",
        "",
        ("models/test_bert.py", TEXTS),
    ),
    Mutation(
        "GPT-2: positions count padding",
        "models/gpt2.py",
        "jnp.cumsum(mask, axis=1, dtype=jnp.int32)",
        "jnp.cumsum(jnp.ones_like(mask), axis=1, dtype=jnp.int32)",
        ("models/test_gpt2.py", TEXTS),
    ),
    Mutation(
        "CLIP's text tower: each token sees the next one",
        "models/clip_text.py",
        "jnp.tri(x.shape[1], dtype=bool)",
        "jnp.tri(x.shape[1], k=1, dtype=bool)",
        ("models/test_clip_text.py", TEXTS),
    ),
    Mutation(
        "Swin: shifted regions begin one token late",
        "models/swin.py",
        "jnp.arange(size) >= size - shift",
        "jnp.arange(size) > size - shift",
        ("models/test_swin.py", IMAGES),
    ),
    Mutation(
        "Swin: sign of the relative positions",
        "models/swin.py",
        "places[:, :, None] - places[:, None, :]",
        "places[:, None, :] - places[:, :, None]",
        ("models/test_swin.py", IMAGES),
    ),
    Mutation(
        "ViT: positions resampled half a cell off",
        "models/cubic.py",
        "centre = (row + 0.5) * old / new",
        "centre = row * old / new + 0.5",
        ("models/test_vit.py", IMAGES),
    ),
    Mutation(
        "CLIP's ResNet: stages half a cell off",
        "models/clip_resnet.py",
        "(stride / 2 - 0.5,)",
        "(stride / 2,)",
        ("models/test_clip_resnet.py",),
    ),
    Mutation(
        "CLIP's attention pool: places of rows and columns exchanged",
        "models/attention_pool.py",
        '"hg,wk,gkc->hwc"',
        '"wg,hk,gkc->hwc"',
        ("models/test_attention_pool.py", IMAGES),
    ),
    Mutation(
        "ConvNeXt: layer scale left out",
        "models/convnext.py",
        "y = y * scale.astype(y.dtype)",
        "y = y * jnp.ones_like(scale).astype(y.dtype)",
        ("models/test_convnext.py", IMAGES),
    ),
    Mutation(
        "EfficientNet: the odd row of padding goes before",
        "models/efficientnet.py",
        "return total // 2, total - total // 2",
        "return total - total // 2, total // 2",
        ("models/test_efficientnet.py", IMAGES),
    ),
    Mutation(
        "batch norm: biased running variance",
        "models/layers.py",
        "var = var * (count / max(count - 1, 1))",
        "var = var * 1.0",
        ("models/test_layers.py", "models/test_efficientnet.py", IMAGES),
    ),
    Mutation(
        "batch norm: sign in the gradient through the mean",
        "models/layers.py",
        "everywhere(mean * slope - factor * to_bias / count)",
        "everywhere(mean * slope + factor * to_bias / count)",
        ("models/test_layers.py",),
    ),
    Mutation(
        "depthwise convolution: kernel gradient is a mean over parts of the batch",
        "models/depthwise.py",
        "total.sum((0, 2))",
        "total.mean(0).sum(1)",
        ("models/test_layers.py",),
    ),
    Mutation(
        "depthwise convolution on GPUs: kernel gradient is a mean over parts of the batch",
        "models/depthwise.py",
        "jnp.stack(rows).sum(2)",
        "jnp.stack(rows).mean(2)",
        ("models/test_layers.py",),
    ),
    Mutation(
        "attention: cuDNN is asked with the scale of the filled heads",
        "models/attention.py",
        "scale=d**-0.5, implementation",
        "scale=(d + -d % 8) ** -0.5, implementation",
        ("models/test_vit.py",),
    ),
    Mutation(
        "a device's checks: a thousand times the error is right",
        "benchmarks/device_parts.py",
        "bool(error <= limit)",
        "bool(error <= 1e3 * limit)",
        ("benchmarks/test_device.py",),
    ),
    Mutation(
        "MBConv kernel: moments of the expand product from the second moments of x, not their covariance",
        "models/kernels/mbconv_pallas.py",
        "x = x if narrow else x - jnp.tile(mean, cells)",
        "x = x",
        ("models/kernels/test_mbconv_kernels.py",),
    ),
    Mutation(
        "MBConv kernel: the gradient of a tap is given to the tap across",
        "models/kernels/mbconv_backward.py",
        "to_taps_ref[c, a * size + b] += ",
        "to_taps_ref[c, a * size + size - 1 - b] += ",
        ("models/kernels/test_mbconv_kernels.py",),
    ),
    Mutation(
        "MBConv kernel with stride: rows between the outputs take their gradient from the wrong taps",
        "models/kernels/mosaic.py",
        "(part + pad - tap) % self.stride",
        "(part - tap) % self.stride",
        ("models/kernels/test_mbconv_kernels.py",),
    ),
    Mutation(
        "MBConv kernel of stage 1: a cell's first column has its own last column to the left",
        "models/kernels/mbconv_first.py",
        "before, here = (mosaic.columns(line, first, count, images) for first in (0, 1))",
        "before, here = (mosaic.columns(line, first, count, images) for first in (1, 1))",
        ("models/kernels/test_mbconv_kernels.py",),
    ),
    Mutation(
        "drop-connect: what is kept is not scaled up",
        "models/layers.py",
        "x / jnp.asarray(1 - rate, x.dtype)",
        "x",
        ("models/test_layers.py",),
    ),
    Mutation(
        "attention: softmax in bfloat16",
        "models/attention.py",
        "scores = scores.astype(jnp.promote_types(scores.dtype, jnp.float32)) / query.shape[-1] ** 0.5",
        "scores = scores / query.shape[-1] ** 0.5",
        ("models/test_attention.py", "models/test_vit.py", IMAGES),
    ),
    Mutation(
        "text pooling: mean counts padding",
        "models/pooling.py",
        "/ jnp.maximum(weight.sum(axis=1), 1)",
        "/ weight.shape[1]",
        ("models/test_pooling.py",),
    ),
    Mutation(
        "LoRA: merged product not divided by the rank",
        "models/lora.py",
        "(base + alpha / a.shape[1] * product)",
        "(base + alpha * product)",
        ("models/test_lora.py",),
    ),
    Mutation(
        "classifier: a view that is not there counts in the mean",
        "models/heads.py",
        "there / there.sum(axis=1, keepdims=True)",
        "there / there.shape[1]",
        ("models/test_heads.py",),
    ),
    Mutation(
        "suppression: a box strikes out those of other classes",
        "models/nms.py",
        "            struck &= classes == classes[best]\n",
        "            struck &= classes >= 0\n",
        ("models/test_nms.py",),
    ),
    Mutation(
        "RetinaNet: anchors at the corner of their cell, not its centre",
        "models/retinanet.py",
        "(np.arange(rows) + 0.5) * stride",
        "np.arange(rows) * stride",
        ("models/test_retinanet.py",),
    ),
    # --- training ---
    Mutation(
        "a term that has not started is computed and counts",
        "training/step.py",
        "if start_step > 0:",
        "if start_step < 0:",
        ("training/test_step.py",),
    ),
    Mutation(
        "parameters that are not finite are saved",
        "training/checkpoint.py",
        'for name in ("params", "batch_stats", "ema")',
        'for name in ("batch_stats", "ema")',
        ("training/test_loop.py",),
    ),
    Mutation(
        "an evaluation that a stop cut off is forgotten",
        "training/loop.py",
        "meta | {OWED: True} if evaluation_due and stopping else meta",
        "meta",
        ("training/test_loop.py",),
    ),
    Mutation(
        "average of the weights: decay the wrong way round",
        "training/step.py",
        "mean + (1 - config.ema_decay) * (x - mean)",
        "mean + config.ema_decay * (x - mean)",
        ("training/test_step.py::test_the_average_moves_by_one_minus_its_decay",),
    ),
    Mutation(
        "weight decay on parameters that are excluded from it",
        "training/optimizer.py",
        "weight_decay=train.weight_decay, mask=decayed",
        "weight_decay=train.weight_decay",
        ("training/test_step.py::test_frozen_parameters_stay_and_excluded_ones_do_not_decay",),
    ),
    Mutation(
        "logit scale held below the limit, not below its logarithm",
        "training/step.py",
        "jnp.minimum(x, jnp.log(highest))",
        "jnp.minimum(x, highest)",
        ("training/test_step.py::test_logit_scale_is_clamped_on_the_parameter",),
    ),
    Mutation(
        "the same random numbers in every step",
        "training/step.py",
        "jax.random.split(jax.random.fold_in(state.key, state.step))",
        "jax.random.split(state.key)",
        ("training/test_step.py::test_each_step_draws_anew_and_a_step_done_again_the_same",),
    ),
    Mutation(
        "micro-batches: the same dropout in each",
        "training/gradient_caching.py",
        "jax.random.split(key, parts)",
        "jnp.stack([key] * parts)",
        ("training/test_gradient_caching.py::test_each_part_draws_for_itself_and_hands_its_statistics_on",),
    ),
    Mutation(
        "micro-batches: batch statistics of the first ones are lost",
        "training/gradient_caching.py",
        "outputs, stats = encode(stats, *item)",
        "outputs, _ = encode(stats, *item)",
        ("training/test_gradient_caching.py::test_each_part_draws_for_itself_and_hands_its_statistics_on",),
    ),
    Mutation(
        "mesh: a batch is not split over all axes",
        "training/mesh.py",
        "return NamedSharding(mesh, PartitionSpec(AXES))",
        "return NamedSharding(mesh, PartitionSpec(AXES[0]))",
        ("training/test_all_encoders.py", "training/test_mesh.py"),
    ),
    Mutation(
        "cosine schedule ends after the last step",
        "training/optimizer.py",
        "make(config, config.steps - config.warmup_steps)",
        "make(config, config.steps)",
        ("training/test_step.py::test_published_schedule", "training/test_step.py::test_other_schedules"),
    ),
    Mutation(
        "heads: statistics of a mask count all positions",
        "models/vectors.py",
        "n = counts.sum(dtype=wide)",
        "n = jnp.asarray(mask.size, wide)",
        ("models/test_vectors.py",),
    ),
    Mutation(
        "heads: run before their terms start",
        "training/gradient_caching.py",
        "        if start > 0:",
        "        if start > 9:",
        ("training/test_heads_training.py",),
    ),
    Mutation(
        "optimiser: a late part decays before its start",
        "training/optimizer.py",
        "late = {path: start for path, start in starts.items() if start > 0}",
        "late = {}",
        ("training/test_heads_training.py", "training/test_optimizer.py"),
    ),
    Mutation(
        "local alignment: a caption without sentences counts",
        "losses/local_alignment.py",
        "valid = mine[1].any(axis=1) & mine[3].any(axis=1)",
        "valid = mine[1].any(axis=1)",
        ("losses/test_local_alignment.py",),
    ),
    Mutation(
        "layer decay: one layer off",
        "training/optimizer.py",
        "len(numbered) - i for i, place",
        "len(numbered) - 1 - i for i, place",
        ("training/test_layer_decay.py",),
    ),
    Mutation(
        "checkpoint: checksum not compared",
        "training/checksum.py",
        "if crc32(folder / name) != checksum:",
        "if crc32(folder / name) < 0:",
        ("training/test_checkpoint.py",),
    ),
    Mutation(
        "checkpoint: one that is half written is listed",
        "training/checkpoint.py",
        "            shutil.rmtree(left)  # a save that was cut short\n",
        '            left.rename(left.with_name(left.name.partition(".")[0]))\n',
        ("training/test_checkpoint.py",),
    ),
    Mutation(
        "checkpoint: a run goes on from the oldest",
        "training/checkpoint.py",
        "listed = sorted(self._manager.all_steps(), reverse=True)",
        "listed = sorted(self._manager.all_steps())",
        ("training/test_checkpoint.py",),
    ),
    Mutation(
        "checkpoint: weights loaded are not the averaged ones",
        "types.py",
        "return self.ema or {",
        "return {",
        ("training/test_checkpoint.py",),
    ),
    Mutation(
        "average: the raw batch statistics beside averaged weights",
        "training/step.py",
        '{"params": params, "batch_stats": batch_stats},',
        '{"params": params, "batch_stats": ema["batch_stats"]},',
        ("training/test_step.py::test_the_average_moves_by_one_minus_its_decay",),
    ),
    Mutation(
        "early stopping: an equal figure counts as better",
        "training/best.py",
        "self._worth(self._history[-1]) > self._worth(self._best)",
        "self._worth(self._history[-1]) >= self._worth(self._best)",
        ("training/test_best.py",),
    ),
    Mutation(
        "augmentation: boxes moved by the inverse of the affine map",
        "training/augment.py",
        "inverse = jnp.linalg.inv(draws.matrix[:, :, :2])",
        "inverse = draws.matrix[:, :, :2]",
        ("training/test_augment_boxes.py",),
    ),
    Mutation(
        "augmentation: mirrored boxes one pixel off",
        "training/augment.py",
        "jnp.where(horizontal, width - right, left)",
        "jnp.where(horizontal, width - 1 - right, left)",
        ("training/test_augment_boxes.py",),
    ),
    Mutation(
        "augmentation: the vertical flip mirrors columns",
        "training/augment.py",
        "jnp.where(draws.flip_vertical[:, None, None], image[:, ::-1], image)",
        "jnp.where(draws.flip_vertical[:, None, None], image[..., ::-1], image)",
        ("training/test_augment_boxes.py", "training/test_step.py::test_flips_follow_the_batch"),
    ),
    Mutation(
        "augmentation: turns about a point half a pixel off the centre",
        "training/augment.py",
        "centre = jnp.array([(height - 1) / 2, (width - 1) / 2])",
        "centre = jnp.array([height / 2, width / 2])",
        ("training/test_augment_boxes.py", "training/test_step.py::test_affine_moves_a_point_as_its_matrix_says"),
    ),
    Mutation(
        "augmentation: a crop may cut the boxes",
        "training/augment.py",
        "lowest, highest = jnp.maximum(last - size, 0), jnp.minimum(first, whole - size)",
        "lowest, highest = jnp.zeros_like(size), whole - size",
        ("training/test_augment_crop.py",),
    ),
    Mutation(
        "augmentation: boxes stay where they are when the image is cropped",
        "training/augment.py",
        "        cut = cropped\n",
        "",
        ("training/test_augment_crop.py",),
    ),
    # --- data ---
    Mutation(
        "data: a partner's text is that of the first image's breast",
        "data/batches/image_text.py",
        "if record in breast.rows]",
        "if records[0] in breast.rows]",
        ("data/batches/test_named_slots.py",),
    ),
    Mutation(
        "data: a slot that another view fills counts as its own",
        "data/batches/units.py",
        "there = np.array([row is not None for row in drawn])",
        "there = np.ones(len(drawn), bool)",
        ("data/batches/test_named_slots.py",),
    ),
    Mutation(
        "texts: a sentence that is cut keeps its number",
        "data/text/marks.py",
        "cut = set(owners[room:])",
        "cut = set()",
        ("data/text/test_marks.py",),
    ),
    Mutation(
        "a box of several findings has the first alone",
        "data/text/label_values.py",
        'box.get("labels") or (box.get("label", ""),)',
        '(box.get("label", ""),)',
        ("tasks/test_labelled.py", "data/test_check.py"),
    ),
    Mutation(
        "patients that a model was trained on are told apart by the data set's folder",
        "tasks/__init__.py",
        'if dataset.info["fingerprint"] in known}',
        "if name in known}",
        ("test_evaluate.py",),
    ),
    Mutation(
        "an exam's other views come before its standard ones",
        "data/batches/units.py",
        "(not standard, rank, ",
        "(rank, ",
        ("data/batches/test_units.py",),
    ),
    Mutation(
        "a label without its box is taught as background",
        "data/batches/labelled.py",
        "            value[value == 1] = np.nan\n",
        "",
        ("tasks/test_labelled.py",),
    ),
    Mutation(
        "data: a run goes on one batch too far",
        "data/batches/stream.py",
        '{"next_index": self._given * self._rows}',
        '{"next_index": (self._given + 1) * self._rows}',
        ("data/batches/test_image_text.py",),
    ),
    Mutation(
        "data: a mirrored breast keeps its side in the text",
        "data/batches/texts.py",
        "[reports.swap_laterality(text) if swap else text for text, swap in",
        "[text for text, swap in",
        ("data/batches/test_image_text.py",),
    ),
    Mutation(
        "texts are compared where the last hash of a band alone is equal",
        "data/text/duplicates.py",
        "bucket << 31 | np.concatenate(least)",
        "np.concatenate(least)",
        ("data/text/test_duplicates.py",),
    ),
    Mutation(
        "a breast has the first class of its images",
        "data/batches/labelled.py",
        "np.maximum.reduceat(rank, starts)",
        "np.minimum.reduceat(rank, starts)",
        ("data/batches/test_grouping.py",),
    ),
    Mutation(
        "captions are thought possible by labels without the boxes",
        "data/text/templating.py",
        "key = self._labels[labels], self._boxes[boxes], laterality, view",
        "key = self._labels[labels], laterality, view",
        ("data/batches/test_grouping.py",),
    ),
    Mutation(
        "data: images of one patient in several folds",
        "data/subsets.py",
        "splitter.split(patients, strata, patients)",
        "splitter.split(patients, strata, np.arange(len(patients)))",
        ("tasks/test_labelled.py::test_folds_keep_patients_together_and_the_test_part_is_never_trained_on",),
    ),
    Mutation(
        "data: files of a partial copy count as quarantined",
        "data/build.py",
        "held = [problem for problem in problems if problem.stage not in FORGIVEN]",
        "held = list(problems)",
        ("data/test_build.py::test_what_a_partial_copy_lacks_is_no_reason_to_stop",),
    ),
    Mutation(
        "identities: an image has the hash of a patient of the same name",
        "data/identity.py",
        'f"{kind}\\0{value}".encode()',
        'f"{value}".encode()',
        ("data/test_privacy.py::test_a_patient_and_an_image_of_one_name_have_different_hashes",),
    ),
    Mutation(
        "identities: the study is not hashed",
        "data/identity.py",
        'HASHED = ("patient", "study", "image")',
        'HASHED = ("patient", "image")',
        ("data/test_privacy.py",),
    ),
    Mutation(
        "de-identification: ages above 89 stay",
        "data/text/deidentify.py",
        '(_IDS, "[id]"), (_AGES, "[age]"))',
        '(_IDS, "[id]"))',
        ("data/text/test_deidentify.py",),
    ),
    Mutation(
        "pixels: window half a value off",
        "data/pixels/voi.py",
        "(np.asarray(x, np.float64) - (centre - 0.5)) / (width - 1) + 0.5",
        "(np.asarray(x, np.float64) - centre) / (width - 1) + 0.5",
        ("data/pixels/test_voi.py",),
    ),
    Mutation(
        "pixels: MONOCHROME1 not inverted",
        "data/pixels/polarity.py",
        'told = meaning == "MONOCHROME1" or shape == "INVERSE"',
        'told = shape == "INVERSE"',
        ("data/pixels/test_polarity.py", "data/pixels/test_intensity.py"),
    ),
    Mutation(
        "pixels: padding takes part in the stretch of grey values",
        "data/pixels/intensity.py",
        "used = present[~_within(present, padding)]",
        "used = present",
        ("data/pixels/test_intensity.py",),
    ),
    Mutation(
        "geometry: points of a mirrored image one pixel off",
        "data/pixels/geometry.py",
        "x = x1 - xy[:, 0] if self.flip_horizontal",
        "x = x1 - 1 - xy[:, 0] if self.flip_horizontal",
        ("data/pixels/test_geometry.py",),
    ),
    Mutation(
        "geometry: scales along x and y exchanged",
        "data/pixels/geometry.py",
        "np.stack([x * self.scale[1] + self.offset[1], y * self.scale[0] + self.offset[0]], axis=1)",
        "np.stack([x * self.scale[0] + self.offset[1], y * self.scale[1] + self.offset[0]], axis=1)",
        ("data/pixels/test_geometry.py",),
    ),
    Mutation(
        "geometry: the wrong breast is mirrored",
        "data/pixels/geometry.py",
        'laterality == ("R" if chest_wall == "left" else "L")',
        'laterality == ("L" if chest_wall == "left" else "R")',
        ("data/pixels/test_geometry.py", "data/pixels/test_render.py"),
    ),
    Mutation(
        "geometry: a rotation about the corner",
        "data/pixels/geometry.py",
        "centre = np.array([size[1], size[0]]) / 2",
        "centre = np.zeros(2)",
        ("data/pixels/test_geometry.py",),
    ),
    Mutation(
        "geometry: the box of a rotated box by two of its corners",
        "data/pixels/geometry.py",
        "fours = corners.reshape(-1, 4, 2)",
        "fours = corners.reshape(-1, 4, 2)[:, ::2]",
        ("data/pixels/test_geometry.py",),
    ),
    Mutation(
        "upright: a right breast is turned the other way",
        "data/pixels/upright.py",
        'rotation = line.angle if (side == "right") != upside_down else -line.angle',
        "rotation = -line.angle",
        ("data/pixels/test_upright.py",),
    ),
    Mutation(
        "upright: a line is believed whatever its confidence",
        "data/pixels/pectoral.py",
        "return line if line and line.confidence >= CONFIDENT else None",
        "return line",
        ("data/pixels/test_pectoral.py", "data/pixels/test_upright.py"),
    ),
    Mutation(
        "scale: a view is compared with itself alone",
        "data/manifest.py",
        "if place != own) for own, key",
        "if place == own) for own, key",
        ("data/test_upright_sets.py",),
    ),
    Mutation(
        "phantom: depth from the corner instead of the muscle",
        "data/phantom/exam.py",
        "foot = (distance + depth * (nipple @ across - distance)) * across",
        "foot = depth * (nipple @ across) * across",
        ("data/phantom/test_phantom.py",),
    ),
    Mutation(
        "crop: the right side lacks the offset of the part that counts",
        "data/pixels/render.py",
        "return (y0 + crop[0], x0 + crop[1], y0 + crop[2], x0 + crop[3])",
        "return (y0 + crop[0], x0 + crop[1], y0 + crop[2], crop[3])",
        ("data/pixels/test_render.py", "data/pixels/test_published.py"),
    ),
    Mutation(
        "files: DICOM without a suffix is no image",
        "data/image_files.py",
        "suffix not in dicom.SUFFIXES and not dicom.looks_like(path)",
        "suffix not in dicom.SUFFIXES",
        ("data/test_image_files.py",),
    ),
    Mutation(
        "exams: two patients of one study number share it",
        "data/exams.py",
        'study = f"{patient}/{fields.study}" if shared else fields.study or own',
        "study = fields.study or own",
        ("data/sources/test_images_only.py",),
    ),
    Mutation(
        "a time of day makes two days of one exam",
        "data/sources/tables.py",
        "times = times.dt.normalize()",
        "times = times.dt.floor('s')",
        ("data/sources/test_report_csv.py",),
    ),
    Mutation(
        "all dates of a patient are one study",
        "data/sources/report_csv.py",
        'study_of(cells["patient"], cells.get("study", _dated(labels)))',
        'study_of(cells["patient"], cells.get("study", ""))',
        ("data/sources/test_report_csv.py",),
    ),
    Mutation(
        "exams: images for processing are screening views",
        "data/batches/units.py",
        '"for_processing",\n',
        '"specimen",',
        ("data/batches/test_units.py", "inference/test_exam.py"),
    ),
    Mutation(
        "service: a received file's name is not on the disk before it is acknowledged",
        "service/spool.py",
        "            _sync(files)\n",
        "",
        ("service/test_spool.py",),
    ),
    Mutation(
        "service: later instances come without those of the version before",
        "service/spool.py",
        "os.link(path, folder / FILES / path.name)",
        "path.stat()",
        ("service/test_spool.py",),
    ),
    Mutation(
        "service: an archive is unpacked to any size",
        "service/uploads.py",
        "self.left -= len(chunk)",
        "self.left -= 0",
        ("service/test_http.py",),
    ),
    Mutation(
        "predict: overlays read another frame than the score",
        "inference/scorers.py",
        "decoded = dicom.read(path, preprocessing.frames)",
        "decoded = dicom.read(path)",
        ("inference/test_exam.py",),
    ),
    Mutation(
        "predict: an exam whose files have changed is left as it is",
        "delivery/folder.py",
        'there["exams"][0]["inputs"] == inputs',
        'there["exams"][0]["inputs"] is not None',
        ("delivery/test_deliver.py",),
    ),
    Mutation(
        "predict: files have UIDs that nobody asked for",
        "delivery/pseudonyms.py",
        "        if self._plain:",
        "        if said:",
        ("delivery/test_deliver.py",),
    ),
    Mutation(
        "report: the corners of a box are rows and columns",
        "delivery/structured_report.py",
        'left, top, right, bottom = item["box"]',
        'top, left, bottom, right = item["box"]',
        ("delivery/test_objects.py",),
    ),
    Mutation(
        "report: a certainty is not in percent",
        "delivery/codes.py",
        "codes.UCUM.Percent, 100.0)",
        "codes.UCUM.Percent, 1.0)",
        ("delivery/test_objects.py",),
    ),
    Mutation(
        "data: records of another program lie beside new ones",
        "data/build.py",
        'return there.get("program") == parameters["program"]',
        "return True",
        ("data/test_build.py::test_records_of_another_program_never_lie_beside_new_ones",),
    ),
    Mutation(
        "data: what is left out is left out after it is refused only",
        "data/make.py",
        "if not task.leave_out or task.path.lower()",
        "if task.leave_out or task.path.lower()",
        ("data/test_check.py",),
    ),
    Mutation(
        "leave_out: all splits have the images that are not used",
        "evaluation/features.py",
        'index["split"] != leave_out.SPLIT if split == "all"',
        'index["split"] != "" if split == "all"',
        ("data/test_leave_out.py",),
    ),
    Mutation(
        "locks: what another host holds is taken over",
        "locks.py",
        "given = not holder or not _renewed(path, holder, watch)",
        "given = True",
        ("test_locks.py",),
    ),
    Mutation(
        "orientation: the medial side is the breast's",
        "data/pixels/orientation.py",
        'return _OPPOSITE[way] if ends == {"F"}',
        'return way if ends == {"F"}',
        ("data/pixels/test_dicom.py",),
    ),
    # --- evaluation ---
    Mutation(
        "regions of normal tissue: over a finding too",
        "evaluation/region_sets.py",
        "if inside and not (iou(taken, box[None]) > 0).any():",
        "if inside:",
        ("evaluation/test_region_sets.py",),
    ),
    Mutation(
        "zero-shot detection: regions that lie over a better one are kept",
        "evaluation/evaluators/zero_shot_detection.py",
        "suppressed(boxes, own, overlap, limit)",
        "np.argsort(-own, kind='stable')[:limit]",
        ("evaluation/evaluators/test_zero_shot_detection.py",),
    ),
    Mutation(
        "classes by text: features that are not of unit length",
        "models/retinanet.py",
        "x = x * lax.rsqrt((x**2).sum(axis=-1, keepdims=True) + 1e-12)",
        "x = x * 1.0",
        ("models/test_retinanet.py",),
    ),
    Mutation(
        "average precision: equal scores in the order of the images",
        "evaluation/metrics/average_precision.py",
        "np.lexsort((hit, -scores))",
        'np.argsort(-scores, kind="stable")',
        ("evaluation/evaluators/test_detection.py",),
    ),
    Mutation(
        "bootstrap over images, not patients",
        "evaluation/statistics/bootstrap.py",
        "    count, patient = _numbered(patients)\n    rng =",
        "    count, patient = _numbered(np.arange(len(patients)))\n    rng =",
        ("evaluation/statistics/test_statistics.py", "evaluation/statistics/test_discrimination.py"),
    ),
    Mutation(
        "bootstrap: sign of the acceleration",
        "evaluation/statistics/bootstrap.py",
        "left_out.mean() - left_out if len(left_out)",
        "left_out - left_out.mean() if len(left_out)",
        ("evaluation/statistics/test_statistics.py", "evaluation/statistics/test_coverage.py"),
    ),
    Mutation(
        "bootstrap: trusted with any number of patients",
        "evaluation/statistics/few.py",
        "FEW = 10 ",
        "FEW = 1 ",
        ("evaluation/statistics/test_coverage.py",),
    ),
    Mutation(
        "AUROC: tied pairs count whole",
        "evaluation/statistics/discrimination.py",
        "(tp - np.diff(tp, axis=1, prepend=0) / 2)",
        "tp",
        ("evaluation/statistics/test_discrimination.py",),
    ),
    Mutation(
        "ranking metrics: tied scores taken one by one",
        "evaluation/statistics/discrimination.py",
        "np.diff(score[order]) < 0",
        "np.diff(score[order]) <= 0",
        ("evaluation/statistics/test_discrimination.py",),
    ),
    Mutation(
        "average precision: highest precision before, not from there on",
        "evaluation/metrics/average_precision.py",
        "np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]",
        "np.maximum.accumulate(precision, axis=1)",
        ("evaluation/evaluators/test_detection.py",),
    ),
    Mutation(
        "detection: a box may be found twice",
        "evaluation/metrics/average_precision.py",
        "if row[best] >= least and not taken[best]:",
        "if row[best] >= least:",
        ("evaluation/evaluators/test_detection.py",),
    ),
    Mutation(
        "FROC: rates on normal images divided by all images",
        "evaluation/metrics/froc.py",
        "images, never = (marks.normals if group.normals else marks.images),",
        "images, never = marks.images,",
        ("evaluation/evaluators/test_detection.py",),
    ),
    Mutation(
        "regions: quantile over the whole canvas, not the breast",
        "data/regions/of_maps.py",
        "np.quantile(inside, quantile)",
        "np.quantile(heat, quantile)",
        ("evaluation/metrics/test_regions.py",),
    ),
    Mutation(
        "regions: those of the published rule begin at the quantile",
        "data/regions/of_maps.py",
        "heat > np.quantile(heat, quantile)",
        "heat >= np.quantile(heat, quantile)",
        ("evaluation/evaluators/test_localisation.py",),
    ),
    Mutation(
        "regions: parts that meet at a corner are two",
        "data/regions/of_maps.py",
        "ndimage.label(part, np.ones((3, 3)))",
        "ndimage.label(part)",
        ("evaluation/evaluators/test_localisation.py",),
    ),
    Mutation(
        "localisation: the score of a box is the mean of the map in it",
        "data/regions/of_maps.py",
        "heat[place].max()",
        "heat[place].mean()",
        ("evaluation/evaluators/test_localisation.py",),
    ),
    Mutation(
        "retrieval: ties in favour of the right item",
        "evaluation/metrics/ranking.py",
        "return above + (tied_wrong + tied_right + 1) / (tied_right + 1)",
        "return above + 1.0",
        ("evaluation/metrics/test_ranking.py", "evaluation/evaluators/test_retrieval.py"),
    ),
    # --- error slices ---
    Mutation(
        "slices: who is in a slice by the features that decide, whatever was asked for",
        "evaluation/slices/run.py",
        "projector is not None and scored_by == IMAGES and",
        "projector is not None and scored_by != IMAGES and",
        ("evaluation/slices/test_slices_run.py",),
    ),
    Mutation(
        "slices: what every report denies is a hypothesis",
        "evaluation/slices/phrases.py",
        "len(made) < most and affirmed and not any",
        "len(made) < most and not any",
        ("evaluation/slices/test_slice_phrases.py",),
    ),
    Mutation(
        "images of any size are embedded",
        "inference/inputs.py",
        "if size and array.shape[-2:] != tuple(size):",
        "if size and array.ndim < 2:",
        ("inference/test_inputs.py",),
    ),
    Mutation(
        "slices: the map into the language space forgets the mean of the features",
        "evaluation/slices/projection.py",
        "return Projector(weights, mean_y - weights @ mean_x, float(strength))",
        "return Projector(weights, mean_y, float(strength))",
        ("evaluation/slices/test_projection.py",),
    ),
    Mutation(
        "slices: the null of retrieval as if right and wrong were one sample",
        "evaluation/slices/retrieval.py",
        "* (1 / found.right + 1 / found.wrong)",
        "* (1 / (found.right + found.wrong))",
        ("evaluation/slices/test_slice_retrieval.py",),
    ),
    Mutation(
        "slices: an interval that covers 0 is a slice",
        "evaluation/slices/confirmation.py",
        'return SLICE if row["high"] < 0 else COVERS_0',
        'return SLICE if row["gap"] < 0 else COVERS_0',
        ("evaluation/slices/test_confirmation.py",),
    ),
    Mutation(
        "slices: images of one patient fail independently",
        "evaluation/slices/fisher.py",
        "counted = n / design_effect(right[side], patients[side])",
        "counted = n",
        ("evaluation/slices/test_fisher.py",),
    ),
    Mutation(
        "slices: the gate of the ensemble takes scores as they are",
        "evaluation/slices/repair.py",
        "standard = (np.asarray(scores, np.float64) - self.mean) / self.spread",
        "standard = np.asarray(scores, np.float64) - self.mean",
        ("evaluation/slices/test_repair.py",),
    ),
    # --- explain ---
    Mutation(
        "factor: channels that speak against the attribute count for it",
        "explain/factor.py",
        "scores / jnp.where",
        "jnp.abs(scores) / jnp.where",
        ("explain/test_factor.py",),
    ),
    Mutation(
        "saliency: what speaks against the text is shown too",
        "explain/maps.py",
        "jax.nn.relu(maps[0])",
        "jnp.abs(maps[0])",
        ("inference/test_maps.py", "explain/test_cam.py", "inference/test_loading.py"),
    ),
    Mutation(
        "saliency: maps laid half a cell off the image",
        "explain/maps.py",
        "jnp.array([row, column]) - grid.stride / 2",
        "jnp.zeros(2)",
        ("inference/test_loading.py::test_map_equals_its_formula_with_finite_differences", "inference/test_maps.py"),
    ),
    Mutation(
        "Grad-CAM: gradient averaged over channels too",
        "explain/cam.py",
        "gradient.mean(axis=(0, 1))",
        "gradient.mean()",
        ("explain/test_cam.py",),
    ),
    Mutation(
        "attention rollout: layers in the wrong order",
        "explain/rollout.py",
        "in reversed(subject.attention(pixels))",
        "in subject.attention(pixels)",
        ("explain/test_rollout.py",),
    ),
    # --- weights ---
    Mutation(
        "weights: depthwise kernels turned over",
        "weights/naming.py",
        '"depthwise": (2, 3, 0, 1)',
        '"depthwise": (3, 2, 0, 1)',
        ("weights/test_naming.py", "weights/test_names_efficientnet.py"),
    ),
    Mutation(
        "weights: parts of a fused qkv in reverse",
        "weights/naming.py",
        "np.split(value, count)[index]",
        "np.split(value, count)[count - 1 - index]",
        ("weights/test_names_vit.py",),
    ),
    Mutation(
        "weights: queries and keys of CLIP's text tower exchanged",
        "weights/names/clip.py",
        '_QKV = ("q_proj", "k_proj", "v_proj")',
        '_QKV = ("k_proj", "q_proj", "v_proj")',
        ("weights/test_layouts_clip.py",),
    ),
    Mutation(
        "weights: a safetensors file with too much data is read",
        "weights/safetensors_file.py",
        "end - begin != count * kind.itemsize",
        "end - begin < count * kind.itemsize",
        ("weights/test_weight_files.py",),
    ),
    # --- masks ---
    Mutation(
        "masks: not mirrored with their image",
        "training/augment.py",
        "planes = jnp.where(draws.flip_horizontal[:, None, None], planes[..., ::-1], planes)",
        "planes = jnp.where(draws.flip_horizontal[:, None, None], planes, planes)",
        ("training/test_augment_masks.py",),
    ),
    Mutation(
        "phrases: a finding that is not there has the text of one that is",
        "data/batches/phrases.py",
        '_NO = "no "',
        '_NO = ""',
        ("data/batches/test_region_phrases.py",),
    ),
    Mutation(
        "segmentation: the positive weight is on all pixels",
        "losses/segmentation.py",
        "(1 - truth) * jax.nn.softplus(logits)",
        "pos_weight * (1 - truth) * jax.nn.softplus(logits)",
        ("losses/test_segmentation_loss.py",),
    ),
    Mutation(
        "segmentation: a training starts at the odds without their weights",
        "tasks/segmentation.py",
        "inside, outside = weights * (self.inside + 1), self.outside + 1",
        "inside, outside = self.inside + 1, self.outside + 1",
        ("tasks/test_segmentation_task.py",),
    ),
    Mutation(
        "attributes: what is no negative adds 1 to the denominator, as released",
        "losses/attributes.py",
        "jnp.where(negative, scores, LOWEST)",
        "jnp.where(negative, scores, 0)",
        ("losses/test_attributes_loss.py",),
    ),
    Mutation(
        "attributes: an image of which one is unknown counts as without it",
        "losses/attributes.py",
        "known & (target <= 0.5)",
        "~known | (target <= 0.5)",
        ("losses/test_attributes_loss.py",),
    ),
    Mutation(
        "attributes: an image's score is the mean of its channels'",
        "models/attributes.py",
        "axis=1).max(axis=1)",
        "axis=1).mean(axis=1)",
        ("models/test_attributes_model.py",),
    ),
    Mutation(
        "attributes: the dictionary is the mean of unit vectors",
        "inference/attributes.py",
        "texts.project_texts(said)",
        "texts.embed_text(said)",
        ("inference/test_attributes.py",),
    ),
    Mutation(
        "segmentation: what is not known is taken for empty",
        "losses/segmentation.py",
        "probability = jnp.where(known[:, None, None], jax.nn.sigmoid(logits), 0)",
        "probability = jax.nn.sigmoid(logits)",
        ("losses/test_segmentation_loss.py",),
    ),
    Mutation(
        "masks of a source: any touched pixel is inside",
        "data/masks.py",
        "_HALF = 128  # of 255",
        "_HALF = 1  # of 255",
        ("data/test_source_masks.py",),
    ),
    Mutation(
        "hanging: the right breast at the viewer's right",
        "delivery/hanging.py",
        'left, right = by_view[view]["R"], by_view[view]["L"]',
        'left, right = by_view[view]["L"], by_view[view]["R"]',
        ("delivery/test_hanging.py",),
    ),
    Mutation(
        "exam page: boxes stay where they were when the picture is mirrored",
        "delivery/page.py",
        "x0, x1 = (width - x1, width - x0) if mirrored else (x0, x1)",
        "x0, x1 = x0, x1",
        ("delivery/test_page.py",),
    ),
    Mutation(
        "view: ties count as wrong",
        "viewer/scored.py",
        'below = (np.searchsorted(others, self.score[own]) + np.searchsorted(others, self.score[own], "right")) / 2',
        "below = np.searchsorted(others, self.score[own])",
        ("viewer/test_scored.py",),
    ),
    Mutation(
        "view: a name that begins as ours is taken for it",
        "viewer/guard.py",
        "if name in self.hosts:",
        "if name.startswith(tuple(self.hosts)):",
        ("viewer/test_guard.py",),
    ),
    # --- top level ---
    Mutation(
        "a run goes on with another rate",
        "training/continuation.py",
        "train\\.(log_every|",
        "train\\.(lr|log_every|",
        ("training/test_continuation.py",),
    ),
    Mutation(
        "IoU: the intersection counts twice in the union",
        "boxes.py",
        "either = area(a) + area(b) - both",
        "either = area(a) + area(b)",
        ("losses/test_detection_loss.py",),
    ),
    Mutation(
        "inference: texts cut to the shortest of a batch",
        "inference/dual_encoder.py",
        "mask.sum(axis=1).max(initial=1)",
        "mask.sum(axis=1).min(initial=mask.shape[1])",
        ("inference/test_loading.py::test_a_short_text_does_not_cut_a_long_one",),
    ),
    Mutation(
        "classifier: unknown labels count as absent",
        "tasks/classification.py",
        'counts = batch["known"] & batch["mask"][:, None]',
        'counts = jnp.ones_like(batch["known"]) & batch["mask"][:, None]',
        ("tasks/test_labelled.py::test_loss_of_yes_no_labels_is_the_weighted_cross_entropy_of_what_is_known",),
    ),
)


def tracked(tree: Path) -> list[str]:
    """Files that git tracks and that are there, relative to the tree."""
    listed = subprocess.run(["git", "-C", tree, "ls-files", "-z"], capture_output=True, text=True, check=True).stdout
    return [name for name in listed.split("\0") if (tree / name).is_file()]


def there(tree: Path, mutation: Mutation) -> list[str]:
    """Those of its tests that the tree has, relative to it."""
    found = []
    for name in mutation.tests:
        file, _, test = name.partition("::")
        path = tree / TESTS / file
        if path.is_file():
            found.append(f"{TESTS}/{name if f'def {test}(' in path.read_text() else file}")
    if not found:
        raise SystemExit(f"{mutation.name}: none of its tests is in {tree}: {', '.join(mutation.tests)}")
    return found


def check(tree: Path, mutations) -> None:
    """Every mutation can be made in the tree, and has tests there."""
    for mutation in mutations:
        count = (tree / PACKAGE / mutation.file).read_text().count(mutation.old)
        if count != 1:
            raise SystemExit(f"{mutation.name}: {mutation.old!r} stands {count} times in {PACKAGE}/{mutation.file}")
        there(tree, mutation)
    files = {name.partition("::")[0] for mutation in mutations for name in mutation.tests}
    missing = {name for name in files if not (tree / TESTS / name).is_file()}
    if missing:
        print(f"not in {tree}, left out: {', '.join(sorted(missing))}", file=sys.stderr)


def run_tests(copy: Path, files: list[str], *options: str) -> tuple[int | None, list[tuple[str, str]]]:
    """(pytest's exit status, None after TIMEOUT; [(test that failed, its error)]) in a process of its own."""
    # The copy comes before an installed package, in processes that tests start too. Without bytecode files, since one
    # is taken for up to date where the file was changed within a second and has the same length.
    environment = os.environ | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "400"}
    process = subprocess.Popen(
        [sys.executable, "-m", "pytest", *OPTIONS, *options, *files],
        cwd=copy,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return None, []
    failed = re.findall(r"^(?:FAILED|ERROR) (\S.*?)(?: - (.*))?$", output, re.MULTILINE)
    if process.returncode and not failed:
        failed = [("", output[-2000:])]
    return process.returncode, failed


@contextlib.contextmanager
def broken(copy: Path, mutation: Mutation):
    """Within it, the copy has the mistake."""
    path = copy / PACKAGE / mutation.file
    text = path.read_text()
    path.write_text(text.replace(mutation.old, mutation.new))
    try:
        yield
    finally:
        path.write_text(text)


def outcome(status: int | None, failed: list[tuple[str, str]]) -> str:
    """The test that noticed, or what went wrong instead."""
    if status is None:
        return TIMED_OUT
    if status == 0:
        return SURVIVED
    test, error = failed[0]
    return AT_IMPORT if status != 1 or "::" not in test or error.startswith(BROKEN) else test


class Copies:
    """Copies of the tree's tracked files, of which each call uses one by itself."""

    def __init__(self, tree: Path, folder: Path, count: int):
        self.free, names = queue.Queue(), tracked(tree)
        for number in range(count):
            copy = folder / str(number) / "checkout"  # alone in its folder: no `shared` is beside it
            for name in names:
                (copy / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(tree / name, copy / name)
            self.free.put(copy)

    @contextlib.contextmanager
    def one(self):
        copy = self.free.get()
        try:
            yield copy
        finally:
            self.free.put(copy)


def baseline(copies: Copies, tree: Path, mutations, pool) -> None:
    """The tests pass as long as nothing is broken."""
    names = list(dict.fromkeys(name for mutation in mutations for name in there(tree, mutation)))

    def alone(name):
        with copies.one() as copy:
            return run_tests(copy, [name])

    started = time.monotonic()
    bad = [
        f"{name}: " + ("; ".join(" - ".join(both) for both in failed) or f"more than {TIMEOUT} seconds")
        for name, (status, failed) in zip(names, pool.map(alone, names), strict=True)
        if status != 0
    ]
    if bad:
        raise SystemExit("\n".join(["fails while nothing is broken:", *bad]))
    print(f"unbroken: {len(names)} files and tests pass in {time.monotonic() - started:.0f} s", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tree", type=Path, default=Path(__file__).parent.parent, help="checkout to be broken, a copy")
    parser.add_argument("--only", action="append", metavar="NAME", help="mutations whose name has this in it")
    parser.add_argument("--jobs", type=int, default=1, help="mutations at a time")
    parser.add_argument("--skip-baseline", action="store_true", help="do not run the tests unbroken first")
    parser.add_argument("--json", type=Path, help="file for the results")
    arguments = parser.parse_args()
    tree = arguments.tree.resolve()
    mutations = [
        mutation
        for mutation in MUTATIONS
        if not arguments.only or any(part in mutation.name for part in arguments.only)
    ]
    if not mutations:
        raise SystemExit(f"no mutation has {' or '.join(arguments.only)} in its name")
    check(tree, mutations)
    rows, started = [], time.monotonic()
    with tempfile.TemporaryDirectory() as folder, concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
        copies = Copies(tree, Path(folder), arguments.jobs)
        if not arguments.skip_baseline:
            baseline(copies, tree, mutations, pool)

        def noticed(mutation):
            with copies.one() as copy, broken(copy, mutation):
                begun = time.monotonic()
                status, failed = run_tests(copy, there(tree, mutation), "-x")
                return {
                    "broken": mutation.name,
                    "where": mutation.file,
                    "caught_by": outcome(status, failed),
                    "seconds": round(time.monotonic() - begun, 1),
                    "error": failed[0][1] if failed else "",
                }

        print("| broken | where | caught by | seconds |\n|---|---|---|---:|", flush=True)
        for row in pool.map(noticed, mutations):
            rows.append(row)
            test = row["caught_by"].removeprefix(f"{TESTS}/").replace("|", "\\|")
            print(f"| {row['broken']} | `{row['where']}` | {test} | {row['seconds']:.0f} |", flush=True)
    uncaught = [row["broken"] for row in rows if "::" not in row["caught_by"]]
    seconds = round(time.monotonic() - started)
    print(f"{len(rows) - len(uncaught)} of {len(rows)} caught in {seconds} s", file=sys.stderr)
    if arguments.json:
        content = {"tree": str(tree), "seconds": seconds, "mutations": rows}
        arguments.json.write_text(json.dumps(content, indent=1) + "\n")
    if uncaught:
        raise SystemExit("not caught: " + "; ".join(uncaught))


if __name__ == "__main__":
    main()
