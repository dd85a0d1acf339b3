"""The models that are served: how their bundles are found, and how they change while streams run."""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from rill.bundle import CONSTRAINED_FILES, FILES, MANIFEST, NGRAMS_FILE, Bundle, BundleError, read_bundle
from rill.serve.errors import ModelNotFoundError, OtherModelError, StartError
from rill.serve.models.model import Model
from rill.serve.observe.metrics import RELOADS

log = logging.getLogger("rill")


class _Loaded(NamedTuple):
    """A model that may be served. `is_given`: the user named its folder, so it was not found in another folder."""

    folder: Path
    is_given: bool
    model: Model


class Catalog:
    """The models of the bundles at `paths`, in that order; used on the event loop.

    `make` makes a model from a bundle, in any thread, and raises StartError if it cannot be served.
    """

    def __init__(self, paths: Sequence[str], make: Callable[[Bundle], Model]) -> None:
        self._paths, self._make = paths, make
        self._served: dict[Path, Model] = {}
        self._retiring: dict[Model, asyncio.Task[None]] = {}  # take no new calls
        self._reloading = asyncio.Lock()
        self._is_final = False

    async def start(self) -> None:
        """Load all bundles. Raises StartError if one that the user named cannot be served, or none can.

        A bundle that was found in a folder and cannot be served is logged; the others are served.
        """
        async with self._reloading:
            newcomers: list[Model] = []
            refused: dict[Path, Exception] = {}
            try:
                self._served = await self._plan(newcomers, refused, is_start=True)
            finally:
                for model in newcomers:
                    if model not in self._served.values():
                        await asyncio.to_thread(model.engine.stop)
            for folder, error in refused.items():
                self._log_refusal(folder, error)

    async def reload(self) -> None:
        """Read the folders again: new models are added, changed ones replaced, missing ones removed, all at once.

        A folder that cannot be served is logged, and its old model stays. If the result as a whole cannot be served,
        nothing changes.
        """
        async with self._reloading:
            newcomers: list[Model] = []
            refused: dict[Path, Exception] = {}
            try:
                served = await self._plan(newcomers, refused)
            except StartError as error:
                log.error("%s; the models stay as they are", error)
                RELOADS.labels("failed").inc()
                leaving = newcomers
            else:
                RELOADS.labels("partial" if refused else "ok").inc()
                leaving = [model for model in (*self._served.values(), *newcomers) if model not in served.values()]
                self._served = served
                log.info("models: %s", ", ".join(self.names))
            for folder, refusal in refused.items():
                self._log_refusal(folder, refusal)
            for model in leaving:
                self._retiring[model] = asyncio.create_task(self._retire(model))

    def freeze(self) -> None:
        """Change nothing from now on: the server is going away."""
        self._is_final = True

    async def close(self) -> None:
        """Stop all engines, whatever they are doing."""
        self.freeze()
        async with self._reloading:
            for task in self._retiring.values():
                task.cancel()
            for model in self.all:
                await asyncio.to_thread(model.engine.stop)

    @property
    def all(self) -> list[Model]:
        """All models, those that take no new calls included."""
        return [*self._served.values(), *self._retiring]

    @property
    def served(self) -> list[Model]:
        """The models that take calls, the default first."""
        return list(self._served.values())

    @property
    def names(self) -> list[str]:
        """The names that a request may give in `model`."""
        return [model.bundle.name for model in self._served.values()]

    @property
    def default(self) -> Model:
        """The model of a request that gives no name."""
        return next(iter(self._served.values()))

    def by_name(self, name: str) -> Model:
        """The model of this name. Raises ModelNotFoundError."""
        for model in self._served.values():
            if model.bundle.name == name:
                return model
        raise ModelNotFoundError(f"no model {name!r} is served here; the models are {', '.join(map(repr, self.names))}")

    def by_id_prefix(self, beginning: str) -> Model:
        """The first model whose id begins with these hex digits. Raises OtherModelError."""
        for model in self._served.values():
            if model.bundle.model_id.startswith(beginning):
                return model
        names = ", ".join(map(repr, self.names))
        raise OtherModelError(f"the resume token belongs to a model that is not served here; the models are {names}")

    async def _plan(
        self, newcomers: list[Model], refused: dict[Path, Exception], is_start: bool = False
    ) -> dict[Path, Model]:
        """The models to serve from now on, by folder. Raises StartError.

        Models that are loaded for it are added to `newcomers`, folders that cannot be served to `refused`.
        """
        loaded: list[_Loaded] = []
        for folder, is_given in (await asyncio.to_thread(_bundle_folders, self._paths)).items():
            if self._is_final:
                raise StartError("the server is going away")
            if not is_start and not folder.is_dir():
                continue
            model = self._served.get(folder)
            try:
                bundle = await asyncio.to_thread(_read, folder)
                if same := self._unchanged(bundle):
                    model = same
                else:
                    model = await asyncio.to_thread(self._make, bundle)
                    newcomers.append(model)
                    if not is_start:
                        log.info("%s is loaded from %s", _label(model), folder)
            except Exception as error:  # any: the others can be served
                if is_start and is_given:
                    raise
                refused[folder] = error
            if model:
                loaded.append(_Loaded(folder, is_given, model))
        if not loaded and is_start and refused:
            count = f"none of the {len(refused)} bundles can be served; the first: " if len(refused) > 1 else ""
            raise StartError(f"{count}{next(iter(refused.values()))}")
        if not loaded:
            raise StartError(f"no bundle is left in {', '.join(self._paths)}")
        served = _without_namesakes(loaded, refused)
        if self._is_final:
            raise StartError("the server is going away")
        return served

    def _log_refusal(self, folder: Path, error: Exception) -> None:
        """Log that the bundle in `folder` cannot be served, and what is served instead."""
        outcome = f"{_label(self._served[folder])} stays" if folder in self._served else "it is not served"
        log.error("%s; %s", error, outcome, exc_info=None if isinstance(error, StartError) else error)

    def _unchanged(self, bundle: Bundle) -> Model | None:
        """The served model with the name and id of `bundle`, if there is one."""
        for model in self._served.values():
            if (model.bundle.name, model.bundle.model_id) == (bundle.name, bundle.model_id):
                return model
        return None

    async def _retire(self, model: Model) -> None:
        """Let its calls end, however long they take; then stop its engine and free its memory."""
        log.info("%s takes no new calls, and has %d", _label(model), model.calls)
        await model.wait_until_idle()
        await asyncio.to_thread(model.engine.stop)
        del model.engine  # the two refer to each other: the graphs' memory would wait for the garbage collector
        del self._retiring[model]
        log.info("%s is unloaded", _label(model))


def _bundle_folders(paths: Sequence[str]) -> dict[Path, bool]:
    """Each path itself or, if it is not a bundle, the bundles in it, by name; and whether the path is the bundle's own.

    Raises StartError.
    """
    folders: dict[Path, bool] = {}
    for path in map(Path, paths):
        inside = []
        try:
            if path.is_dir() and not _is_bundle(path):  # hidden folders are unfinished exports
                inside = sorted(sub for sub in path.iterdir() if not sub.name.startswith(".") and _may_be_bundle(sub))
        except OSError as error:
            raise StartError(f"{path} cannot be read ({error.strerror})") from None
        for folder in inside:
            folders.setdefault(folder, False)
        if not inside:
            folders[path] = True
    return folders


def _is_bundle(folder: Path) -> bool:
    """Whether a folder has a file of a bundle, which may be damaged or half copied."""
    return any(
        (folder / name).is_file() for name in (MANIFEST, NGRAMS_FILE, *FILES.values(), *CONSTRAINED_FILES.values())
    )


def _may_be_bundle(folder: Path) -> bool:
    """Whether a folder is a bundle, or cannot be read, so that the reason is logged."""
    try:
        return _is_bundle(folder)
    except OSError:
        return True


def _read(folder: Path) -> Bundle:
    try:
        return read_bundle(folder)
    except BundleError as error:
        raise StartError(str(error)) from None


def _without_namesakes(loaded: Sequence[_Loaded], refused: dict[Path, Exception]) -> dict[Path, Model]:
    """The models by folder, with different names. Raises StartError if the user named two folders of one name.

    Of bundles with the same name, the one that the user named is kept, or else the one whose folder is called so, which
    a copy's is not. The others are added to `refused`.
    """
    by_name = defaultdict(list)
    for each in loaded:
        by_name[each.model.bundle.name].append(each)
    served = {each.folder: each.model for each in loaded}
    for name, namesakes in by_name.items():
        kept = max(namesakes, key=lambda each: (each.is_given, each.folder.name == name))
        for other in namesakes:
            if other is kept:
                continue
            if other.is_given:
                raise StartError(f"two bundles are named {name!r}; a server needs different names")
            del served[other.folder]
            refused[other.folder] = StartError(
                f"{other.folder} is named {name!r} as {kept.folder} is; export it under another name, or remove it"
            )
    return served


def _label(model: Model) -> str:
    return f"{model.bundle.name} ({model.bundle.model_id[:12]})"
