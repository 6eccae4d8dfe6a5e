"""A walk through the equations of a jaxpr."""

from jax.extend.core import jaxprs_in_params


def equations(jaxpr):
    """Yields the equations of a jaxpr and of all jaxprs inside."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from equations(inner)
