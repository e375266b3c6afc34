"""Changes traced programs: gives ReLU another gradient, cuts a network at a map, leaves out the forms of platforms.

A traced program (a jaxpr) is a list of equations. The functions here trace a function, exchange some equations, and
return the result as a function again. So the networks need no switches for those who explain or export them.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, JaxprEqn, Literal, jaxpr_as_fun, jaxprs_in_params


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
    behind = jaxpr_as_fun(ClosedJaxpr(jaxpr.replace(eqns=equations, outvars=[result]), closed.consts))
    return lambda given: behind(x, given)[0]


def with_default_forms(function: Callable[[jax.Array], jax.Array]) -> Callable[[jax.Array], jax.Array]:
    """Returns the same function of plain operations: without forms for one platform, and without derivatives."""

    def default(x: jax.Array) -> jax.Array:
        (result,) = jaxpr_as_fun(_with_default_forms(jax.make_jaxpr(function)(x)))(x)
        return result

    return default


def _with_default_forms(closed: ClosedJaxpr) -> ClosedJaxpr:
    equations, chosen_by_platform = [], set()
    for equation in closed.jaxpr.eqns:
        name, parameters = equation.primitive.name, equation.params
        if name == "platform_index":
            chosen_by_platform.add(equation.outvars[0])
        elif name == "cond" and equation.invars[0] in chosen_by_platform:  # lax.platform_dependent; the default is last
            function = jaxpr_as_fun(_with_default_forms(parameters["branches"][-1]))
            equations.append(_call(function, equation.invars[1:], equation))
        elif name in ("jit", "custom_jvp_call"):
            function = jaxpr_as_fun(_with_default_forms(_inner(equation)))
            equations.append(_call(function, equation.invars, equation))
        else:
            equations.append(equation)
    return ClosedJaxpr(closed.jaxpr.replace(eqns=equations), closed.consts)


def _guide(closed: ClosedJaxpr) -> ClosedJaxpr:
    return ClosedJaxpr(closed.jaxpr.replace(eqns=list(map(_guide_equation, closed.jaxpr.eqns))), closed.consts)


def _guide_equation(equation: JaxprEqn) -> JaxprEqn:
    """Returns the equation itself, or, if it is or calls a ReLU, an equation with the guided gradient."""
    if _is_relu(equation):
        return _call(guided_relu, equation.invars[:1], equation)
    if equation.primitive.name in ("jit", "custom_jvp_call") and _calls_relu(equation):
        return _call(jaxpr_as_fun(_guide(_inner(equation))), equation.invars, equation)
    return equation


def _inner(equation: JaxprEqn) -> ClosedJaxpr:
    """Returns the function that a jit or a custom_jvp_call applies to all its inputs."""
    (inner,) = (value for value in equation.params.values() if isinstance(value, ClosedJaxpr))
    return inner


def _call(function: Callable[..., Any], inputs: list[Any], equation: JaxprEqn) -> JaxprEqn:
    """Returns an equation that calls a function of the inputs and has the same outputs as another equation."""
    traced = jax.make_jaxpr(jax.jit(lambda *values: function(*values)))(*(variable.aval for variable in inputs))
    (call,) = traced.jaxpr.eqns
    return call.replace(invars=list(inputs), outvars=equation.outvars)


def _is_relu(equation: JaxprEqn) -> bool:
    if equation.primitive.name != "max":
        return False
    bound = equation.invars[1]
    return isinstance(bound, Literal) and np.ndim(bound.val) == 0 and bound.val == 0


def _calls_relu(equation: JaxprEqn) -> bool:
    return any(
        _is_relu(inner) or _calls_relu(inner) for jaxpr in jaxprs_in_params(equation.params) for inner in jaxpr.eqns
    )
