"""Operators for masked generative transformers, useful to other MaskGIT code by themselves. Needs only PyTorch.

    from maskgit_kernels.attention import attention, attention_packed
    from maskgit_kernels.decode_step import decode_step
    from maskgit_kernels.head_sample import head_sample
    from maskgit_kernels.head_loss import head_loss

Nothing is imported here, so that an operator's package and its function can have the same name.
"""
