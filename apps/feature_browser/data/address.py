"""The address is the app's only state, so every view can be sent around.

It names a page and a run; the rest is the page's own, which has a record of its parameters. Pages
lead to each other by name, see `link`.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, TypeVar
from urllib.parse import parse_qsl, urlencode

HOME = "latent"
"""The page of an address that names none."""
A = TypeVar("A", bound="AbstractAddress")


def parameter(
    default: str | None, fits: Callable[[str], bool] = lambda _: True, *, stays: bool = False
) -> Any:  # noqa: ANN401 - as `dataclasses.field`
    """A parameter of a page: `default` where the address says nothing, or nothing that `fits`.

    One that `stays` is in the address of the other pages, too, for when the reader is back.
    """
    return field(default=default, metadata={"fits": fits, "stays": stays})


def one_of(*values: str, stays: bool = False) -> Any:  # noqa: ANN401 - as `dataclasses.field`
    """A parameter with one of these values, the first by default."""
    return parameter(values[0], values.__contains__, stays=stays)


def page_number() -> Any:  # noqa: ANN401 - as `dataclasses.field`
    """Which page of a table, at least 1."""
    return parameter("1", lambda text: is_number(text, 9) and int(text) > 0)


def is_number(text: str, digits: int = 6) -> bool:
    """Whether a parameter is a whole number of at most so many digits."""
    # isdecimal also accepts other scripts' digits, and so does int.
    return text.isdecimal() and len(text) <= digits


@dataclass(frozen=True, kw_only=True)
class AbstractAddress:
    """What the address says. A page's record adds its parameters, as fields of their names.

    Values are as typed: nothing here is known to exist.

    Attributes:
        view: the page's name.
        run: the run's name below the directory of runs.
        carried: what stays in the address of other pages' parameters, for when the reader is back.
    """

    view: ClassVar[str]
    run: str | None = None
    carried: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls: type[A], params: Mapping[str, str]) -> A:
        """The address of a query string; what does not fit has its default."""
        own = {one.name: one.metadata.get("fits") for one in fields(cls) if one.name != "carried"}
        given = {name: text for name, text in params.items() if name in own}
        others = {name: text for name, text in params.items() if name not in {*own, "view"}}
        fitting = {n: text for n, text in given.items() if (fits := own[n]) is None or fits(text)}
        return cls(carried=tuple(sorted(others.items())), **fitting)

    def to(self: A, **changes: object) -> A:
        """The same page with some parameters changed."""
        texts = {name: None if value is None else str(value) for name, value in changes.items()}
        return replace(self, **texts)

    def fresh(self: A, **changes: object) -> A:
        """The same page of the same run, with what stays and the changes alone."""
        return type(self)(run=self.run, carried=self.carried, **self._said("stays")).to(**changes)

    def visit(self, view: str, **state: object) -> str:
        """The link to a page of the same run, which finds there what stays."""
        return link(view, run=self.run, **{**self._said("stays"), **dict(self.carried), **state})

    def params(self) -> dict[str, str]:
        """The query parameters; what has its default value is left out."""
        view = {} if self.view == HOME else {"view": self.view}
        run = {} if self.run is None else {"run": self.run}
        return {**view, **run, **self._said("fits"), **dict(self.carried)}

    @property
    def href(self) -> str:
        """The query string, for a link."""
        return "?" + urlencode(self.params())

    def _said(self, mark: str) -> dict[str, str]:
        """The page's own parameters, those of a mark, that do not have their default."""
        own = [one for one in fields(self) if one.metadata.get(mark)]
        return {o.name: text for o in own if (text := getattr(self, o.name)) != o.default}


def link(view: str, *, run: str | None, **state: object) -> str:
    """The query string of a page by its name; parameters that are None or empty are left out."""
    params = {"view": "" if view == HOME else view, "run": run, **state}
    return "?" + urlencode({name: text for name, text in params.items() if text not in (None, "")})


def parsed(href: str) -> dict[str, str]:
    """The parameters of a query string."""
    return dict(parse_qsl(href.removeprefix("?")))


def setting(**values: object) -> str:
    """What `data-set` takes: parameters of the address; an empty one is taken out."""
    return urlencode({name: str(value) for name, value in values.items()})


def numbers_of(box: str) -> tuple[float, float, float, float] | None:
    """Left, right, bottom and top of a box written "0,0.1,0.5,1"; None for anything else."""
    try:
        left, right, bottom, top = (float(part) for part in box.split(","))
    except ValueError:
        return None
    whole = all(math.isfinite(number) for number in (left, right, bottom, top))
    return (left, right, bottom, top) if whole else None


def box() -> Any:  # noqa: ANN401 - as `dataclasses.field`
    """A rectangle of a scatter: four numbers, see `numbers_of`."""
    return parameter("", lambda text: numbers_of(text) is not None)
