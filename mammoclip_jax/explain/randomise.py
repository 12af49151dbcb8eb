"""Weights made anew, from the top down: a map that stays the same does not show what the model has learnt.

Adebayo et al. 2018, Sanity checks for saliency maps, arXiv:1810.03292, section 3.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import Var


def above(function: Callable, variables: Any, fresh: Any) -> Any:
    """`variables` where `function` (variables -> arrays) depends on them, `fresh` ones of the same tree elsewhere."""
    kept = needed_by(function, variables)
    return jax.tree.map(lambda keep, old, new: old if keep else new, kept, variables, fresh)


def needed_by(function: Callable, variables: Any) -> Any:
    """A tree like `variables`: does what `function` returns depend on this one? Nothing is computed."""
    leaves, tree = jax.tree.flatten(variables)
    jaxpr = jax.make_jaxpr(function)(variables).jaxpr
    needed = {x for x in jaxpr.outvars if isinstance(x, Var)}
    for equation in reversed(jaxpr.eqns):
        if not needed.isdisjoint(equation.outvars):
            needed.update(x for x in equation.invars if isinstance(x, Var))
    return jax.tree.unflatten(tree, [x in needed for x in jaxpr.invars])
