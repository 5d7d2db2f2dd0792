"""The same kernel configurations in NxD Inference's Qwen3-MoE, for `device: neuron`.

`runtime.load` gives the interface of `model.runtime.load`; `application.application_class` the
class that NxD Inference compiles and loads. `nxd` is the only module that imports NxD Inference;
`attention`, `moe` and `modeling` need it, all others can be imported anywhere. docs/trn2.md.
"""
