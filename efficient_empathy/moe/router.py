"""All gates of a mixture, what they hold while a model runs, and putting them into a model."""

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from efficient_empathy.errors import EmpathyError
from efficient_empathy.experts.loss import decoder_of
from efficient_empathy.experts.models import linears_beside_text
from efficient_empathy.experts.prompt_states import ATTRIBUTE
from efficient_empathy.moe.adapters import Adapter
from efficient_empathy.moe.options import RouterOptions, Sites
from efficient_empathy.moe.routed import Gate, RoutedLinear, Routing

PROMPT = "prompt"
"""Name of the one gate of granularity ``sequence``."""
_ATTENTION = re.compile(r"attn|attention")


class Router(nn.Module):
    """The gates of a mixture: its parameters are all that is trained.

    Gates of a token or a layer depend on the current position alone, so they are the same with and without a cache. The gate of
    a whole answer reads the prompt once (``read_prompts``), and who runs the model hands its result in with each call (``held``).
    """

    def __init__(self, features: dict[str, int], experts: Sequence[str], options: RouterOptions):
        """Make gates that begin at zero.

        Args:
            features: size of the hidden state that each gate reads, by the gate's name.
            experts: names, in the order of the gates.
            options: see there.
        """
        super().__init__()
        options.check(len(experts))
        self.experts, self.options, self.names = tuple(experts), options, tuple(features)
        bias = options.init == "prototypes"
        self._gates = nn.ModuleList(Gate(size, len(experts), options.top_k, bias) for size in features.values())
        self._held_BE: Tensor | None = None
        self._by_layer: dict[int, Tensor] = {}
        self._is_uniform = False

    @property
    def gates(self) -> list[Gate]:
        """In the order of ``names``."""
        return [gate for gate in self._gates if isinstance(gate, Gate)]

    def uniform_gates(self, like: Tensor) -> Tensor:
        """Equal gates, (E,)."""
        return torch.full((len(self.experts),), 1 / len(self.experts), device=like.device)

    def route(self, place: int, x_BTI: Tensor) -> Tensor:
        """Gates of a linear whose gate has this place, (B, T, E) or what broadcasts to it."""
        if self._is_uniform:
            return self.uniform_gates(x_BTI)
        if self.options.granularity == "token":
            return self._gates[place](x_BTI).gates
        if self.options.granularity == "layer":
            return self._by_layer[place]
        if self._held_BE is None:
            raise RuntimeError("this mixture routes by the prompt: call it inside told(model, read_prompts(model, …))")
        return self._held_BE[:, None, :]

    def read_prompts(self, model: Any, input_ids: Tensor, attention_mask: Tensor) -> Tensor | None:
        """Gates of whole answers, (B, E), from the mean of the prompt's last hidden states under the uniform mixture.

        None where gates do not depend on the whole prompt.
        """
        if self.options.granularity != "sequence":
            return None
        with self.uniform(), torch.no_grad():
            positions_BT = (attention_mask.cumsum(1) - 1).clamp(min=0)
            inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "position_ids": positions_BT}
            hidden_BTI = decoder_of(model)(**inputs, use_cache=False)[0].float()
            mask_BT1 = attention_mask[..., None].float()
            mean_BI = (hidden_BTI * mask_BT1).sum(1) / mask_BT1.sum(1).clamp(min=1)
        return self._gates[0](mean_BI).gates

    @contextlib.contextmanager
    def held(self, gates_BE: Tensor) -> Iterator[None]:
        """Route rows by gates that ``read_prompts`` gave."""
        before, self._held_BE = self._held_BE, gates_BE
        try:
            yield
        finally:
            self._held_BE = before

    def kept(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """Contexts of a layer and of its repetition on the way back, which gets the gates of now; for checkpointing."""
        gates_BE = self._held_BE
        return contextlib.nullcontext(), contextlib.nullcontext() if gates_BE is None else self.held(gates_BE)

    @contextlib.contextmanager
    def uniform(self) -> Iterator[None]:
        """Equal gates for all experts, whatever was learnt."""
        before, self._is_uniform = self._is_uniform, True
        try:
            yield
        finally:
            self._is_uniform = before

    @contextlib.contextmanager
    def recording(self) -> Iterator[dict[str, Routing]]:
        """Note what each gate says, by its name: the last time that it is asked inside."""
        found: dict[str, Routing] = {}

        def note(name: str, _: nn.Module, __: Any, routing: Routing) -> None:
            found[name] = routing

        pairs = zip(self.names, self.gates, strict=True)
        hooks = [gate.register_forward_hook(partial(note, name)) for name, gate in pairs]
        try:
            yield found
        finally:
            for hook in hooks:
                hook.remove()

    def watch_layer(self, place: int, layer: nn.Module) -> None:
        """Have a gate of granularity ``layer`` read what enters its decoder layer, scaled to a mean square of 1."""

        def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x_BTI = (args[0] if args else kwargs["hidden_states"]).float()
            if not self._is_uniform:
                # What flows between the layers grows with depth; one learning rate is to fit all.
                scale_BT1 = x_BTI.square().mean(-1, keepdim=True).add(1e-6).rsqrt()
                self._by_layer[place] = self._gates[place](x_BTI * scale_BT1).gates

        def leave(*_: Any) -> None:
            self._by_layer.pop(place, None)

        layer.register_forward_pre_hook(enter, with_kwargs=True)
        layer.register_forward_hook(leave, always_call=True)


def attach(model: Any, adapters: Sequence[Adapter], options: RouterOptions) -> Router:
    """Put experts into a model that is given, with a router whose gates begin at zero; all else is frozen.

    Linears that are adapted and not routed (attention, with sites ``mlp``) get the same layer with equal, fixed gates.

    Raises:
        EmpathyError: the model lacks a linear that an expert adapts, nothing is left to route, or what would be routed belongs to
            a sparse layer.
    """
    names = list(dict.fromkeys(name for adapter in adapters for name in adapter.pairs))
    modules = dict(model.named_modules())
    if missing := [name for name in names if name not in modules]:
        raise EmpathyError(f"the base has no '{missing[0]}', which the experts adapt: it is another model.")
    if beside := sorted(set(names) & set(linears_beside_text(model))):
        raise EmpathyError(
            f"the experts adapt '{beside[0]}', which never sees text: train them again with this version, which leaves it out."
        )
    routed = [name for name in names if is_routed(name, options.sites)]
    if not routed:
        raise EmpathyError(f"the experts adapt nothing outside of attention ({names[0]}, …): use --sites all.")
    if sparse := [name for name in routed if _is_of_many(name, modules)]:
        raise EmpathyError(
            f"the base's '{sparse[0]}' belongs to a sparse layer, whose linears see some tokens only: gates beside them are not "
            "supported. Mix experts of a base with dense layers."
        )
    pairs = {name: pairs_of(adapters, name) for name in names}
    gate_of = {name: gate_name(name, options) for name in routed}
    features = {gate: _features(gate, pairs, model) for gate in dict.fromkeys(gate_of.values())}
    router = Router(features, [adapter.name for adapter in adapters], options).to(model.device)
    places = {name: place for place, name in enumerate(router.names)}
    model.requires_grad_(False)
    for name in names:
        parent, _, last = name.rpartition(".")
        fixed = router.uniform_gates
        route: Callable[[Tensor], Tensor] = partial(router.route, places[gate_of[name]]) if name in gate_of else fixed
        setattr(modules[parent], last, RoutedLinear(modules[name], pairs[name], route))
    if options.granularity == "layer":
        for name, place in places.items():
            router.watch_layer(place, modules[name])
    setattr(model, ATTRIBUTE, router)
    return router.train(model.training)


def fold(model: Any, router: Router) -> None:
    """Add the adapters with fixed gates to the base's weights, for a model that is only asked: they then cost nothing.

    Linears whose weights are packed, or stand the other way round, keep their layer.
    """
    for name, layer in list(model.named_modules()):
        if not isinstance(layer, RoutedLinear) or is_routed(name, router.options.sites):
            continue
        base = layer.base
        if not isinstance(base, nn.Linear) or not base.weight.is_floating_point():
            continue
        with torch.no_grad():
            base.weight.copy_(base.weight.float() + layer.delta(router.uniform_gates(base.weight)))
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, base)


def is_routed(name: str, sites: Sites) -> bool:
    """Whether the linear of this name has a gate."""
    return sites == "all" or not _ATTENTION.search(name)


def _is_of_many(name: str, modules: dict[str, nn.Module]) -> bool:
    """Whether the linear of this name stands in a list within a decoder layer, as the experts of a sparse layer do."""
    parts = name.split(".")
    above = [".".join(parts[:count]) for count in range(1, len(parts))]
    return sum(isinstance(modules[one], nn.ModuleList) for one in above) > 1


def gate_name(name: str, options: RouterOptions) -> str:
    """The gate of a linear: its own, that of its decoder layer, or the prompt's."""
    if options.granularity == "token":
        return name
    if options.granularity == "sequence":
        return PROMPT
    layer = re.match(r".*?\.\d+(?=\.)", name)
    if layer is None:
        raise EmpathyError(f"'{name}' stands in no numbered layer of the base: use --granularity token.")
    return layer[0]


def _features(gate: str, pairs: dict[str, list[tuple[Tensor, Tensor]]], model: Any) -> int:
    return pairs[gate][0][0].shape[1] if gate in pairs else int(model.config.get_text_config().hidden_size)


def pairs_of(adapters: Sequence[Adapter], name: str) -> list[tuple[Tensor, Tensor]]:
    """Each expert's matrices of a linear; of rank 0 where it does not adapt it."""
    a, b = next(adapter.pairs[name] for adapter in adapters if name in adapter.pairs)
    return [adapter.pairs.get(name, (a[:0], b[:, :0])) for adapter in adapters]
