"""The distillers of an mdistiller checkout that the user has, as contenders. Nothing of it is part of this package.

Its interface, at github.com/megvii-research/mdistiller: ``distiller_dict[NAME](student, teacher, CFG)``, where
``"NONE"`` takes the student alone; networks come from ``cifar_model_dict[NAME][0]`` and give logits and features.
"""

import copy
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml
from jaxtyping import Float, Int
from torch import Tensor, nn

from blockkd.bench.contenders import Batch, Contender, settle
from blockkd.distiller import Distiller, Losses

EPOCH = 1000  # beyond every warm-up, so that no loss is multiplied by zero


class Checkout:
    """An mdistiller checkout.

    Args:
        path: the folder that holds the package ``mdistiller``.

    Raises:
        ValueError: there is none.
        ImportError: it cannot be imported; something that it needs may be missing.
    """

    def __init__(self, path: Path) -> None:
        package = path.resolve() / "mdistiller"
        if not (package / "distillers" / "__init__.py").is_file():
            raise ValueError(
                f"{path} holds no mdistiller/distillers: expected a checkout of github.com/megvii-research/mdistiller"
            )
        self.path = path.resolve()
        for name in [name for name in sys.modules if name.partition(".")[0] == "mdistiller"]:
            del sys.modules[name]  # of another checkout
        sys.path.insert(0, str(self.path))
        try:
            self.distillers = import_module("mdistiller.distillers").distiller_dict
            self.networks = import_module("mdistiller.models").cifar_model_dict
            # Its engine's trainers ask for loggers that are of no use here; the defaults of CFG lie beside them.
            engine = ModuleType("mdistiller.engine")
            engine.__path__ = [str(package / "engine")]
            sys.modules["mdistiller.engine"] = engine
            self.defaults = import_module("mdistiller.engine.cfg").CFG
        finally:
            sys.path.remove(str(self.path))

    def contenders(self, teacher: str, student: str, classes: int, batch: Batch) -> Iterator[Contender | str]:
        """Each of its methods on this pair, or one sentence on why it is left out.

        Raises:
            ValueError: it has no network of such a name.
        """
        for name in (teacher, student):
            if name not in self.networks:
                raise ValueError(f"mdistiller has no network {name!r}; it has {', '.join(self.networks)}")
        networks = [self.networks[name][0](num_classes=classes).to(batch.device) for name in (student, teacher)]
        for network in networks:
            settle(network, batch.images)
        for method, make in self.distillers.items():
            config = self._config(method, teacher, student)
            ours, theirs = copy.deepcopy(networks)
            try:
                inner = make(ours) if method == "NONE" else make(ours, theirs, config)
                contender = _contender(f"mdistiller {'CE' if method == 'NONE' else method}", inner, batch)
                contender.step()
            except Exception as error:  # whatever a foreign method may raise
                yield f"mdistiller {method} is left out: {type(error).__name__}: {str(error).partition(chr(10))[0]}"
                continue
            yield contender

    def _config(self, method: str, teacher: str, student: str) -> Any:
        """The checkout's settings for the method on this pair; its defaults where it has none."""
        config = self.defaults.clone()
        for path in sorted(self.path.glob("configs/cifar100/**/*.yaml")):
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
            if content.get("DISTILLER") == {"TYPE": method, "TEACHER": teacher, "STUDENT": student}:
                config.merge_from_file(str(path))
                break
        return config


class _Theirs(Distiller):
    """One of mdistiller's distillers, called as ours are."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__(None, inner.student)  # type: ignore[arg-type]
        self.inner = inner

    def forward(self, inputs: Tensor, targets: Int[Tensor, " B"], **context: Float[Tensor, "B ..."]) -> Losses:
        """One batch → the losses under their own names."""
        logits, losses = self.inner(image=inputs, target=targets, epoch=EPOCH, **context)
        return Losses.of({name: loss.mean() for name, loss in losses.items()}, logits)


def _contender(name: str, inner: Any, batch: Batch) -> Contender:
    return Contender(name, _Theirs(inner), batch, learned=inner.get_learnable_parameters())
