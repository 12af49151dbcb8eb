"""From a model, or several, to one that looks as it was asked to."""

from mammoclip_jax.errors import UserError
from mammoclip_jax.inference import calibration
from mammoclip_jax.inference.ensemble import Ensemble
from mammoclip_jax.inference.looks import Looks
from mammoclip_jax.inference.mirrored import Mirrored
from mammoclip_jax.inference.windows import Windows


def looking(model, wanted: Looks):
    """The model with these looks; of an ensemble each of its members has them. A mirrored look is had in each window.

    Raises:
        UserError: it has other looks already, or models of its kind have none of these.
    """
    if wanted in (Looks(), getattr(model, "looks", Looks())):
        return model
    if isinstance(model, Ensemble):
        return Ensemble([looking(member, wanted) for member in model.members])
    if model.looks != Looks():
        raise UserError(
            f"this model looks in its own way already ({calibration.described({'looks': model.looks.to_json()})}): say how "
            "where it is loaded, or where it is used."
        )
    model = Mirrored(model) if wanted.mirror else model
    return Windows(model, wanted.windows, wanted.pool) if wanted.windows else model
