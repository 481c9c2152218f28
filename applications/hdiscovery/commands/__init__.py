"""The commands, a module each, and the names that they had before.

A command's module has three things:

* ``Options``: a dataclass. Its fields are the command's options, and its docstring is the help.
* ``EXAMPLES``: command lines that the help ends with.
* ``run(options)``: calls the Python API and prints what came of it.

It may have ``RENAMED``, older spellings of options with their names of today. A command whose
options are a run's fields has ``read(words)`` in place of `Options`, and ``run`` takes what that
returns.

The overview needs none of the modules, so ``hdiscovery --help`` imports no library.
"""

COMMANDS: dict[str, dict[str, str]] = {
    "start here": {
        "demo": "train, evaluate and show, in minutes",
    },
    "find directions": {
        "train": "discover directions in a diffusion model",
        "tstop": "let a diffusion model choose t_stop",
        "ablate": "train variants of a recipe and measure them alike",
        "refit": "fit a new reconstructor to the pairs in a run's buffer",
    },
    "measure directions": {
        "evaluate": "measure and rank a run's directions, and baselines by the same measures",
        "properties": "measure how alike direct, mean and global directions are",
        "mos": "ask people: make a study's pages, score its answers",
    },
    "use directions": {
        "gallery": "write a page that shows the directions",
        "edit": "edit images along directions",
        "invert": "find the noise that images come from",
        "publish": "name a run's directions, and write them into a small folder or one file",
    },
    "diffusion models": {
        "convert": "inspect a model's file or folder, and turn it into another format",
        "pretrain": "train a diffusion model on MNIST",
        "judge": "ask a classifier of real digits about a model's samples",
    },
}
NAMES = tuple(name for group in COMMANDS.values() for name in group)
