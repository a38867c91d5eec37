"""A stand-in for a file of the authors' code: decoding with suffix dropout."""

import textbook

from sampler import GaussianSampler


def _generate(cache):
    def function(model, prompt, steps=128, gen_length=128, block_length=128, temperature=0.0,
                 remasking="low_confidence", mask_id=126336, eos_id=126081, threshold=None, dropout="null", sigma=None,
                 scale=None, preserved_tokens=0, window=None, early_termination=True):
        sampler = GaussianSampler(length=gen_length, sigma=sigma, scale=scale, window=window)
        return textbook.decode(model, prompt, steps, gen_length, block_length, cache, sampler, textbook.LLaDARule), 0

    return function


generate = _generate("none")
generate_with_prefix_cache = _generate("prefix")
generate_with_dual_cache = _generate("dual")
