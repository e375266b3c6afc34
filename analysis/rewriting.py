"""Changes traced programs: gives ReLU another gradient, and cuts a network in two at one of its maps.

A traced program (a jaxpr) is a list of equations. The functions here trace a function, exchange some equations, and
return the result as a function again. So the networks need no switches for the methods that explain them.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, jaxpr_as_fun, jaxprs_in_params


@jax.custom_vjp
def guided_relu(x: jax.Array) -> jax.Array:
    """Takes max(x, 0). A gradient passes where the result and the gradient itself are above 0.

    Springenberg, Dosovitskiy, Brox, Riedmiller 2015, Striving for simplicity, section 3.4.
    """
    return jnp.maximum(x, 0)


def _guided_relu_forward(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    return jnp.maximum(x, 0), x


def _guided_relu_backward(x: jax.Array, gradient: jax.Array) -> tuple[jax.Array]:
    return (jnp.where(x > 0, jnp.maximum(gradient, 0), 0),)


guided_relu.defvjp(_guided_relu_forward, _guided_relu_backward)


def with_guided_relu(function: Callable[[jax.Array], jax.Array]) -> Callable[[jax.Array], jax.Array]:
    """Returns the same function, but with the gradient of guided_relu for each ReLU, ReLU6 included."""

    def guided(x: jax.Array) -> jax.Array:
        (result,) = jaxpr_as_fun(_guide(jax.make_jaxpr(function)(x)))(x)
        return result

    return guided


def cut_at_map(
    function: Callable[[jax.Array], tuple[jax.Array, jax.Array]], x: jax.Array
) -> Callable[[jax.Array], jax.Array]:
    """Returns the part of a function behind one of its maps: a function from the map to the result.

    Args:
      function: from x to the result and the map.
      x: the argument of the function.

    Raises:
      ValueError: if the result does not depend on the map.
    """
    _, shape = jax.eval_shape(function, x)
    # The second argument takes the place of the map in all equations that read the map.
    closed = jax.make_jaxpr(lambda x, given: function(x))(x, shape)
    jaxpr, (result, cut) = closed.jaxpr, closed.jaxpr.outvars
    given = jaxpr.invars[-1]
    if not any(variable is cut for equation in jaxpr.eqns for variable in equation.invars):
        raise ValueError("the scores do not depend on this map; choose another stage")
    equations = [
        equation.replace(invars=[given if variable is cut else variable for variable in equation.invars])
        for equation in jaxpr.eqns
    ]
    behind = _as_function(closed, jaxpr.replace(eqns=equations, outvars=[result]))
    return lambda given: behind(x, given)[0]


def _as_function(closed: ClosedJaxpr, jaxpr: Jaxpr) -> Callable[..., list[Any]]:
    return jaxpr_as_fun(ClosedJaxpr(jaxpr, closed.consts))


def _guide(closed: ClosedJaxpr) -> ClosedJaxpr:
    return ClosedJaxpr(closed.jaxpr.replace(eqns=list(map(_guide_equation, closed.jaxpr.eqns))), closed.consts)


def _guide_equation(equation: JaxprEqn) -> JaxprEqn:
    """Returns the equation itself, or, if it is or calls a ReLU, an equation with the guided gradient."""
    if _is_relu(equation):
        function, inputs = guided_relu, equation.invars[:1]
    elif equation.primitive.name in ("jit", "custom_jvp_call") and _calls_relu(equation):
        # Both hold a function and apply it to all inputs. The rule of a custom_jvp_call is dropped on purpose.
        (inner,) = (value for value in equation.params.values() if isinstance(value, ClosedJaxpr))
        function, inputs = jaxpr_as_fun(_guide(inner)), equation.invars
    else:
        return equation
    traced = jax.make_jaxpr(jax.jit(lambda *values: function(*values)))(*(variable.aval for variable in inputs))
    (guided,) = traced.jaxpr.eqns
    return guided.replace(invars=list(inputs), outvars=equation.outvars)


def _is_relu(equation: JaxprEqn) -> bool:
    if equation.primitive.name != "max":
        return False
    bound = equation.invars[1]
    return isinstance(bound, Literal) and np.ndim(bound.val) == 0 and bound.val == 0


def _calls_relu(equation: JaxprEqn) -> bool:
    return any(
        _is_relu(inner) or _calls_relu(inner) for jaxpr in jaxprs_in_params(equation.params) for inner in jaxpr.eqns
    )
