"""Evaluators: functions `(model, dataset, **options) -> Result`. To add one: a file in evaluators/ and its line here."""

EVALUATORS = {
    "classification": "classification.classification",
    "correspondence": "correspondence.correspondence",
    "detection": "detection.detection",
    "grounding": "grounding.grounding",
    "linear_probe": "probe.linear_probe",
    "zero_shot": "zero_shot.zero_shot",
    "retrieval": "retrieval.retrieval",
    "saliency": "saliency.saliency",
    "segmentation": "segmentation.segmentation",
}

# The kinds of model (`inference.loading.KINDS`) that an evaluator takes, where it does not take all.
MODELS = {
    "classification": ("classifier",),
    "correspondence": ("dual_encoder",),
    "detection": ("detector",),
    "grounding": ("dual_encoder",),
    "retrieval": ("dual_encoder",),
    "saliency": ("dual_encoder", "classifier", "detector"),
    "segmentation": ("segmenter",),
    "zero_shot": ("dual_encoder",),
}
