"""Exact arithmetic: an expression's syntax tree is evaluated over rationals, never by eval."""

import ast
import math
import operator
import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from agent_forge.agent.tools import ToolContext, ToolError

NAME = "calculator"
DESCRIPTION = "Work out an arithmetic expression exactly."
PARAMETERS = {
    "type": "object",
    "properties": {
        "expression": {
            "type": "string",
            "description": "numbers with + - * / // % ** ( ) and abs, min, max, round, sqrt; for "
            "example (12+30)*5",
        }
    },
    "required": ["expression"],
}

MAX_CHARACTERS = 1000
MAX_BITS = 20_000
DECIMALS = 12

_SIGNS = str.maketrans({"×": "*", "·": "*", "÷": "/", "−": "-", "–": "-", "^": "**"})
_BINARY: dict[type[ast.operator], Callable[[Fraction, Fraction], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}


def run(arguments: dict[str, Any], context: ToolContext) -> str:
    """Return the value: an exact integer or decimal, else 12 significant digits.

    Raises ToolError.
    """
    del context
    return format_number(evaluate(arguments["expression"]))


def evaluate(expression: str) -> Fraction:
    """Return the exact value of an arithmetic expression. Raises ToolError saying what is wrong."""
    if len(expression) > MAX_CHARACTERS:
        raise ToolError(
            f"the expression has {len(expression)} characters, at most {MAX_CHARACTERS} are read"
        )
    text = expression.translate(_SIGNS).strip().rstrip("=").strip()
    if not re.search(r"[A-Za-z]", text):
        text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)
    text = re.sub(r"(?<![\d.])0+(?=\d)", "", text)
    try:
        tree = ast.parse(text, mode="eval")
        return _value(tree.body)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ToolError(
            f"cannot read '{expression[:60]}'; write numbers with + - * / // % ** and brackets"
        ) from None
    except ZeroDivisionError:
        raise ToolError(f"division by zero in '{expression[:60]}'") from None


def format_number(value: Fraction) -> str:
    """Return integers and short decimals exactly, anything else to 12 significant digits."""
    if value.denominator == 1:
        return str(value.numerator)
    if 10**DECIMALS % value.denominator == 0:
        scaled = abs(value.numerator) * (10**DECIMALS // value.denominator)
        whole, part = divmod(scaled, 10**DECIMALS)
        return f"{'-' if value < 0 else ''}{whole}." + f"{part:0{DECIMALS}d}".rstrip("0")
    try:
        return f"{float(value):.{DECIMALS}g}"
    except OverflowError:
        raise ToolError("the result is too large to write") from None


def _value(node: ast.expr) -> Fraction:
    match node:
        case ast.Constant(value=int(number)) if not isinstance(number, bool):
            return _checked(Fraction(number))
        case ast.Constant(value=float(number)) if math.isfinite(number):
            return Fraction(repr(number))
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand)
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            return _value(operand)
        case ast.BinOp(left=left, op=ast.Pow(), right=right):
            return _power(_value(left), _value(right))
        case ast.BinOp(left=left, op=operation, right=right) if type(operation) in _BINARY:
            return _checked(Fraction(_BINARY[type(operation)](_value(left), _value(right))))
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in _FUNCTIONS:
            return _FUNCTIONS[name](*[_value(argument) for argument in arguments])
        case ast.Name(id=name):
            raise ToolError(
                f"'{name}' is not a number; the calculator knows numbers and "
                f"{', '.join(_FUNCTIONS)}"
            )
    shown = ast.unparse(node)[:60]
    raise ToolError(
        f"'{shown}' is not arithmetic; the calculator knows numbers and {', '.join(_FUNCTIONS)}"
    )


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    if exponent.denominator == 2 and exponent.numerator == 1:
        return _sqrt(base)
    if exponent.denominator != 1:
        raise ToolError(f"the exponent must be whole or 1/2, got {exponent}")
    size = max(base.numerator.bit_length(), base.denominator.bit_length())
    if size * abs(exponent.numerator) > MAX_BITS:
        raise ToolError("the power is too large")
    return _checked(base**exponent.numerator)


def _sqrt(*values: Fraction) -> Fraction:
    (value,) = _exactly_one("sqrt", values)
    if value < 0:
        raise ToolError("sqrt of a negative number")
    numerator, denominator = math.isqrt(value.numerator), math.isqrt(value.denominator)
    if numerator**2 == value.numerator and denominator**2 == value.denominator:
        return Fraction(numerator, denominator)
    try:
        return Fraction(math.sqrt(value))
    except OverflowError:
        raise ToolError("the number is too large for sqrt") from None


def _absolute(*values: Fraction) -> Fraction:
    return abs(_exactly_one("abs", values)[0])


def _round(*values: Fraction) -> Fraction:
    decimals = values[1] if len(values) == 2 else Fraction(0)
    if not 1 <= len(values) <= 2 or decimals.denominator != 1 or abs(decimals) > 100:
        raise ToolError("round takes a number and at most 100 decimals")
    return (
        Fraction(round(values[0], int(values[1])))
        if len(values) == 2
        else Fraction(round(values[0]))
    )


def _minimum(*values: Fraction) -> Fraction:
    return min(_some("min", values))


def _maximum(*values: Fraction) -> Fraction:
    return max(_some("max", values))


_FUNCTIONS: dict[str, Callable[..., Fraction]] = {
    "abs": _absolute,
    "min": _minimum,
    "max": _maximum,
    "round": _round,
    "sqrt": _sqrt,
}


def _exactly_one(name: str, values: tuple[Fraction, ...]) -> tuple[Fraction, ...]:
    if len(values) != 1:
        raise ToolError(f"{name} takes one number, got {len(values)}")
    return values


def _some(name: str, values: tuple[Fraction, ...]) -> tuple[Fraction, ...]:
    if not values:
        raise ToolError(f"{name} takes at least one number")
    return values


def _checked(value: Fraction) -> Fraction:
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > MAX_BITS:
        raise ToolError("the number is too large")
    return value
