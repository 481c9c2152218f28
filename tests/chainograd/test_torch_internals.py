"""Each private name of torch that the chain uses is there and does what its entry says."""

import ast
import re
import subprocess
import sys
import types
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import get_gradient_edge
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode
from torch.testing._internal.two_tensor import TwoTensor

from chainograd import torch_internals
from chainograd.torch_internals import (
    attention,
    autograd,
    compiler,
    fsdp,
    modes,
    modules,
    pytree,
    saved_tensors,
    settings,
    tensors,
    torchscript,
    transforms,
)

FILES = sorted(Path(torch_internals.__file__).parent.glob("[a-z]*.py"))


def documented(path):
    """Return the public names of a module, with their docstrings."""
    body = ast.parse(path.read_text()).body
    found = {}
    for node, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found[node.name] = ast.get_docstring(node)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            text = after.value if isinstance(after, ast.Expr) else None
            found[target.id] = text.value if isinstance(text, ast.Constant) else None
    return {name: text for name, text in found.items() if not name.startswith("_")}


NAMES = [(path.stem, name, text) for path in FILES for name, text in documented(path).items()]
ALIASES = {"Method", "Hooks"}  # names of types that are not torch's


@pytest.mark.parametrize(("module", "name", "text"), NAMES, ids=[f"{m}.{n}" for m, n, _ in NAMES])
def test_an_entry_names_what_is_private_and_its_public_successor_and_is_tested(module, name, text):
    if name not in ALIASES:
        assert text is not None
        assert re.search(r"(?m)^Private: ", text)
        assert re.search(r"\bPublic:\s", text)
        assert f"{module}.{name}" in Path(__file__).read_text()


def test_the_room_imports_nothing_of_chainograd():
    for path in FILES:
        assert "chainograd" not in path.read_text().replace("tests/chainograd", "")


# Tensors


def test_a_version_counts_changes_in_place():
    x = torch.ones(2)
    before = tensors.version(x)
    x += 1

    assert tensors.version(x) == before + 1 == tensors.version_or_zero(x)


def test_a_tensor_of_inference_mode_has_no_version():
    with torch.inference_mode():
        x = torch.ones(2)

    with pytest.raises(RuntimeError, match="version counter"):
        tensors.version(x)
    assert tensors.version_or_zero(x) == 0


def test_a_change_can_be_left_uncounted():
    x = torch.ones(2)
    before = tensors.version(x)
    with tensors.preserve_version(x):
        x += 1

    assert tensors.version(x) == before
    assert x.tolist() == [2, 2]


def test_a_storage_has_one_id_for_all_its_views():
    x, y = torch.ones(2), torch.ones(2)
    of_x, of_view, of_y = (tensors.storage_id(t.untyped_storage()) for t in (x, x[1:], y))

    assert of_x == of_view != of_y


def test_a_wrapper_subclass_is_told_from_a_plain_tensor():
    wrapper = TwoTensor(torch.ones(2), torch.ones(2))

    assert tensors.is_wrapper_subclass(wrapper)
    assert not tensors.is_wrapper_subclass(torch.ones(2))
    assert tensors.has_own_dispatch(TwoTensor)
    assert not tensors.has_own_dispatch(nn.Parameter)


def test_a_jagged_tensor_caches_its_lengths_under_these_names():
    x = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged)
    before = set(x.__tensor_flatten__()[0])
    torch.nested.to_padded_tensor(x, 0.0)  # computes the lengths

    assert set(x.__tensor_flatten__()[0]) - before <= set(tensors.CACHED_LENGTHS)
    assert all(hasattr(x, name) for name in tensors.CACHED_LENGTHS)


def test_a_negated_view_shares_memory():
    x = torch.ones(2)
    y = tensors.negated(x)

    assert y.is_neg()
    assert y.tolist() == [-1, -1]
    assert y.data_ptr() == x.data_ptr()


def test_a_coo_tensor_is_taken_apart_before_it_is_coalesced():
    x = torch.sparse_coo_tensor([[0, 0]], [1.0, 2.0], (3,), check_invariants=True)
    indices, values = tensors.coo_parts(x)

    assert not x.is_coalesced()
    assert indices.tolist() == [[0, 0]]
    assert values.tolist() == [1, 2]


def test_the_module_of_apples_gpu_has_a_default_generator():
    assert callable(torch.mps._get_default_mps_generator)
    assert tensors.mps_generator(types.SimpleNamespace(_get_default_mps_generator=lambda: 1)) == 1


# Autograd


def test_gradients_are_those_of_torch_autograd_grad():
    x, unused = torch.ones(2, requires_grad=True), torch.ones(1, requires_grad=True)
    y, g = x.sin(), torch.tensor([1.0, 2.0])
    got = autograd.run_backward((y,), (g,), True, False, (x, unused))

    assert torch.equal(got[0], torch.autograd.grad(y, x, g)[0])
    assert got[1] is None
    assert x.grad is None


def test_recording_is_turned_off_and_on_and_modes_see_it():
    seen = []

    class Mode(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            seen.append(func.__name__)
            return func(*args, **(kwargs or {}))

    autograd.set_grad_enabled(False)
    assert not torch.is_grad_enabled()
    autograd.set_grad_enabled(True)
    assert torch.is_grad_enabled()
    with Mode(), torch.no_grad():
        pass
    assert autograd.SET_GRAD_ENABLED in seen


def test_a_backward_pass_has_an_id_and_an_end_and_tells_whether_it_keeps_its_graph():
    seen = []

    def hook(g):
        seen.append((autograd.backward_id(), bool(autograd.keeps_graph())))
        autograd.call_after_backward(lambda: seen.append("over"))

    x = torch.ones(2, requires_grad=True)
    x.register_hook(hook)
    for keep in (True, False):
        x.sin().sum().backward(retain_graph=keep)

    (first, kept), over, (second, freed), _ = seen
    assert autograd.backward_id() == -1
    assert -1 != first != second != -1
    assert (kept, over, freed) == (True, "over", False)


def test_a_pass_tells_whether_it_fills_the_grad_of_a_leaf():
    x, other = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    seen = []
    y = x * 2
    y.register_hook(
        lambda g: seen.append([autograd.fills_grad(get_gradient_edge(t).node) for t in (x, other)])
    )
    y.sum().backward(inputs=[x], retain_graph=True)
    torch.autograd.grad(y.sum(), x)

    assert seen == [[True, False], [False, False]]


def test_a_leaf_is_reached_by_a_node_that_accumulates():
    x = torch.ones(2, requires_grad=True)

    assert type(x.sin().grad_fn.next_functions[0][0]) is autograd.AccumulateGrad


def test_hooks_of_a_tensor_are_in_a_table_that_can_be_replaced():
    x, seen = torch.ones(2, requires_grad=True), []
    y = x.sin()
    assert autograd.hooks_of(x) is None
    x.register_hook(seen.append)
    assert list(autograd.hooks_of(x).values()) == [seen.append]

    table = OrderedDict()
    autograd.replace_hooks(y, table)
    y.register_hook(lambda g: seen.append("y"))
    assert len(table) == 1
    y.sum().backward()
    assert seen[0] == "y"


def test_hooks_after_accumulation_are_found():
    x = torch.ones(2, requires_grad=True)
    assert autograd.accumulation_hooks(x) == {}
    x.register_post_accumulate_grad_hook(print)

    assert list(autograd.accumulation_hooks(x).values()) == [print]


def test_the_node_of_a_custom_function_leads_to_the_function():
    class Twice(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return 2 * x

        @staticmethod
        def backward(ctx, g):
            return 2 * g

    y = Twice.apply(torch.ones(1, requires_grad=True))

    assert autograd.forward_class(type(y.grad_fn)) is Twice


# Saved tensors


def test_hooks_on_all_saved_tensors_are_noticed():
    assert not saved_tensors.saved_tensors_are_hooked()
    with torch.autograd.graph.save_on_cpu():
        assert saved_tensors.saved_tensors_are_hooked()
    with torch.autograd.graph.disable_saved_tensors_hooks("no"):
        assert not saved_tensors.saved_tensors_are_hooked()
        with pytest.raises(RuntimeError, match="no"), torch.autograd.graph.save_on_cpu():
            pass


def test_a_saved_tensor_is_replaced_by_name():
    x = torch.ones(1, 1, 3, requires_grad=True)
    node = F.conv1d(x, torch.ones(1, 1, 1)).grad_fn
    default = torch.zeros(1)

    assert type(node).__name__ == "ConvolutionBackward0"
    assert saved_tensors.saves(node, "input")
    assert not saved_tensors.saves(node, "nothing")
    assert saved_tensors.saved_tensor(node, "nothing", default) is default
    saved_tensors.hook_saved(node, "input", lambda t: tuple(t.shape), torch.zeros)
    assert torch.equal(saved_tensors.saved_tensor(node, "input", default), torch.zeros(1, 1, 3))
    with pytest.raises(RuntimeError, match="have already been set"):
        saved_tensors.hook_saved(node, "input", lambda t: t, lambda t: t)


@pytest.mark.parametrize(
    ("layer", "name", "saved"),
    [(F.silu, "SiluBackward0", "self"), (F.gelu, "GeluBackward0", "self"),
     (F.relu, "ReluBackward0", "result")],
)  # fmt: skip
def test_activations_save_under_these_names(layer, name, saved):
    node = layer(torch.ones(2, requires_grad=True)).grad_fn

    assert type(node).__name__ == name
    assert saved_tensors.saves(node, saved)


def test_numbers_that_a_node_saves_are_found_without_its_tensors():
    node = torch.ones(2, requires_grad=True).lerp(torch.zeros(2), 0.25).grad_fn

    assert [getattr(node, n) for n in saved_tensors.saved_numbers(type(node))] == [0.25]


# Transforms


def test_transforms_and_the_tensors_inside_them_are_noticed():
    def inside(x):
        assert transforms.transforms_active()
        assert transforms.is_wrapped(x)
        return x.sum()

    assert not transforms.transforms_active()
    assert not transforms.is_wrapped(torch.ones(2))
    torch.func.grad(inside)(torch.ones(2))


def test_a_dual_level_is_noticed():
    assert not transforms.forward_ad_active()
    with torch.autograd.forward_ad.dual_level():
        assert transforms.forward_ad_active()


def test_a_batch_of_gradients_is_noticed_and_random_numbers_can_be_drawn_beside_it():
    x, seen = torch.ones(2, requires_grad=True), []

    def hook(g):
        with transforms.outside_vmap():
            torch.rand(1)
        with pytest.raises(RuntimeError, match="random"):
            torch.rand(1)
        seen.append(transforms.is_batch_of_gradients(g))

    x.register_hook(hook)
    y = x.sin()
    torch.autograd.grad(y, x, torch.eye(2), is_grads_batched=True)

    assert seen == [True]
    assert not transforms.is_batch_of_gradients(x)


# Modes


def test_fake_tensors_and_the_mode_that_makes_them_are_noticed():
    assert not modes.makes_fakes()
    with FakeTensorMode():
        assert modes.makes_fakes()
        assert modes.is_fake(torch.ones(2))
        with modes.no_dispatch():
            assert not modes.is_fake(torch.ones(2))
    assert not modes.is_fake(torch.ones(2))


def test_dispatch_modes_are_counted():
    class Mode(modes.DispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(func)
            return func(*args, **(kwargs or {}))

    seen = []
    assert modes.dispatch_modes() == 0
    with Mode():
        assert modes.dispatch_modes() == 1
        torch.ones(2)
    assert seen


def test_a_light_mode_sees_operations_without_an_import_of_the_compiler():
    code = """if True:
        import sys, torch
        from chainograd.torch_internals import modes
        class Mode(modes.LightDispatchMode):
            def __torch_dispatch__(self, func, types, args=(), kwargs=None):
                return func(*args, **(kwargs or {})) + 1
        with Mode():
            assert torch.ones(()) == 2
        assert "torch._dynamo" not in sys.modules
    """
    subprocess.run([sys.executable, "-c", code], check=True)  # uses modes.LightDispatchMode


def test_the_default_device_and_its_mode_are_found():
    assert modes.default_device() is None
    with torch.device("meta"):
        assert modes.default_device() == torch.device("meta")
        assert isinstance(modes.function_modes()[-1], modes.DeviceContext)
    assert modes.function_modes() == []


# Attention


def test_attention_on_a_cpu_runs_a_fused_kernel():
    class Mode(modes.LightDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(func)
            return func(*args, **(kwargs or {}))

    seen = []
    x = torch.ones(1, 2, 8, 4)
    with Mode():
        F.scaled_dot_product_attention(x, x, x)
    assert [kernel in attention.FUSED_KERNELS for kernel in seen] == [True]


def test_kernels_of_all_backends_are_fused_kernels():
    backends = {str(kernel).split(".")[1] for kernel in attention.FUSED_KERNELS}
    parts = ("flash", "for_cpu", "efficient", "cudnn", "overrideable")
    assert all(any(part in name for name in backends) for part in parts)


def test_arguments_of_a_kernel_have_names():
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
    named = attention.named_arguments(flash, (1, 2, 3, 0.5), {"scale": 4})
    assert named == {"query": 1, "key": 2, "value": 3, "dropout_p": 0.5, "scale": 4}


def test_some_kernels_may_leave_out_the_log_sum_exp():
    assert attention.LOG_SUM_EXP == "compute_log_sumexp"
    may = {
        kernel for kernel in attention.FUSED_KERNELS if attention.may_leave_out_log_sum_exp(kernel)
    }
    assert torch.ops.aten._scaled_dot_product_efficient_attention.default in may
    assert torch.ops.aten._scaled_dot_product_cudnn_attention.default in may
    assert torch.ops.aten._scaled_dot_product_flash_attention.default not in may


# Settings


def test_autocast_of_any_device_is_noticed():
    assert not settings.any_autocast()
    with torch.autocast("cpu"):
        assert settings.any_autocast()


@pytest.mark.parametrize("setting", settings.SETTINGS, ids=range(len(settings.SETTINGS)))
def test_a_setting_can_be_written_as_it_was_read(setting):
    assert isinstance(setting, settings.Setting)
    before = setting.read()
    setting.write(before)

    assert setting.read() == before


@pytest.mark.parametrize(
    "change",
    [
        lambda: torch.set_default_dtype(torch.float64),
        lambda: torch.use_deterministic_algorithms(True, warn_only=True),
        lambda: torch.set_float32_matmul_precision("medium"),
        lambda: setattr(torch.backends.cudnn, "benchmark", True),
        lambda: torch.backends.mkldnn.set_flags(False),
        lambda: torch.backends.cuda.enable_math_sdp(False),
        lambda: torch.backends.mha.set_fastpath_enabled(False),
    ],
)
def test_a_change_of_a_setting_is_seen_and_undone(change):
    before = [setting.read() for setting in settings.SETTINGS]
    try:
        change()
        assert [setting.read() for setting in settings.SETTINGS] != before
    finally:
        for setting, value in zip(settings.SETTINGS, before, strict=True):
            setting.write(value)
    assert [setting.read() for setting in settings.SETTINGS] == before


def test_cached_parametrizations_are_noticed_and_turned_off():
    layer, calls = nn.Linear(1, 1), []

    class Noted(nn.Module):
        def forward(self, w):
            calls.append(w)
            return 2 * w

    parametrize.register_parametrization(layer, "weight", Noted())
    calls.clear()
    assert not settings.caches_parametrizations()
    with parametrize.cached():
        assert settings.caches_parametrizations()
        assert layer.weight is layer.weight
        with settings.uncached_parametrizations():
            assert not settings.caches_parametrizations()
            assert layer.weight is not layer.weight
        assert layer.weight is layer.weight
    assert len(calls) == 3


# Modules


def test_tables_of_a_module_are_its_own():
    norm = nn.BatchNorm1d(2)
    whole = nn.Sequential(norm)
    modules.buffers_of(norm)["running_mean"] = torch.ones(2)

    assert norm.running_mean.tolist() == [1, 1]
    assert modules.modules_of(whole) == {"0": norm}


@pytest.mark.parametrize("kind", [nn.BatchNorm1d, nn.BatchNorm2d, nn.InstanceNorm1d,
                                  nn.SyncBatchNorm])  # fmt: skip
def test_norms_with_statistics_have_one_base(kind):
    assert issubclass(kind, modules.Norm)
    assert not issubclass(nn.GroupNorm, modules.Norm)


def test_without_fsdp_nothing_is_sharded():
    assert not isinstance(nn.Linear(1, 1), fsdp.sharded_classes())


def test_objects_of_fsdp_are_told_by_these_attributes():
    shard, whole = torch.ones(1), torch.ones(2)
    parameter = types.SimpleNamespace(sharded_param=shard, _unsharded_param=whole)
    group = types.SimpleNamespace(fsdp_params=[parameter])
    states = (
        types.SimpleNamespace(_fsdp_param_groups=[group]),
        types.SimpleNamespace(_fsdp_param_group=group),
    )
    for state in states:
        module = types.SimpleNamespace(_get_fsdp_state=lambda state=state: state)
        assert list(fsdp.sharded_parameters(module)) == [parameter]
    assert fsdp.shard(parameter) is shard
    assert fsdp.gathered_tensor(parameter) is whole
    assert fsdp.gathered_tensor(object()) is None


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_a_scripted_module_is_opened():
    layer = nn.Linear(1, 1)
    scripted = torch.jit.script(layer)

    assert any(each is scripted.weight for each in torchscript.scripted_contents(scripted))
    assert isinstance(scripted.forward, torchscript.ScriptMethod)
    (owner,) = torchscript.scripted_contents(scripted.forward)
    assert isinstance(owner, torch.jit.ScriptModule)
    assert torchscript.scripted_contents(layer) == []


# torch.compile


def test_an_eager_method_keeps_its_result_and_is_marked():
    @compiler.eager
    def method(x):
        return x + 1

    assert method(1) == 2
    assert not compiler.is_compiled(method)


def test_the_attribute_that_a_call_runs_is_forward_or_what_compile_set():
    layer = nn.Linear(1, 1)
    before = modules.called_attribute(layer)

    layer.compile(backend="eager")

    assert before == "forward"
    assert compiler.is_compiled(getattr(layer, modules.called_attribute(layer)))


def test_a_compiled_function_and_module_are_told():
    layer = nn.Linear(1, 1)
    function = torch.compile(F.relu, backend="eager")
    module = torch.compile(layer, backend="eager")

    assert compiler.is_compiled(function)
    assert not compiler.is_compiled(test_a_compiled_function_and_module_are_told)
    assert not compiler.is_compiled(torch.compiler.disable(lambda x: x))
    assert not compiler.uses_cuda_graphs(function)
    assert modules.modules_of(module)[compiler.INNER_MODULE] is layer
    assert type(module).__module__.startswith(compiler.INTERNAL_MODULES)


@pytest.mark.parametrize("mode", ["reduce-overhead", "default"])
def test_a_mode_with_cuda_graphs_is_told(mode):
    compiled = torch.compile(F.relu, mode=mode)

    assert compiler.uses_cuda_graphs(compiled) == (mode == "reduce-overhead")


# Trees


def test_a_tree_is_flattened_and_put_together():
    tree = {"a": [1, 2], "b": (3.0,)}
    leaves, spec = pytree.tree_flatten(tree)

    assert leaves == pytree.tree_leaves(tree) == [1, 2, 3.0]
    assert isinstance(spec, pytree.TreeSpec)
    assert spec == pytree.tree_structure(tree)
    assert pytree.tree_unflatten(leaves, spec) == tree
    assert pytree.tree_map(lambda x: x + 1, tree) == {"a": [2, 3], "b": (4.0,)}
    assert pytree.tree_map_only(float, lambda x: 0, tree) == {"a": [1, 2], "b": (0,)}
    paths, _ = pytree.tree_flatten_with_path(tree)
    assert [pytree.keystr(path) for path, _ in paths] == ["['a'][0]", "['a'][1]", "['b'][0]"]


def test_nodes_of_a_graph_are_numbered_in_the_order_in_which_they_are_made():
    x = torch.ones(1, requires_grad=True)
    first = x * 2
    between = autograd.next_sequence_number()
    second = first * 2

    assert autograd.sequence_number(first.grad_fn) < between
    assert autograd.sequence_number(second.grad_fn) >= between
