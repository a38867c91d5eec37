"""A stand-in for the sampler of the authors' code: suffix positions are kept at random, with a device that it names."""

import math

import torch


class GaussianSampler:
    def __init__(self, length, sigma, scale, window):
        self.length, self.sigma, self.scale, self.window = length, sigma, scale, window

    def sample(self, positions):
        x = torch.linspace(0, self.sigma, self.window, device="cuda")
        kept = torch.zeros(self.length, device="cuda")
        kept[: self.window] = self.scale / math.sqrt(2 * math.pi) * torch.exp(-(x**2) / 2)
        return positions[torch.rand(len(positions), device=positions.device) < kept[: len(positions)]]
