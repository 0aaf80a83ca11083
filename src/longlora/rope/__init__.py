"""Rescale rotary positions to a longer context, by changing a model's `rope_parameters`.

`methods.py` has one function for each kind of scaling; `extend.py` determines the present context and applies one of
them; `other_readers.py` translates the result to transformers 4's keys and lists the readers that misread it. Plain
dictionaries in and out: nothing here needs a model or torch.
"""
