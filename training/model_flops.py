"""FLOPs that a step's mathematics asks for, whatever a compiler makes of it: what model FLOPs utilisation is measured in.

Matrix products, convolutions, and kernels by what they say of themselves, two for a multiply-add, counted in the traced
program. What is computed anew to save memory is not counted (as in PaLM, arXiv:2204.02311, appendix B), and what the trace has
twice, with the same inputs, counts once, as a compiler would see to it.
"""

import math
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from training import products

CALLS = ("jaxpr", "call_jaxpr", "fun_jaxpr")  # parameters that hold what a call runs
NO_CALLS = ("pallas_call", "reduce", "reduce_window")  # but of these, what they do to a block or to two numbers
# Kernels of whose products some are the forward pass's, computed again: how many are not.
NEW = {"attention_backward": 4 / 5}
REMATERIALISED = "rematted_computation"  # in the names that jax gives to what a backward pass computes again


def model_flops(traced: ClosedJaxpr, *, loops: int = 1) -> float:
    """FLOPs of one call of a traced program (`jax.stages.Traced.jaxpr`), on all devices together.

    Args:
      traced: the program.
      loops: how often loops go round whose length is decided while they run.

    Raises:
      ValueError: a Pallas kernel without `cost_estimate`, which would count as nothing.
    """
    jaxpr = traced.jaxpr
    inputs = [("input", number) for number in range(len(jaxpr.invars))]
    return Counting(loops).run(jaxpr, inputs, [("constant", id(value)) for value in traced.consts])[0]


class Counting:
    """A walk that knows which values are the same: each is named by its primitive, its inputs and its parameters.

    Args:
      loops: how often loops of unknown length go round.
    """

    def __init__(self, loops: int):
        self.loops, self.seen = loops, {}  # type: ignore[var-annotated]

    def run(self, jaxpr: Jaxpr, inputs: list[Any], constants: list[Any]) -> tuple[float, list[Any]]:
        """FLOPs, and the names of the results."""
        names: dict[Any, Any] = dict(zip(jaxpr.invars, inputs)) | dict(zip(jaxpr.constvars, constants))
        total = 0.0

        def name(atom: Any) -> Any:
            return ("literal", str(atom.val), str(atom.aval)) if isinstance(atom, Literal) else names[atom]

        for equation in jaxpr.eqns:
            given = [name(atom) for atom in equation.invars]
            if REMATERIALISED in str(equation.source_info.name_stack):
                names |= {
                    out: (self.number(("again", id(equation), *given)), n) for n, out in enumerate(equation.outvars)
                }
                continue
            flops, results = self.equation(equation, given)
            total += flops
            names |= dict(zip(equation.outvars, results))
        return total, [name(atom) for atom in jaxpr.outvars]

    def number(self, key: Any) -> int:
        """The same number for the same key."""
        return self.seen.setdefault(key, len(self.seen))

    def equation(self, equation: Any, given: list[Any]) -> tuple[float, list[Any]]:
        """FLOPs of an equation that was not met before, and the names of its results."""
        primitive, params = equation.primitive.name, equation.params
        if primitive in INSIDE:
            key: Any = (primitive, id(equation), *given)
            flops = 0.0 if key in self.seen else INSIDE[primitive](self, params, self.number(key))
        else:
            called = next((params[kind] for kind in CALLS if kind in params and primitive not in NO_CALLS), None)
            if called is not None:
                inner = getattr(called, "jaxpr", called)
                constants = [("constant", id(value)) for value in getattr(called, "consts", ())]
                flops, results = self.run(inner, given[len(given) - len(inner.invars) :], constants)
                return flops * shards(equation), results
            key = (primitive, *given, *((kind, str(value)) for kind, value in sorted(params.items())))
            flops = 0.0 if key in self.seen else PRODUCTS.get(primitive, nothing)(equation)
        number = self.number(key)
        return flops, [(number, place) for place in range(len(equation.outvars))]

    def inside(self, called: Any, caller: int) -> float:
        """FLOPs of a computation of its own, which several callers may share: in each its inputs are others."""
        inner = getattr(called, "jaxpr", called)
        fresh = [("bound", caller, id(called), number) for number in range(len(inner.invars))]
        return self.run(inner, fresh, [("constant", id(value)) for value in getattr(called, "consts", ())])[0]


def shards(equation: Any) -> int:
    """How many devices run what a call runs, each on its own part: of `jax.shard_map` several."""
    if equation.primitive.name != "shard_map":
        return 1
    return math.prod(equation.params["mesh"].shape[axis] for axis in equation.params["newly_manual_axes"])


def nothing(equation: Any) -> float:
    """Of what is no product."""
    return 0.0


def dot_flops(equation: Any) -> float:
    """Of `lax.dot_general`."""
    (contracted, _), _ = equation.params["dimension_numbers"]
    lhs = equation.invars[0].aval.shape
    return 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(lhs[axis] for axis in contracted)


def convolution_flops(equation: Any) -> float:
    """Of `lax.conv_general_dilated`."""
    params, numbers = equation.params, equation.params["dimension_numbers"]
    atoms = zip((*equation.invars, *equation.outvars), (numbers.lhs_spec, numbers.rhs_spec, numbers.out_spec))
    sizes = [[atom.aval.shape[axis] for axis in spec] for atom, spec in atoms]
    return products.convolution_flops(
        *sizes, strides=params["window_strides"], low=[low for low, _ in params["padding"]], spread=params["lhs_dilation"],
        dilation=params["rhs_dilation"],
    )  # fmt: skip


def kernel_flops(equation: Any) -> float:
    """Of a Pallas kernel, as it says."""
    estimate = equation.params.get("cost_estimate")
    if estimate is None:
        raise ValueError(
            f"the kernel {equation.params.get('name_and_src_info', '')} has no cost_estimate; its FLOPs are unknown"
        )
    return float(estimate.flops) * NEW.get(equation.params.get("name"), 1.0)


PRODUCTS = {"dot_general": dot_flops, "conv_general_dilated": convolution_flops, "pallas_call": kernel_flops}
INSIDE = {  # what runs computations of its own
    "scan": lambda counting, params, caller: params["length"] * counting.inside(params["jaxpr"], caller),
    "while": lambda counting, params, caller: counting.loops * counting.inside(params["body_jaxpr"], caller),
    "cond": lambda counting, params, caller: max(counting.inside(branch, caller) for branch in params["branches"]),
}
