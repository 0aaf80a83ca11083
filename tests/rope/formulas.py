"""The papers' formulas and those of their authors' code, written out once more: frequencies, factor of cos and sin.

Each takes what a paper speaks of, not what a configuration holds: θ, d, the original context L, the new context C, the
length n of the sequence.
"""

import math

Rope = tuple[list[float], float]


def plain(theta: float, d: int) -> list[float]:
    return [theta ** (-2 * pair / d) for pair in range(d // 2)]


def linear(theta: float, d: int, *, original: int, new: int) -> Rope:
    return [omega * original / new for omega in plain(theta, d)], 1.0


def ntk_aware(theta: float, d: int, *, original: int, new: int) -> Rope:
    return plain(theta * (new / original) ** (d / (d - 2)), d), 1.0


def dynamic(theta: float, d: int, *, original: int, new: int, length: int) -> Rope:
    scale = new / original
    growth = max(1.0, scale * length / original - (scale - 1))
    return plain(theta * growth ** (d / (d - 2)), d), 1.0


def yarn(theta: float, d: int, *, original: int, new: int, fast: float = 32.0, slow: float = 1.0) -> Rope:
    """The ramp over whole pairs of the authors' code; outside of it the paper's condition on the turns is checked."""
    scale = new / original

    def pair_that_turns(times: float) -> float:
        # L / λ = times, solved for the pair: λ = 2π θ^(2i/d)
        return d * math.log(original / (2 * math.pi * times), theta) / 2

    low, high = max(math.floor(pair_that_turns(fast)), 0), min(math.ceil(pair_that_turns(slow)), d - 1)
    frequencies = []
    for pair, omega in enumerate(plain(theta, d)):
        gamma = 1 - min(max((pair - low) / (high - low), 0), 1)
        frequencies.append((1 - gamma) * omega / scale + gamma * omega)
        turns = original * omega / (2 * math.pi)
        if gamma == 1:
            assert turns > fast or pair == low
        if turns < slow:
            assert gamma == 0 or pair < high
    return frequencies, 0.1 * math.log(scale) + 1


def llama3(theta: float, d: int, *, original: int, new: int, low: float = 1.0, high: float = 4.0) -> Rope:
    scale = new / original
    frequencies = []
    for omega in plain(theta, d):
        wavelength = 2 * math.pi / omega
        if wavelength < original / high:
            frequencies.append(omega)
        elif wavelength > original / low:
            frequencies.append(omega / scale)
        else:
            smooth = (original / wavelength - low) / (high - low)
            frequencies.append((1 - smooth) * omega / scale + smooth * omega)
    return frequencies, 1.0


def longrope(
    theta: float, d: int, *, original: int, new: int, length: int, short: list[float], long: list[float]
) -> Rope:
    factors = long if length > original else short
    scaled = [omega / factor for omega, factor in zip(plain(theta, d), factors, strict=True)]
    return scaled, math.sqrt(1 + math.log(new / original) / math.log(original))
