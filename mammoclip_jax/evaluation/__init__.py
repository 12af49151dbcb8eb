"""Evaluators: functions `(model, dataset, **options) -> Result`. To add one, write a file and add its line here."""

EVALUATORS = {
    "zero_shot": "mammoclip_jax.evaluation.zero_shot:zero_shot",
    "retrieval": "mammoclip_jax.evaluation.retrieval:retrieval",
    "saliency": "mammoclip_jax.evaluation.saliency:saliency",
}
