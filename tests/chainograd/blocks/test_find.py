"""The blocks of a model are found, whoever wrote it and whatever wraps it."""

import random
import subprocess
import sys
from collections import Counter

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from chainograd.blocks.find import find_blocks
from tests.chainograd.blocks.models import (
    CONFIGS,
    Block,
    Declaring,
    Expert,
    Holder,
    Net,
    Stage,
    build,
)

DECLARED = {
    "UNet2DConditionModel": {"ResnetBlock2D": 8, "BasicTransformerBlock": 4},
    "AutoencoderKL": {"ResnetBlock2D": 10},
    "FluxTransformer2DModel": {"FluxTransformerBlock": 2, "FluxSingleTransformerBlock": 3},
    "SD3Transformer2DModel": {"JointTransformerBlock": 3},
    "PixArtTransformer2DModel": {"BasicTransformerBlock": 2},
    "WanTransformer3DModel": {"WanTransformerBlock": 2},
    "QwenImageTransformer2DModel": {"QwenImageTransformerBlock": 2},
    "HunyuanVideoTransformer3DModel": {
        "HunyuanVideoTransformerBlock": 2, "HunyuanVideoSingleTransformerBlock": 2,
        "HunyuanVideoTokenRefiner": 1,
    },
}  # fmt: skip
IN_LISTS = {
    "ControlNetModel": {"ResnetBlock2D": 4, "BasicTransformerBlock": 2},
    "UNet2DModel": {"ResnetBlock2D": 8, "Attention": 4},
    "AutoencoderKLWan": {"WanResidualBlock": 16, "WanResample": 6},
}


@pytest.fixture(scope="module")
def diffusers():
    return pytest.importorskip("diffusers")


def classes(found):
    return Counter(type(module).__name__ for module in found.modules)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_blocks_of_models_of_diffusers_are_found_without_the_glue(diffusers, name):
    model = build(diffusers, name)

    found = find_blocks([model], "auto")

    assert classes(found) == {**DECLARED, **IN_LISTS}[name]
    assert [model.get_submodule(path) for path in found.names] == list(found.modules)
    assert (name in DECLARED) == (found.how == f"declared by {name}")


def test_what_was_found_reads_as_one_line(diffusers):
    flux = build(diffusers, "FluxTransformer2DModel")

    assert str(find_blocks([flux], "auto")) == (
        "5 blocks: 2 FluxTransformerBlock, 3 FluxSingleTransformerBlock "
        "(declared by FluxTransformer2DModel)"
    )
    assert str(find_blocks([flux.proj_out], "auto")) == "no blocks"
    assert str(find_blocks([flux], [flux.proj_out])) == "1 block: 1 Linear (named by `blocks`)"


def test_the_order_of_roots_and_roots_inside_roots_do_not_matter(diffusers):
    unet = build(diffusers, "UNet2DConditionModel")
    roots = list(unet.modules())
    random.Random(0).shuffle(roots)

    assert find_blocks(roots, "auto") == find_blocks([unet], "auto")


def test_a_text_encoder_and_a_decoder_beside_the_denoiser_have_blocks_too(diffusers):
    transformers = pytest.importorskip("transformers")
    config = transformers.CLIPTextConfig(
        hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2
    )
    with torch.device("meta"):
        text = transformers.CLIPTextModel(config)
    roots = [text, build(diffusers, "PixArtTransformer2DModel"), build(diffusers, "AutoencoderKL")]

    found = find_blocks(roots, "auto")

    expected = {"CLIPEncoderLayer": 2, "BasicTransformerBlock": 2, "ResnetBlock2D": 10}
    assert classes(found) == expected
    assert found.names[0].startswith("CLIPTextModel.")
    assert len(set(found.names)) == len(found.names)


@pytest.mark.parametrize("name", ["FluxTransformer2DModel", "UNet2DConditionModel"])
@pytest.mark.parametrize("wrapped", [True, False])
def test_lora_neither_hides_blocks_nor_adds_any(diffusers, name, wrapped):
    peft = pytest.importorskip("peft")
    model = build(diffusers, name)
    blocks = find_blocks([model], "auto").modules
    config = peft.LoraConfig(r=2, target_modules=["to_q", "to_k", "to_v", "to_out.0"])

    if wrapped:
        root = peft.get_peft_model(model, config)
    else:
        root = model
        model.add_adapter(config)

    assert any("lora_A" in path for path, _ in model.named_modules())
    assert find_blocks([root], "auto").modules == blocks


# Wrappers and compiled modules


@pytest.mark.parametrize("kind", [Net, Declaring])
def test_a_compiled_block_is_a_block_as_it_is_called(kind):
    net = kind()
    net.blocks[0] = torch.compile(net.blocks[0], backend="eager")
    net.blocks[1].compile(backend="eager")

    found = find_blocks([net], "auto")

    assert found.modules == tuple(net.blocks)
    assert str(found).startswith("3 blocks: 3 Block (")


def whole(net):
    return torch.compile(net, backend="eager")


def in_place(net):
    net.compile(backend="eager")
    return net


def forward_alone(net):
    net.forward = torch.compile(net.forward, backend="eager")
    return net


def traced(net):
    return torch.jit.trace(net, torch.ones(1, 4))


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize("kind", [Net, Declaring])
@pytest.mark.parametrize("compiled", [whole, in_place, forward_alone, traced])
def test_a_model_compiled_as_a_whole_has_no_blocks_inside(kind, compiled):
    root = compiled(kind())

    assert find_blocks([root], "auto").modules == ()
    # A search may have met the modules inside, too.
    assert find_blocks([*root.modules()][::-1], "auto").modules == ()


def test_a_model_that_is_kept_from_the_compiler_has_its_blocks():
    net = Net()

    assert find_blocks([torch.compiler.disable(net)], "auto").modules == tuple(net.blocks)


def test_a_module_around_the_model_does_not_hide_its_blocks():
    net, declaring = Net(), Declaring()

    found = find_blocks([Holder(module=Holder(net=net, declaring=declaring))], "auto")

    assert set(found.modules) == {*net.blocks, *declaring.blocks}
    assert found.how == "declared by Declaring; in lists of Holder"


@pytest.mark.parametrize("kind", [Net, Declaring])
def test_a_class_that_torch_makes_around_a_block_s_class_does_not_hide_it(kind):
    net = kind()
    net.blocks[0].scale = nn.Parameter(torch.ones(1))
    parametrize.register_parametrization(net.blocks[0], "scale", nn.Identity())

    found = find_blocks([net], "auto")

    assert type(net.blocks[0]) is not Block
    assert found.modules == tuple(net.blocks)
    assert str(found).startswith("3 blocks: 3 Block (")


# Declared blocks


def declaring(names, **modules):
    root = Holder(**modules)
    root._repeated_blocks = names
    return root


@pytest.mark.parametrize("names", [None, [], (), AttributeError(), ["Other"]])
def test_a_declaration_that_names_no_module_counts_for_nothing(names):
    net = declaring(names, net=Net())

    found = find_blocks([net], "auto")

    assert found.modules == tuple(net.net.blocks)
    assert found.how == "in lists of Holder"


def test_of_declared_modules_inside_one_another_the_inner_ones_are_blocks_if_they_are_most_of_it():
    net = declaring({"Stage", "Block", "LayerNorm"}, first=Stage(4), second=Stage(8))

    assert find_blocks([net], "auto").modules == (*net.first.blocks, *net.second.blocks)


def test_what_a_declaration_leaves_out_is_looked_for_in_lists():
    net = declaring({"Stage"}, stage=Stage(4), net=Net(8))

    found = find_blocks([net], "auto")

    assert set(found.modules) == {net.stage, *net.net.blocks}
    assert found.how == "declared by Holder; in lists of Holder"


def test_a_declared_class_that_occurs_once_is_glue_if_it_is_small_or_embeds():
    class PatchEmbed(Block):
        pass

    class OutputNorm(Expert):
        pass

    class SmallBlock(Expert):
        pass

    names = {"Block", "PatchEmbed", "OutputNorm", "SmallBlock"}
    net = declaring(names, net=Net(), patch=PatchEmbed(), norm=OutputNorm(1), block=SmallBlock(1))

    assert find_blocks([net], "auto").modules == (*net.net.blocks, net.block)


# Lists


def test_the_blocks_of_a_model_that_declares_nothing_are_in_its_lists():
    net = Net()

    found = find_blocks([net], "auto")

    assert found.modules == tuple(net.blocks)
    assert found.names == ("blocks.0", "blocks.1", "blocks.2")
    assert str(found) == "3 blocks: 3 Block (in lists of Net)"


def test_the_layers_of_torch_s_transformer_are_blocks():
    net = nn.Transformer(8, 2, 2, 3, batch_first=True)

    found = find_blocks([net], "auto")

    assert found.modules == (*net.encoder.layers, *net.decoder.layers)


@pytest.mark.parametrize(
    "net",
    [
        nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU(), nn.Conv2d(1, 1, 1)),
        nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1)),
        Net(num_blocks=1).heads,
        nn.ModuleList([nn.Dropout(), nn.Dropout()]),
        nn.Linear(1, 1),
    ],
)
def test_layers_of_torch_alone_are_no_blocks(net):
    assert find_blocks([net], "auto").modules == ()


def test_most_modules_of_a_list_have_the_same_shapes_if_they_are_blocks():
    stages = [Stage(4), Stage(4), Stage(4), Stage(8), Stage(16)]

    assert find_blocks([nn.Sequential(*stages)], "auto").modules == tuple(stages)
    found = find_blocks([nn.Sequential(*stages[1:])], "auto")
    assert found.modules == tuple(block for stage in stages[1:] for block in stage.blocks)


def test_stages_of_different_shapes_are_no_blocks_but_what_is_inside_and_in_the_middle():
    net = Holder(down=nn.ModuleList([Stage(4), Stage(8)]), middle=Block(16))

    found = find_blocks([net], "auto")

    assert found.modules == (*net.down[0].blocks, *net.down[1].blocks, net.middle)


def test_lists_that_nobody_calls_are_looked_into():
    rows = nn.ModuleList(nn.ModuleList([Block(), Stage(4)]) for _ in range(2))
    levels = nn.ModuleList(nn.Module() for _ in range(2))
    for width, level in zip((4, 8), levels, strict=True):
        level.blocks = nn.ModuleList([Expert(width)])

    assert set(find_blocks([rows], "auto").modules) == {m for row in rows for m in row}
    assert find_blocks([levels], "auto").modules == (levels[0].blocks[0], levels[1].blocks[0])


def test_a_list_with_less_than_a_hundredth_of_the_parameters_holds_no_blocks():
    small = nn.ModuleList(Expert(1) for _ in range(2))

    assert find_blocks([Holder(small=small)], "auto").modules == tuple(small)
    assert find_blocks([Holder(small=small, head=nn.Linear(100, 100))], "auto").modules == ()


def test_a_block_that_stands_in_a_list_several_times_is_one():
    first, second = Block(), Block()
    net = nn.Sequential(first, second, first, second)

    assert find_blocks([net, net], "auto").modules == (first, second)


# Chosen blocks


def test_chosen_blocks_are_those_named_each_once():
    net = Net()

    found = find_blocks([net], [net.blocks[2], net.enter, net.blocks[2]])

    assert found.modules == (net.blocks[2], net.enter)
    assert found.names == ("blocks.2", "enter")
    assert find_blocks([net], net.blocks).modules == tuple(net.blocks)


def test_no_blocks_are_found_if_none_are_wanted():
    found = find_blocks([Net()], None)

    assert (found.modules, found.names, str(found)) == ((), (), "no blocks")


def test_a_block_that_the_step_does_not_reach_is_refused():
    net = Net()

    with pytest.raises(ValueError, match=r"names a Block that the step does not reach.*'auto'"):
        find_blocks([net], [net.blocks[0], Block()])


def test_a_block_inside_a_compiled_model_is_refused():
    net = Net()

    with pytest.raises(ValueError, match=r"a Block inside a module that torch compiled.*compile\("):
        find_blocks([torch.compile(net, backend="eager")], net.blocks)


def test_a_block_inside_a_block_is_refused():
    net = Net()

    with pytest.raises(ValueError, match="names a Block and a LayerNorm inside it"):
        find_blocks([net], [net.blocks[0].norm, net.blocks[0]])


def test_what_is_no_module_is_refused():
    with pytest.raises(TypeError, match="`blocks` must hold modules; entry 0 is a str"):
        find_blocks([Net()], ["blocks.0"])


def test_finding_blocks_imports_neither_the_models_libraries_nor_torch_s_compiler():
    code = "import sys, chainograd.blocks.find; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True
    ).stdout.split()

    assert not {"diffusers", "transformers", "peft", "torch._dynamo"} & set(loaded)
