"""RetinaNet's matching and loss against naive loops, and the same on any number of devices and padded rows."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from naive_boxes import naive_iou

from mammoclip_jax import boxes as geometry
from mammoclip_jax.errors import UserError
from mammoclip_jax.losses import detection
from mammoclip_jax.models.retinanet import anchors
from mammoclip_jax.training.mesh import batch_sharding, make_mesh, replicated

SIZE = (64, 96)
ANCHORS = anchors(*SIZE)
N, M, K = 8, 3, 2


def naive_match(anchors, boxes, valid, force_match=False):
    table = np.array([[naive_iou(a, b) if there else -1 for b, there in zip(boxes, valid)] for a in anchors])
    out = []
    for row in table:
        best = max(row)
        out.append(list(row).index(best) if best >= 0.5 else -1 if best < 0.4 else -2)
    if force_match:
        wishes = {}
        for m in range(len(boxes)):
            column = list(table[:, m])
            if valid[m] and max(column) > 0:
                wishes.setdefault(column.index(max(column)), []).append(m)
        for a, claims in wishes.items():
            out[a] = max(claims, key=lambda m: (table[a, m], -m))
    return np.array(out)


def naive_loss(
    logits,
    deltas,
    boxes,
    classes,
    anchors,
    alpha,
    gamma,
    without_boxes="count",
    force_match=False,
    mask=None,
    known=None,
):
    classification, regression = [], []
    for n in range(len(logits)):
        if mask is not None and not mask[n]:
            continue
        matched = naive_match(anchors, boxes[n], classes[n] >= 0, force_match)
        positives = max(int((matched >= 0).sum()), 1)
        total, smooth = 0.0, []
        for a, m in enumerate(matched):
            for k in range(logits.shape[-1]):
                p = 1 / (1 + np.exp(-float(logits[n, a, k])))
                if m == -2 or (known is not None and not known[n, k]):
                    continue
                if m >= 0 and k in classes[n][(boxes[n] == boxes[n, m]).all(1)]:  # of all boxes that lie there
                    total += -alpha * (1 - p) ** gamma * np.log(p)
                else:
                    total += -(1 - alpha) * p**gamma * np.log(1 - p)
            if m >= 0:
                (x0, y0, x1, y1), (u0, v0, u1, v1) = boxes[n, m].astype(float), anchors[a].astype(float)
                w, h, aw, ah = x1 - x0, y1 - y0, u1 - u0, v1 - v0
                wanted = [
                    ((x0 + w / 2) - (u0 + aw / 2)) / aw / 0.1,
                    ((y0 + h / 2) - (v0 + ah / 2)) / ah / 0.1,
                    np.log(max(w, 1) / aw) / 0.2,
                    np.log(max(h, 1) / ah) / 0.2,
                ]
                for value, target in zip(deltas[n, a], wanted):
                    d = abs(float(value) - target)
                    smooth.append(4.5 * d * d if d <= 1 / 9 else d - 0.5 / 9)
        empty = without_boxes == "zero" and not (classes[n] >= 0).any()
        classification.append(0.0 if empty else total / positives)
        regression.append(np.mean(smooth) if smooth else 0.0)
    return np.mean(classification) + np.mean(regression), np.mean(classification), np.mean(regression)


@pytest.fixture(scope="module")
def case():
    """Boxes near anchors, far from all, twice the same, and none; two images without any.

    No box but the smallest has two anchors that overlap it most: which of them comes out would hang on rounding.
    """
    rng = np.random.default_rng(7)
    corners = rng.uniform(0, 60, (N, M, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(20, 60, (N, M, 2))], -1).astype(np.float32)
    boxes[0, 0] = ANCHORS[400]
    boxes[1, 1] = boxes[1, 0]
    boxes[2, 0] = [10, 10, 13, 12]  # smaller than any anchor: it gets none
    classes = rng.integers(0, K, (N, M)).astype(np.int32)
    classes[0, 2] = classes[3, 1] = -1
    classes[[4, 7]] = -1
    boxes[classes < 0] = 0
    logits = rng.normal(-2, 2, (N, len(ANCHORS), K)).astype(np.float32)
    deltas = rng.normal(0, 1, (N, len(ANCHORS), 4)).astype(np.float32)
    return logits, deltas, boxes, classes, ANCHORS


@pytest.mark.parametrize("force_match", [False, True])
def test_match_equals_a_loop(case, force_match):
    _, _, boxes, classes, _ = case
    states = set()
    match = jax.jit(functools.partial(detection.match, force_match=force_match))
    for n in range(N):
        ours = np.asarray(match(ANCHORS, boxes[n], classes[n] >= 0))
        np.testing.assert_array_equal(ours, naive_match(ANCHORS, boxes[n], classes[n] >= 0, force_match))
        states |= set(ours)
    assert states >= {-2, -1, 0, 1}
    small = np.asarray(match(ANCHORS, boxes[2], classes[2] >= 0))
    assert (0 in small) == force_match


def test_of_equal_boxes_the_first_is_matched_and_the_thresholds_are_inclusive():
    anchor = np.array([[0, 0, 10, 10], [0, 0, 10, 10]], np.float32)
    boxes = np.array([[0, 0, 10, 5], [0, 5, 10, 10]], np.float32)  # IoU .5 with both
    there = np.ones(2, bool)
    assert list(detection.match(anchor, boxes, there)) == [0, 0]
    assert list(detection.match(anchor, boxes, ~there)) == [-1, -1]
    assert list(detection.match(anchor, boxes, there, force_match=True)) == [0, 0]
    assert list(detection.match(anchor, boxes[:1] * [1, 1, 1, 0.8], there[:1])) == [-2, -2]  # .4 is no background


@pytest.mark.parametrize(
    "options", [{}, {"alpha": 0.6, "gamma": 1.5}, {"without_boxes": "zero"}, {"force_match": True}], ids=str
)
def test_loss_equals_a_loop(case, options):
    wanted = naive_loss(*case, **{"alpha": 0.25, "gamma": 2.0} | options)
    loss, metrics = jax.jit(functools.partial(detection.retinanet, **options))(*case)
    np.testing.assert_allclose([loss, metrics["classification"], metrics["box"]], wanted, rtol=2e-5)
    there = case[3] >= 0
    found = []
    for b, v in zip(case[2], there):
        matched = b[[m for m in naive_match(ANCHORS, b, v, options.get("force_match", False)) if m >= 0]]
        found.append([bool((matched == box).all(1).any()) for box in b])
    np.testing.assert_allclose(metrics["unmatched"], (there & ~np.array(found)).sum() / there.sum(), rtol=1e-6)


def test_unknown_classes_teach_nothing(case):
    known = np.random.default_rng(1).random((N, K)) < 0.5
    wanted = naive_loss(*case, 0.25, 2.0, known=known)
    loss, metrics = jax.jit(detection.retinanet)(*case, known=known)
    np.testing.assert_allclose([loss, metrics["classification"], metrics["box"]], wanted, rtol=2e-5)


def test_padded_rows_and_places_never_count(case):
    """Whatever fills them up, the loss and the gradients of the others stay."""
    logits, deltas, boxes, classes, _ = case
    mask = np.arange(N) < N - 3
    loss = jax.jit(functools.partial(detection.retinanet, anchors=ANCHORS))
    few = loss(logits[mask], deltas[mask], boxes[mask], classes[mask])
    np.testing.assert_allclose(few[0], naive_loss(*case, 0.25, 2.0, mask=mask)[0], rtol=2e-5)
    other = np.where(mask[:, None, None], logits, 77.0).astype(np.float32)
    places = np.where((classes >= 0)[..., None], boxes, 31.0).astype(np.float32)
    padded = loss(other, deltas, places, classes, mask=mask)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), padded, few)
    gradient = jax.jit(jax.grad(lambda x: loss(x, deltas, boxes, classes, mask=mask)[0]))(other)
    assert not np.any(gradient[~mask]) and np.any(gradient[mask])
    nothing = loss(logits, deltas, boxes, classes, mask=np.zeros(N, bool))
    assert float(nothing[0]) == 0 and all(float(value) == 0 for value in nothing[1].values())


def test_without_any_box_only_background_is_learnt(case):
    logits, deltas, boxes, classes, _ = case
    nobody = np.full_like(classes, -1)
    loss, metrics = jax.jit(detection.retinanet)(logits, deltas, boxes, nobody, ANCHORS)
    assert float(metrics["box"]) == 0 and float(loss) > 0
    zero = jax.jit(functools.partial(detection.retinanet, without_boxes="zero"))
    loss, _ = zero(logits, deltas, boxes, nobody, ANCHORS)
    assert float(loss) == 0
    with pytest.raises(UserError, match="'zeros'.*Did you mean 'zero'"):
        detection.retinanet(logits, deltas, boxes, nobody, ANCHORS, without_boxes="zeros")


@pytest.mark.parametrize("value", [-200.0, 200.0])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_sure_logits_give_finite_losses_and_gradients(value, gamma):
    """What is right costs nothing, what is wrong the logit itself."""
    for target in (True, False):
        loss, slope = jax.value_and_grad(lambda x: detection.focal(x, jnp.asarray(target), 0.25, gamma))(
            jnp.float32(value)
        )
        right = (value > 0) == target
        np.testing.assert_allclose(loss, 0 if right else 200 * (0.25 if target else 0.75), atol=1e-6)
        assert np.isfinite(slope) and (right or abs(float(slope)) > 0.2)


def test_outputs_in_half_precision_are_summed_in_float32(case):
    half = [jnp.asarray(x, jnp.bfloat16) for x in case[:2]]
    loss, _ = detection.retinanet(*half, *case[2:])
    exact, _ = detection.retinanet(*(x.astype(jnp.float32) for x in half), *case[2:])
    assert loss.dtype == jnp.float32 and float(loss) == float(exact)


def test_eight_devices_give_the_loss_and_gradients_of_one(case):
    mask = np.arange(N) != 5
    step = jax.jit(
        jax.value_and_grad(
            lambda logits, deltas, boxes, classes, mask: detection.retinanet(
                logits, deltas, boxes, classes, ANCHORS, mask=mask
            )[0],
            argnums=(0, 1),
        )
    )
    values = []
    for devices in (1, 8):
        mesh = make_mesh({"data": devices}, jax.devices()[:devices])
        values.append(step(*jax.device_put((*case[:4], mask), batch_sharding(mesh))))
    assert replicated(mesh).is_equivalent_to(values[1][0].sharding, 0)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-9), *values)


# --- boxes ------------------------------------------------------------------------------------------------------------


def test_iou_equals_a_loop_and_nothing_overlaps_an_empty_box():
    rng = np.random.default_rng(2)
    corners = rng.uniform(0, 50, (2, 20, 2))
    a, b = np.concatenate([corners, corners + rng.uniform(0, 40, (2, 20, 2))], -1)
    b[0] = a[0]
    a[1, 2:] = a[1, :2]
    wanted = [[naive_iou(x, y) for y in b] for x in a]
    np.testing.assert_allclose(geometry.iou(a[:, None], b), wanted, rtol=1e-12)
    np.testing.assert_allclose(geometry.iou(jnp.asarray(a)[:, None], jnp.asarray(b)), wanted, rtol=1e-4, atol=1e-6)
    assert geometry.iou(a[1], a[1]) == 0


def test_encode_is_the_inverse_of_decode():
    rng = np.random.default_rng(3)
    deltas = rng.normal(size=(3, len(ANCHORS), 4))
    boxes = geometry.decode(deltas, ANCHORS.astype(np.float64))
    np.testing.assert_allclose(geometry.encode(boxes, ANCHORS.astype(np.float64)), deltas, rtol=1e-9, atol=1e-9)
    single = geometry.encode(jnp.asarray(boxes, jnp.float32), ANCHORS)
    assert isinstance(single, jax.Array)
    np.testing.assert_allclose(single, deltas, rtol=1e-3, atol=1e-3)
    point = geometry.encode(np.array([5.0, 5, 5, 5]), np.array([0.0, 0, 10, 10]))
    np.testing.assert_allclose(point, [0, 0, np.log(0.1) / 0.2, np.log(0.1) / 0.2])
