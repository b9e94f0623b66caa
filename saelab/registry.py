"""Things known by name: saelab's own, those of other packages, and those of a notebook."""

from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, TypeVar

from saelab.config import UsageError
from saelab.console import note

T = TypeVar("T")


class Registry(Generic[T]):
    """One kind of thing, such as the variants.

    Attributes:
        kind: what one of them is called.
        group: of the entry points by which packages add theirs (name = "package.module:Name").
        built_in: where saelab's own are, by name; each is imported when it is asked for.
        own_name: the name that a thing has; it refuses what is no such thing.
        place: where a thing was written, which tells it from others of its name.
        registered: what was added in this process.
    """

    def __init__(
        self,
        kind: str,
        group: str,
        built_in: Mapping[str, str],
        own_name: Callable[[object], str],
        place: Callable[[T], str],
    ) -> None:
        self.kind, self.group, self.built_in = kind, group, built_in
        self.own_name, self.place = own_name, place
        self.registered: dict[str, T] = {}
        self.forget()

    def forget(self) -> None:
        """Look for packages anew."""
        self._of_packages: dict[str, T] | None = None
        self._failed: dict[str, str] = {}

    def everything(self) -> dict[str, T]:
        """All by name. What cannot be imported is left out, which standard error tells once."""
        return {name: self._load(name) for name in self.built_in} | self._elsewhere()

    def find(self, name: str) -> T:
        """The one of that name; of saelab's own, no other is imported.

        Raises:
            UsageError: there is none.
        """
        if name in self.built_in:
            return self._load(name)
        elsewhere = self._elsewhere()
        if name in elsewhere:
            return elsewhere[name]
        names = ", ".join([*self.built_in, *elsewhere])
        problem = f" ({self._failed[name]})" if name in self._failed else ""
        raise UsageError(
            f"There is no {self.kind} {name!r}{problem}; choose from {names}, or install the "
            f"package that has it, or call saelab.register_{self.kind} first."
        )

    def register(self, thing: T) -> T:
        """Make it known in this process.

        Raises:
            UsageError: another has its name.
        """
        name = self.own_name(thing)
        known = self.everything().get(name, thing)
        # A notebook's cell may run again.
        if (place := self.place(thing)) != (taken := self.place(known)):
            raise UsageError(f"{place} has the name {name!r} of {taken}; give it another.")
        self.registered[name] = thing
        return thing

    def _load(self, name: str) -> T:
        return EntryPoint(name, self.built_in[name], self.group).load()

    def _elsewhere(self) -> dict[str, T]:
        if self._of_packages is None:
            self._of_packages = {}
            for point in entry_points(group=self.group):
                self._add(point, self._of_packages)
        return self._of_packages | self.registered

    def _add(self, point: EntryPoint, found: dict[str, T]) -> None:
        """Add a package's; what fails is told, since it is not the user's doing."""
        try:
            thing = point.load()
            name = self.own_name(thing)
            if name != point.name or name in self.built_in:
                raise UsageError(f"{self.place(thing)} has the name {name!r}")
            found[name] = thing
        except Exception as error:  # noqa: BLE001 - any package's code may run here
            package = point.dist.name if point.dist else point.module
            self._failed[point.name] = f"{package} has it, and cannot be imported: {error}"
            note(f"the {self.kind} {point.name!r} of the package {package} is left out: {error}.")
