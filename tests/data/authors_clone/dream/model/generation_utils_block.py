"""A stand-in for a file of the authors' code: decoding Dream, bound to a model that has no such functions."""

from types import SimpleNamespace

import textbook

from sampler import GaussianSampler


class DreamGenerationMixin:
    def diffusion_generate(self, inputs=None, generation_config=None, dropout="null", sigma=None, scale=None,
                           preserved_tokens=None, window=None, early_termination=True, eos=None, **keywords):
        length = keywords["max_new_tokens"]
        sampler = None
        if dropout != "null":
            sampler = GaussianSampler(length=length, sigma=sigma, scale=scale, window=window)
        return self._sample(inputs, length, sampler, **keywords), 0

    def _sample(self, inputs, length, sampler, steps, block_length, use_cache, dual_cache, alg, **others):
        assert alg == "entropy"
        cache = "dual" if dual_cache else "prefix" if use_cache else "none"
        rule = textbook.DreamRule
        sequences = textbook.decode(self, inputs, steps, length, block_length, cache, sampler, rule)
        return SimpleNamespace(sequences=sequences)
