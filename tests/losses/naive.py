"""The contrastive losses as loops over pairs, in float64."""

import numpy as np


def pair_weights(mask, ids, labels, duplicates):
    """[B][B] of the weight of a pair as a positive, or None where it does not count."""

    def of(i, j):
        if not (mask[i] and mask[j]):
            return None
        if labels is not None:
            return float(labels[i, j]) if labels[i, j] >= 0 else None
        if i == j:
            return 1.0
        if ids is not None and duplicates != "negative" and set(np.ravel(ids[i])) & set(np.ravel(ids[j])):
            return 1.0 if duplicates == "positive" else None
        return 0.0

    return [[of(i, j) for j in range(len(mask))] for i in range(len(mask))]


def cross_entropy(logits, weights, smoothing):
    """Mean over the rows that have a positive; torch.nn.functional.cross_entropy defines the smoothing."""
    losses = []
    for row, row_weights in zip(logits, weights):
        pairs = [(logit, weight) for logit, weight in zip(row, row_weights) if weight is not None]
        total = sum(weight for _, weight in pairs)
        if not total:
            continue
        highest = max(logit for logit, _ in pairs)
        log_sum = np.log(sum(np.exp(logit - highest) for logit, _ in pairs)) + highest
        losses.append(
            -sum(
                ((1 - smoothing) * weight / total + smoothing / len(pairs)) * (logit - log_sum)
                for logit, weight in pairs
            )
        )
    return sum(losses) / max(len(losses), 1)


def info_nce(queries, keys, scale, mask, ids=None, labels=None, duplicates="negative", smoothing=0.0):
    """(rows, columns)."""
    logits = scale * queries @ keys.T
    weights = pair_weights(mask, ids, labels, duplicates)
    return cross_entropy(logits, weights, smoothing), cross_entropy(logits.T, list(zip(*weights)), smoothing)


def sigmoid_loss(queries, keys, scale, bias, mask, ids=None, labels=None, duplicates="negative", smoothing=0.0):
    logits = scale * queries @ keys.T + bias
    total = 0.0
    for row, row_weights in zip(logits, pair_weights(mask, ids, labels, duplicates)):
        for logit, weight in zip(row, row_weights):
            if weight is not None:
                target = (1 - smoothing) * weight + smoothing / 2
                total += target * np.log1p(np.exp(-logit)) + (1 - target) * np.log1p(np.exp(logit))
    return total / max(sum(mask), 1)


def accuracy(queries, keys, mask, ids=None, labels=None, duplicates="negative"):
    """Share of the rows with a positive whose most similar positive beats every negative."""
    hits = []
    for row, row_weights in zip(queries @ keys.T, pair_weights(mask, ids, labels, duplicates)):
        positives = [s for s, weight in zip(row, row_weights) if weight]
        if positives:
            hits.append(max(positives) > max((s for s, weight in zip(row, row_weights) if weight == 0), default=-9))
    return sum(hits) / max(len(hits), 1)
