"""The commands, a module each: ``HELP``, ``EXAMPLES``, ``add_options(parser)``, ``run(options)``.

What a command alone needs is imported in its ``run``, so that ``--help`` does not wait for it.
"""

COMMANDS = (
    "train", "evaluate", "gallery", "demo", "pretrain", "judge", "convert", "export", "mos",
    "inspect", "rank", "tstop",
    "ablate", "edit", "invert", "directions", "label", "properties", "publish", "refit",
)  # fmt: skip
