"""Plan the memory and time of a training run before anything is loaded or rented; docs/plan.md explains the formulas.

    known_models.py  configurations bundled with longlora
    architecture.py  model name -> configuration -> shapes and parameters
    job.py           the run in plain values
    activations.py   run -> activations of layers and loss, per token
    memory.py        run -> itemized memory of one GPU and of the host
    compute.py       run, GPU -> operations, exchanges between GPUs, and time
    savings.py       run, memory -> changes that make it fit
    plan.py          run, memory -> whether it fits, the longest context, advice
    plan_report.py   plan -> a table, or JSON

Nothing here loads torch.
"""
