"""The class of an option: its default, its valid values, its meaning, and the other options that it needs."""

import dataclasses
import difflib
import fnmatch
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_INTERVAL = re.compile(r"([\[(])([^,]+), ([^\])]+)([\])]) ?(.*)")


@dataclasses.dataclass(frozen=True)
class Option:
    """One option of configs/base.py.

    Attributes:
      default: its value if neither the recipe nor the command line sets it; None: the default of the network or of
        the dataset.
      values: the range of its numbers with their unit, as in "[0, 1) of the images"; or a tuple of choices; or "" for
        any text. A square bracket includes the bound, a round one excludes it.
      meaning: a phrase that explains the option to the user.
      kind: type of the value, or of the values in a tuple; needed if the default does not show it.
      length: how many values the tuple must have; None: any number.
      ascending: whether the values of the tuple are a range, with the smaller value first.
      by_epoch: whether the tuple holds pairs of an epoch and the value from there on, the first of them at epoch 0.
      needs: the condition under which the option has an effect: "name" (that option is on, neither 0 nor empty), or
        "name=value" or "name=value|value", with wildcards. Conditions joined by " and " must all hold; of two that
        are joined by " or " one is enough.
      replaces: the name of an option that this one excludes; typing this option resets the other to its default.
      affects_result: whether the option changes the result of a run; if so, it is part of the workdir's name and must
        stay the same when the run resumes.
    """

    default: Any
    values: str | tuple
    meaning: str
    kind: type | None = None
    length: int | None = None
    ascending: bool = False
    by_epoch: bool = False
    needs: str = ""
    replaces: str = ""
    affects_result: bool = True

    @property
    def type(self) -> type:
        """The type of one value: bool, int, float or str."""
        example = self.default[0] if isinstance(self.default, tuple) and self.default else self.default
        return self.kind or type(example)

    @property
    def range(self) -> str:
        """The values in words, as help and error messages show them: 'at least 0 and less than 1'."""
        if isinstance(self.values, tuple):
            return ", ".join(str(value) for value in self.values if value != "")
        if self.type is bool:
            return "True or False"
        if not self.values:
            return "text"
        least, most, with_least, with_most, unit = _parse_interval(self.values)
        lower, upper = "at least" if with_least else "more than", "at most" if with_most else "less than"
        return f"{lower} {_format(least)} and {upper} {_format(most)} {unit}".strip()

    def check(self, name: str, value: Any) -> None:
        """Checks a value against the option's type and range, but not against other options.

        Raises:
          ValueError: if the value is invalid; the message is one line.
        """
        if value is None:
            if self.default is not None:
                raise ValueError(f"{name}=None is invalid; give {self.range}")
            return
        if isinstance(self.default, tuple):
            self._check_tuple(name, value)
            return
        wrong_type = not isinstance(value, (int, float) if self.type is float else self.type)
        if wrong_type or (isinstance(value, bool) and self.type is not bool):
            raise ValueError(f"{name}={value!r} is not {_ARTICLES[self.type]}; give {self.range}")
        if isinstance(self.values, tuple):
            if value not in self.values:
                hint = nearest_name(str(value), list(map(str, filter(None, self.values))))
                raise ValueError(f"{name}={value!r} is unknown{hint or f'; choose {self.range}'}")
        elif self.type in (int, float) and not self._contains(value):
            raise ValueError(f"{name}={value} is out of range; give {self.range}")
        elif self.type is str and not value.isprintable():
            raise ValueError(f"{name}={value!r} has characters that cannot be printed; leave them out")

    def _check_tuple(self, name: str, values: Any) -> None:
        example = "give them with commas: 0.1,0.9" if self.type is not int else "give them with commas: 1,2"
        if not isinstance(values, (tuple, list)):
            raise ValueError(f"{name}={values!r} is not a tuple; give values with commas between them")
        if self.by_epoch:
            values = _values_by_epoch(name, values)
        numbers = (int,) if self.type is int else (int, float)
        for value in values if self.type is not str else ():
            if not isinstance(value, numbers) or isinstance(value, bool):
                kind = "whole numbers" if self.type is int else "numbers"
                raise ValueError(f"{name}={values} is not made of {kind}; {example}")
            if not self._contains(value):
                raise ValueError(f"{name}={values} is out of range; give numbers of {self.range}")
        if self.type is str and not all(isinstance(value, str) and value.isprintable() for value in values):
            raise ValueError(f"{name}={values} is not made of names; give them with commas between them")
        if self.length is not None and len(values) != self.length:
            raise ValueError(f"{name}={values} has {len(values)} values; give {self.length}")
        if self.ascending and list(values) != sorted(values):
            raise ValueError(f"{name}={values} is no range; give the smaller number first")

    def _contains(self, number: float) -> bool:
        least, most, with_least, with_most, _ = _parse_interval(str(self.values))
        return (least <= number if with_least else least < number) and (number <= most if with_most else number < most)

    def unmet_need(self, config: Mapping[str, Any]) -> str | None:
        """Returns the first condition of `needs` that the config does not meet, or None."""
        return next((need for need in filter(None, self.needs.split(" and ")) if not _is_met(need, config)), None)


def _values_by_epoch(name: str, pairs: Sequence) -> list:
    """Returns the values of pairs (epoch, value); raises ValueError if they are none, or if the epochs do not rise."""
    example = "give an epoch and a value in each: ((0, 128), (30, 160))"
    if not all(isinstance(pair, (tuple, list)) and len(pair) == 2 for pair in pairs):
        raise ValueError(f"{name}={pairs} is not made of pairs; {example}")
    epochs = [epoch for epoch, _ in pairs]
    if not all(isinstance(epoch, (int, float)) and not isinstance(epoch, bool) and epoch < 1e6 for epoch in epochs):
        raise ValueError(f"{name}={pairs} has epochs that are no numbers below 1,000,000; {example}")
    if pairs and (epochs[0] != 0 or epochs != sorted(set(epochs))):
        raise ValueError(f"{name}={pairs} has the epochs {epochs}; begin at 0, and give each epoch once in order")
    return [value for _, value in pairs]


_ARTICLES = {int: "a whole number", float: "a number", bool: "True or False", str: "text"}


def nearest_name(name: str, names: Iterable[str]) -> str:
    """Returns '; did you mean X?' for the name nearest to a misspelt one, or '' if none is near."""
    matches = difflib.get_close_matches(name, list(names), n=1)
    return f"; did you mean {matches[0]}?" if matches else ""


def words_of(value: object) -> str:
    """Returns a value as a command line takes it, every digit included; a tuple of pairs with its brackets."""
    if isinstance(value, (tuple, list)) and not any(isinstance(item, (tuple, list)) for item in value):
        return ",".join(map(str, value)) or "()"
    return str(value)


def text_of(value: object) -> str:
    """Returns a value as people read it: a tuple with commas, without brackets, numbers with six digits."""
    if isinstance(value, (tuple, list)):
        return ",".join(f"{item:g}" if isinstance(item, float) else str(item) for item in value) or "()"
    return str(value)


def _is_met(need: str, config: Mapping[str, Any]) -> bool:
    if " or " in need:
        return any(_is_met(part, config) for part in need.split(" or "))
    name, _, patterns = need.partition("=")
    value = config[name]
    if patterns:
        return any(fnmatch.fnmatchcase(str(value), pattern) for pattern in patterns.split("|"))
    return any(value) if isinstance(value, (tuple, list)) else bool(value)


def _parse_interval(text: str) -> tuple[float, float, bool, bool, str]:
    left, least, most, right, unit = _INTERVAL.findall(text)[0]
    return _number(least), _number(most), left == "[", right == "]", unit


def _number(text: str) -> float:
    base, _, exponent = text.partition("^")
    return float(base) ** float(exponent or 1)


def _format(number: float) -> str:
    return f"{number:,.0f}" if number == round(number) and abs(number) >= 1000 else f"{number:g}"
