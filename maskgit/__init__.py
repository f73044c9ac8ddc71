"""MaskGIT: VQGAN tokenizer, masked visual token modeling, iterative decoding, inpainting.

    from maskgit import MaskGIT
    model = MaskGIT.from_pretrained("embedded")
"""
