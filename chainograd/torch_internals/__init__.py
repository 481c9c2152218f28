"""Everything in torch that the chain uses and that torch does not document as public.

Note [Private API of torch]
1. A name of torch is private if it begins with an underscore, or if a module on the way to it does.
   No other room of the core reads such a name; a test holds that.
2. The docstring of each entry ends with the private name (`Private:`) and with the public name that
   could replace it (`Public:`). Every entry works in torch 2.5 and later, unless it says otherwise.
3. `tests/chainograd/test_torch_internals.py` calls each entry once. A version of torch that has
   lost a private name fails there first, with the name of the entry.
4. What the engine calls several times a step (`version`, `run_backward`, `set_grad_enabled`, …) is
   a function of C itself, without a Python function around it.
"""
