"""Names and defaults that flags show, apart from the modules that use them: these import much, and --help does not wait."""

RESAMPLES = 1000  # of the patients, for intervals
PERMUTATIONS = 1000  # of a permutation test
BY = ("density", "age", "vendor", "view", "site", "dataset", "laterality")  # subgroups
LEVELS = ("breast", "breast_max", "image", "exam", "exam_max")  # the keys of comparison.LEVEL_NAMES
METRICS = (  # the keys of comparison.METRICS
    "auroc",
    "auprc",
    "best_f1",
    "sensitivity_at_specificity_90",
    "specificity_at_sensitivity_90",
    "pf1",
    "brier",
    "ece",
    "accuracy",
    "balanced_accuracy",
    "macro_f1",
    "kappa",
    "kappa_linear",
    "kappa_quadratic",
    "macro_auroc",
)
