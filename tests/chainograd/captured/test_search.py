"""What a step captures is found wherever it is kept, or refused; and finding it takes no time."""

import collections
import contextvars
import dataclasses
import enum
import functools
import io
import itertools
import sys
import types
import weakref

import pytest
import torch
from torch import nn

import chainograd.captured.find
import chainograd.captured.search
from chainograd import ChainError, CheckpointedChain, binomial
from chainograd.captured.find import find_captured
from chainograd.errors import CapturedTensorError
from tests.problems import plain

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit")  # is deprecated, says torch
M = 6
PLANS = {"graph": "graph", "nodes": "nodes", "2 slots": binomial(M, slots=2)}
CASES = {}


def case(make):
    """Take up a function that returns a step, and what it uses that requires a gradient."""
    CASES[make.__name__.replace("_", " ")] = make
    return make


def weight():
    return torch.randn(8, requires_grad=True)


def layers():
    return nn.Sequential(nn.Linear(8, 8), nn.Tanh())


def around(net):
    return (lambda x, i: x + 0.3 * net(x)), list(net.parameters())


def times(get):
    w = get()
    return (lambda x, i: torch.tanh(get() * x)), [w]


def loaded(module):
    file = io.BytesIO()
    torch.jit.save(module, file)
    file.seek(0)
    return torch.jit.load(file)


@case
def a_traced_module():
    return around(torch.jit.trace(layers(), torch.randn(4, 8)))


@case
def a_scripted_module():
    return around(torch.jit.script(layers()))


@case
def a_loaded_module():
    return around(loaded(torch.jit.script(layers())))


@case
def a_loaded_traced_module():
    return around(loaded(torch.jit.trace(layers(), torch.randn(4, 8))))


@case
def a_loaded_module_inside_a_module():
    return around(nn.Sequential(loaded(torch.jit.script(layers())), nn.Tanh()))


@case
def a_loaded_module_in_a_list_of_an_object():
    held = types.SimpleNamespace(nets=[loaded(torch.jit.script(layers()))])
    return (lambda x, i: held.nets[0](x)), list(held.nets[0].parameters())


@case
def a_method_of_a_loaded_module():
    net = loaded(torch.jit.script(layers()))
    forward = net.forward
    return (lambda x, i: forward(x)), list(net.parameters())


class Scripted(nn.Module):
    """Holds tensors that are neither parameters nor buffers."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.w = weight()
        self.more = [weight(), weight()]

    def forward(self, x):
        return torch.tanh(self.layer(x) * self.w + self.more[0] * self.more[1])


@case
def plain_tensors_of_a_loaded_module():
    net = loaded(torch.jit.script(Scripted()))
    return (lambda x, i: net(x)), [*net.parameters(), net.w, *net.more]


@case
def a_scripted_function_on_parameters():
    w = weight()
    f = torch.jit.script(_scaled)
    return (lambda x, i: f(x, w)), [w]


def _scaled(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return torch.tanh(x * w)


@case
def a_parameter_list():
    ws = nn.ParameterList([weight(), weight()])
    return (lambda x, i: torch.tanh(ws[0] * x + ws[1])), list(ws)


@case
def a_parameter_dict():
    ws = nn.ParameterDict({"a": weight()})
    return (lambda x, i: torch.tanh(ws["a"] * x)), list(ws.values())


@case
def a_deque():
    held = collections.deque([weight()])
    return times(lambda: held[0])


@case
def a_defaultdict():
    w = weight()
    made = collections.defaultdict(lambda: w)
    return (lambda x, i: torch.tanh(made[i] * x)), [w]


@case
def a_chain_map():
    held = collections.ChainMap({}, {"w": weight()})
    return times(lambda: held["w"])


class Named(dict):
    """A dict with attributes."""


@case
def an_attribute_of_a_dict():
    held = Named(a=1)
    held.w = weight()
    return times(lambda: held.w)


@case
def a_key_of_a_dict():
    held = {weight(): 1}
    return times(lambda: next(iter(held)))


@case
def a_namespace():
    held = types.SimpleNamespace(w=weight())
    return times(lambda: held.w)


@case
def a_mapping_proxy():
    held = types.MappingProxyType({"w": weight()})
    return times(lambda: held["w"])


@dataclasses.dataclass(slots=True)
class Slotted:
    """Has no ``__dict__``."""

    w: torch.Tensor


class Referred:
    __slots__ = ("__weakref__", "w")


class Private:
    __slots__ = ("__w",)

    def __init__(self):
        self.__w = weight()

    def __call__(self, x, i):
        return torch.tanh(self.__w * x)


@case
def a_slot():
    held = Slotted(weight())
    return times(lambda: held.w)


@case
def a_private_slot():
    step = Private()
    return step, [step._Private__w]


@case
def a_weak_reference():
    net = layers()
    held = weakref.ref(net)
    return (lambda x, i, keep=[net]: held()(x)), list(net.parameters())


KEPT = []  # by somebody else


def kept_elsewhere(thing):
    globals()["KE" + "PT"].append(thing)
    return thing


@case
def a_module_that_only_a_weak_reference_leads_to():
    net = kept_elsewhere(layers())
    held = weakref.ref(net)
    return (lambda x, i: held()(x)), list(net.parameters())


@case
def a_weak_proxy():
    net = kept_elsewhere(layers())
    held = weakref.proxy(net)
    return (lambda x, i: held(x)), list(net.parameters())


@case
def a_weak_proxy_of_what_cannot_be_called():
    held = weakref.proxy(kept_elsewhere(Referred()))
    held.w = weight()
    return times(lambda: held.w)


@case
def a_weak_dict():
    net = kept_elsewhere(layers())
    held = weakref.WeakValueDictionary(net=net)
    return (lambda x, i: held["net"](x)), list(net.parameters())


@case
def weak_methods():
    nets = kept_elsewhere([layers() for _ in range(3)])
    held = [weakref.WeakMethod(net.forward) for net in nets]  # which make a method when asked
    parameters = [p for net in nets for p in net.parameters()]
    return (lambda x, i: held[2]()(held[1]()(held[0]()(x)))), parameters


CONTEXT = contextvars.ContextVar("context")


@case
def a_context_variable():
    CONTEXT.set({"w": weight()})
    return times(lambda: CONTEXT.get()["w"])


class Config:
    w = weight()
    numbers = (1, 2)

    @staticmethod
    def shifted(x):
        return x + LATE["w"]

    @property
    def late(self):
        return LATE["w"]


LATE = {"w": weight()}


@case
def a_class():
    return times(lambda: Config.w)


@case
def a_class_in_a_closure():
    class Local(Config):
        pass

    return times(lambda: Local.w)


@case
def a_class_that_an_object_is_of():
    held = Config()
    return times(lambda: held.w)


@case
def a_static_method_that_names_a_global():
    return (lambda x, i: torch.tanh(Config.shifted(x))), [LATE["w"]]


@case
def a_property_that_names_a_global():
    held = Config()
    return (lambda x, i: torch.tanh(held.late * x)), [LATE["w"]]


class Members(enum.Enum):
    A = (weight(),)


@case
def a_member_of_an_enumeration():
    return times(lambda: Members.A.value[0])


@case
def an_enumeration_that_is_iterated_over():
    return times(lambda: next(iter(Members)).value[0])


weights = types.ModuleType("weights_of_a_test")
weights.w = weight()
weights.inner = types.ModuleType("weights_of_a_test.inner")
weights.inner.w = weight()
sys.modules["weights_of_a_test"] = weights


@case
def a_module_of_code():
    return times(lambda: weights.w)


@case
def a_module_of_code_inside_another():
    return times(lambda: weights.inner.w)


@case
def a_module_of_code_that_the_step_imports():
    def get():
        import weights_of_a_test

        return weights_of_a_test.w

    return times(get)


@case
def a_tensor_that_the_step_imports():
    def get():
        from weights_of_a_test import w

        return w

    return times(get)


@case
def a_module_of_code_in_an_object():
    held = types.SimpleNamespace(code=weights)
    return times(lambda: held.code.w)


class Calls:
    def _run(self, w, x, i):
        return torch.tanh(w * x)

    run = functools.partialmethod(_run, Config.w)

    @functools.cached_property
    def late(self):
        return LATE["w"]

    def method(self, x, i):
        return self.helper(x)

    def helper(self, x):
        return torch.tanh(LATE["w"] * x)


@case
def a_partial_method():
    held = Calls()
    return (lambda x, i: held.run(x, i)), [Config.w]


@case
def a_cached_property_that_names_a_global():
    held = Calls()
    return (lambda x, i: torch.tanh(held.late * x)), [LATE["w"]]


@case
def a_method_that_a_bound_method_calls():
    return Calls().method, [LATE["w"]]


class Partial(functools.partial):
    pass


@case
def a_kind_of_partial():
    w = weight()
    return Partial(lambda w, x, i: torch.tanh(w * x), w), [w]


@case
def a_method_of_a_tensor():
    w = weight()
    times_w = w.mul
    return (lambda x, i: torch.tanh(times_w(x))), [w]


@case
def an_attribute_of_a_function():
    def step(x, i):
        return torch.tanh(step.w * x)

    step.w = weight()
    return step, [step.w]


def scaled(forward, w):
    @functools.wraps(forward)
    def scale(*args):
        return w * forward(*args)

    return scale


@case
def a_decorated_forward():
    net, w = nn.Linear(8, 8), weight()
    net.forward = scaled(net.forward, w)
    return (lambda x, i: torch.tanh(net(x))), [w, *net.parameters()]


def globally_scaled(forward):
    @functools.wraps(forward)
    def scale(*args):
        return LATE["w"] * forward(*args)

    return scale


@case
def a_decorated_forward_that_names_a_global():
    net = nn.Linear(8, 8)
    net.forward = globally_scaled(net.forward)
    return (lambda x, i: torch.tanh(net(x))), [LATE["w"], *net.parameters()]


class Decorated(nn.Linear):
    forward = scaled(nn.Linear.forward, Config.w)


@case
def a_decorated_forward_of_a_class():
    net = Decorated(8, 8)
    return (lambda x, i: torch.tanh(net(x))), [Config.w, *net.parameters()]


@case
def a_decorated_call():
    class Step:
        __call__ = torch.enable_grad()(lambda self, x, i: torch.tanh(LATE["w"] * x))

    return Step(), [LATE["w"]]


@case
def a_call_that_is_inherited():
    class Base:
        def __call__(self, x, i):
            return torch.tanh(LATE["w"] * x)

    class Step(Base):
        pass

    return Step(), [LATE["w"]]


@case
def a_forward_under_autocast_that_hides_its_module():
    net = kept_elsewhere(layers())
    forward = torch.autocast("cpu", enabled=False)(net.forward)
    return (lambda x, i: forward(x)), list(net.parameters())


@case
def a_graph_module():
    return around(torch.fx.symbolic_trace(layers()))


@case
def an_exported_module():
    return around(torch.export.export(layers(), (torch.randn(4, 8),)).module())


@case
def parameters_of_a_functional_call():
    net = layers()
    held = {name: torch.randn_like(p).requires_grad_() for name, p in net.named_parameters()}
    return (lambda x, i: torch.func.functional_call(net, held, (x,))), list(held.values())


@case
def a_big_dict_of_tensors():
    held = {f"w{k}": weight() for k in range(1000)}
    return (lambda x, i: torch.tanh(held[f"w{i + 300}"] * x)), [
        held[f"w{i + 300}"] for i in range(M)
    ]


@case
def the_last_of_a_big_ordered_dict():
    held = collections.OrderedDict(enumerate(["a cat"] * 2000))
    held[2000] = weight()
    return times(lambda: held[2000])


@case
def a_big_mapping_proxy():
    held = types.MappingProxyType({k: weight() for k in range(100)})
    return times(lambda: held[50])


@case
def a_key_of_a_big_dict():
    held = {weight(): k for k in range(100)}
    return times(lambda: next(iter(held)))


@case
def a_tensor_beside_many_strings():
    held = {"a": ["a cat"] * 100_000, "w": weight()}
    return times(lambda: held["w"])


@case
def a_tensor_among_a_thousand_strings():
    held = ["a cat"] * 500 + [weight()] + ["a cat"] * 500
    return times(lambda: held[500])


@case
def one_trainable_tensor_among_many_frozen_ones():
    held = {k: torch.ones(1, requires_grad=k == 1500) for k in range(3000)}
    return times(lambda: held[1500])


@case
def a_tensor_each_in_many_functions():
    ws = [weight() for _ in range(200)]
    held = [lambda x, w=w: torch.tanh(w * x) for w in ws]
    return (lambda x, i: held[i + 100](x)), ws[100 : 100 + M]


@case
def a_tensor_in_every_record_but_the_first_ones():
    held = [{"w": weight()} if k > 50 else {"text": "a cat"} for k in range(200)]
    return times(lambda: held[150]["w"])


@case
def many_lists_of_tensors():
    held = [[weight() for _ in range(100)] for _ in range(100)]
    return times(lambda: held[50][50])


@case
def many_tensors_in_a_deque():
    held = collections.deque((k, weight()) for k in range(2000))
    return times(lambda: held[1000][1])


@case
def a_compiled_function():
    w = weight()
    f = torch.compile(lambda x: torch.tanh(w * x), backend="eager")
    return (lambda x, i: f(x)), [w]


@case
def a_compiled_method_that_hides_its_module():
    net = kept_elsewhere(layers())
    forward = torch.compile(net.forward, backend="eager")
    return (lambda x, i: forward(x)), list(net.parameters())


@case
def a_module_compiled_in_place():
    net = layers()
    net.compile(backend="eager")
    return around(net)


@case
def a_compiled_module():
    return around(torch.compile(layers(), backend="eager"))


@pytest.mark.parametrize("known", [True, False], ids=["from x", "not from x"])
@pytest.mark.parametrize("name", CASES)
def test_gradients_reach_what_a_step_keeps_in(name, known):
    torch.manual_seed(0)
    step, tensors = CASES[name]()
    x = torch.randn(4, 8, requires_grad=known)
    head = nn.Linear(8, 1)
    wanted = [*tensors, *head.parameters(), *([x] if known else [])]

    def gradients(run):
        return torch.autograd.grad(head(run(x)).sum(), wanted)

    for _ in range(3):  # TorchScript compiles in its first runs, and a loop is not yet itself
        expected = gradients(lambda x: plain(step, M, x))
    for plan in PLANS.values():
        got = gradients(CheckpointedChain(step, M, plan=plan))
        assert all(map(torch.equal, got, expected))
    assert all(g.abs().max() > 0 for g in expected)


def test_a_traced_function_cannot_hold_what_requires_a_gradient():
    w = weight()

    with pytest.raises(RuntimeError, match="Cannot insert a Tensor that requires grad"):
        torch.jit.trace(lambda x: w * x, torch.ones(8))


def test_a_frozen_torchscript_module_has_nothing_left_to_train():
    step = torch.jit.freeze(torch.jit.script(layers().eval()))

    assert find_captured(lambda x, i: step(x)).tensors == []
    x = torch.randn(4, 8, requires_grad=True)
    for _ in range(3):
        expected = torch.autograd.grad(plain(lambda x, i: step(x), M, x).sum(), x)
    got = torch.autograd.grad(CheckpointedChain(lambda x, i: step(x), M)(x).sum(), x)
    assert torch.equal(*got, *expected)


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_statistics_of_a_torchscript_module_count_each_step_once(plan):
    def statistics(run):
        torch.manual_seed(0)
        net = loaded(torch.jit.script(nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8)).train()))
        run(lambda x, i: net(x))(torch.randn(4, 8)).square().sum().backward()
        return [*net.buffers(), *(p.grad for p in net.parameters())]

    expected = statistics(lambda step: lambda x: plain(step, M, x))
    got = statistics(lambda step: CheckpointedChain(step, M, plan=plan))

    assert int(expected[2]) == M
    for g, e in zip(got, expected, strict=True):  # a scripted loop is not itself at first
        torch.testing.assert_close(g, e)


def test_a_torchscript_module_runs_again_in_the_mode_it_was_in():
    net = loaded(torch.jit.script(nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5)).train()))
    loss = CheckpointedChain(lambda x, i: net(x), M)(torch.ones(4, 8)).sum()
    net.eval()
    loss.backward()

    assert [part.training for part in net.modules()] == [False] * 3


# What no search can enter is refused


def opaque(held):
    """Return ways to hold a tensor that nothing leads to."""
    yield lambda: next(held)
    generator = (w for w in held)
    yield lambda: next(generator)
    mapped = map(torch.sin, held)
    yield lambda: next(mapped)
    names = {"get": lambda: next(held)}
    yield functools.lru_cache(lambda: names["get"]())


@pytest.mark.parametrize("known", [True, False], ids=["from x", "not from x"])
@pytest.mark.parametrize("way", range(4), ids=["iterator", "generator", "map", "cache"])
def test_a_tensor_that_no_search_reaches_is_refused(way, known):
    w = weight()
    get = [*opaque(itertools.repeat(w))][way]
    x = torch.randn(4, 8, requires_grad=known)

    for plan in PLANS.values():
        with pytest.raises(ChainError, match=r"cannot see|kept"):
            CheckpointedChain(lambda x, i: torch.tanh(get() * x), M, plan=plan)(x).sum().backward()


@pytest.mark.parametrize("known", [True, False], ids=["from x", "not from x"])
def test_the_one_record_of_many_that_holds_a_tensor_is_refused_not_left_out(known):
    w = weight()
    held = [{"text": "a cat"} for _ in range(1000)]
    held[501]["w"] = w
    step = lambda x, i: torch.tanh(held[501]["w"] * x)  # noqa: E731
    x = torch.randn(4, 8, requires_grad=known)

    assert find_captured(step).tensors == []  # by note [Big containers], 1
    with pytest.raises(CapturedTensorError, match="params="):
        CheckpointedChain(step, M)(x).sum().backward()
    CheckpointedChain(step, M, params=[w])(x).sum().backward()
    assert w.grad is not None


# It costs nothing to hold a data set


class Trainer:
    """Holds captions besides its network."""

    def __init__(self, captions):
        self.net, self.captions = nn.Linear(8, 8), captions

    def step(self, x, i):
        return self.net(x)


class Caption:
    """An object a caption, with the network at hand."""

    def __init__(self, k, net):
        self.text, self.box, self.net = f"cat {k}", [k, k, k], net


def record(k):
    return {"id": k, "text": f"cat {k}", "box": [k, k, k], "tags": ("a", "b")}


SHAPES = {
    "strings": lambda n, net: [f"cat {k}" for k in range(n)],
    "dicts": lambda n, net: [record(k) for k in range(n)],
    "a dict of dicts": lambda n, net: {k: record(k) for k in range(n)},
    "lists": lambda n, net: [[f"cat {k}"] * 100 for k in range(n // 100)],
    "long lists": lambda n, net: [[f"cat {k}"] * (n // 10) for k in range(10)],
    "objects": lambda n, net: [Caption(k, net) for k in range(n)],
    "a tuple": lambda n, net: tuple(record(k) for k in range(n)),
    "a set": lambda n, net: {f"cat {k}" for k in range(n)},
    "a deque": lambda n, net: collections.deque((k, "a cat") for k in range(n)),
    "tensors": lambda n, net: list(torch.zeros(n).unbind()),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_what_a_step_holds_besides_its_network_is_not_walked(shape, monkeypatch):
    searches = []

    class Search(chainograd.captured.search.Search):
        def __init__(self):
            super().__init__()
            searches.append(self)

    monkeypatch.setattr(chainograd.captured.find, "Search", Search)

    def looks(n):
        trainer = Trainer([])
        trainer.captions = SHAPES[shape](n, trainer.net)
        found = find_captured(trainer.step).tensors
        assert {id(t) for t in found} == {id(t) for t in trainer.net.parameters()}
        return len(searches[-1].seen)

    assert looks(100_000) <= looks(0) + 200


# Compiled by torch


def compiled_in(kind):
    net = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    compiled = functools.partial(torch.compile, backend="eager")
    if kind == "whole step":
        return compiled(lambda x, i: net(x))
    if kind == "network":
        net = compiled(net)
    elif kind == "network in place":
        net.compile(backend="eager")
    elif kind == "block":
        net[1].compile(backend="eager")
    elif kind == "block inside":
        net[1] = compiled(net[1])
    elif kind == "function":
        f = compiled(torch.tanh)
        return lambda x, i: f(net(x))
    elif kind == "method":
        net.forward = compiled(net.forward)
    elif kind == "partial":
        return functools.partial(compiled(lambda net, x, i: net(x)), net)
    elif kind == "method of a class":

        class Step:
            @compiled
            def inner(self, x):
                return net(x)

            def __call__(self, x, i):
                return self.inner(x)

        return Step()
    elif kind == "kept out":
        net.forward = torch.compiler.disable(net.forward)
    return lambda x, i: net(x)


@pytest.mark.parametrize("kind", ["whole step", "network", "network in place", "block",
                                  "block inside", "function", "method", "partial",
                                  "method of a class"])  # fmt: skip
def test_what_torch_compiles_is_noted(kind):
    assert find_captured(compiled_in(kind)).compiled


@pytest.mark.parametrize("kind", ["nothing", "kept out"])
def test_what_torch_does_not_compile_is_not_noted(kind):
    torch.compile(compiled_in("nothing"), backend="eager")  # which another step uses

    assert not find_captured(compiled_in(kind)).compiled


# Wrappers that a chain cannot be exact with


def wrapper(name, module, **members):
    """Return a module whose class only looks like one of another library."""
    return type(name, (nn.Sequential,), {"__module__": module, **members})(nn.Linear(8, 8))


def test_fsdp1_is_refused_with_the_way_out():
    net = wrapper("FullyShardedDataParallel", "torch.distributed.fsdp.fully_sharded_data_parallel")

    with pytest.raises(ChainError, match=r"FSDP1.*fully_shard\(module\)"):
        CheckpointedChain(lambda x, i: net(x), M)(torch.ones(4, 8))


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_an_engine_of_deepspeed_is_refused_in_stage_3(stage):
    net = wrapper("DeepSpeedEngine", "deepspeed.runtime.engine",
                  zero_optimization_stage=lambda self: stage)  # fmt: skip
    chain = CheckpointedChain(lambda x, i: net(x), M)
    if stage < 3:
        chain(torch.ones(4, 8)).sum().backward()
        assert net[0].weight.grad is not None
    else:
        with pytest.raises(ChainError, match=r"an engine of DeepSpeed ZeRO stage 3.*stage 1 or 2"):
            chain(torch.ones(4, 8))


def test_a_parameter_that_deepspeed_partitions_is_refused():
    net = nn.Linear(8, 8)
    net.weight.ds_id, net.weight.ds_shape = 0, torch.Size((8, 8))

    with pytest.raises(ChainError, match=r"a parameter of shape \(8, 8\) of DeepSpeed"):
        CheckpointedChain(lambda x, i: net(x), M)(torch.ones(4, 8))


@pytest.mark.parametrize("name", ["GradSampleModule", "GradSampleModuleFastGradientClipping"])
def test_a_module_that_counts_forward_passes_is_named(name):
    module = "opacus.grad_sample.grad_sample_module"
    base = type("GradSampleModule", (nn.Sequential,), {"__module__": module})
    net = base(nn.Linear(8, 8)) if name == base.__name__ else type(name, (base,), {})()
    held = nn.ModuleList([net])

    assert find_captured(lambda x, i: held(x)).counts_passes == f"{module}.GradSampleModule"
    assert find_captured(lambda x, i: layers()).counts_passes is None


@pytest.mark.parametrize("mode", ["reduce-overhead", "max-autotune", "default"])
def test_steps_that_are_replayed_as_cuda_graphs_are_refused_on_an_accelerator(mode, monkeypatch):
    compiled, whole, net = (
        torch.compile(nn.Linear(2, 2), mode=mode),
        nn.Linear(2, 2),
        nn.Linear(2, 2),
    )
    whole.compile(mode=mode)
    function = torch.compile(lambda x: torch.tanh(net(x)), mode=mode)
    for called in (compiled, whole, function):
        assert find_captured(lambda x, i, called=called: called(x)).cuda_graphs == (
            mode != "default"
        )
    monkeypatch.setattr("chainograd.engine.prepare.is_accelerator", lambda device: True)
    if mode != "default":
        with pytest.raises(ChainError, match="max-autotune-no-cudagraphs"):
            CheckpointedChain(lambda x, i: compiled(x), 2)(torch.ones(2))
