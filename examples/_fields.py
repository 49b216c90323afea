"""Data for the examples on fields: solvers of three equations, and random fields.

Each maps one random field, an initial value or a coefficient, to another. The equations
in time are solved by a pseudo-spectral method: fourth order Runge-Kutta with an
integrating factor for the viscous term, products freed of aliases by the rule of two
thirds. Tests compare with known solutions.
"""

from __future__ import annotations

import numpy as np
from scipy.sparse import diags_array
from scipy.sparse.linalg import spsolve


def random_fields(shape, *, scale, decay, inverse_length, random):
    """Draw periodic Gaussian fields on the unit interval or square.

    Parameters
    ----------
    shape : tuple
        (n_samples, n) or (n_samples, n, n).
    scale, decay, inverse_length : float
        The covariance is ``scale**2 (-Laplacian + inverse_length**2)**-decay``.
    random : numpy.random.Generator

    Returns
    -------
    fields : array of that shape
    """
    axes = tuple(range(1, len(shape)))
    n_points = np.prod(shape[1:])
    waves = squared_waves(shape[1:])
    root = scale * (waves + inverse_length**2) ** (-decay / 2)
    noise = np.fft.fftn(random.standard_normal(shape), axes=axes)
    return np.fft.ifftn(np.sqrt(n_points) * root * noise, axes=axes).real


def wave_numbers(n):
    """Angular wave numbers of n points on the unit interval."""
    return 2 * np.pi * np.fft.fftfreq(n, 1 / n)


def squared_waves(grid):
    """Squares of the wave vectors of a grid, minus the Laplacian's symbol."""
    parts = np.meshgrid(*[wave_numbers(n) for n in grid], indexing="ij")
    return sum(part**2 for part in parts)


def evolve(spectrum, decay, advection, time, n_steps):
    """Solve ``dv/dt = -decay v + advection(v)`` for spectra v.

    Parameters
    ----------
    spectrum : complex array
        At time zero.
    decay : array
        Broadcasts with the spectrum; it is integrated exactly.
    advection : callable
    time : float
    n_steps : int

    Returns
    -------
    spectrum : complex array
        At the end.
    """
    step = time / n_steps
    half = np.exp(-decay * step / 2)
    for _ in range(n_steps):
        first = step * advection(spectrum)
        second = step * advection(half * (spectrum + first / 2))
        third = step * advection(half * spectrum + second / 2)
        fourth = step * advection(half * (half * spectrum + third))
        spectrum = half * (half * (spectrum + first / 6) + (second + third) / 3)
        spectrum = spectrum + fourth / 6
    return spectrum


def solve_burgers(initial, *, viscosity=0.01, time=1.0, n_steps=None):
    """Solve ``u_t + (u^2 / 2)_x = viscosity u_xx`` on the periodic unit interval.

    Parameters
    ----------
    initial : array of shape (n_samples, n)
    viscosity, time : float
    n_steps : int, default=None
        None is as many as keep the method stable.

    Returns
    -------
    final : array of shape (n_samples, n)
    """
    n = initial.shape[1]
    waves = 2 * np.pi * np.arange(n // 2 + 1)
    kept = np.arange(n // 2 + 1) <= n // 3
    if n_steps is None:
        fastest = np.abs(initial).max() * waves[kept].max()
        n_steps = int(np.ceil(time * fastest / 1.5))

    def advection(spectrum):
        values = np.fft.irfft(spectrum, n)
        return -0.5j * waves * kept * np.fft.rfft(values**2)

    start = kept * np.fft.rfft(initial)
    return np.fft.irfft(
        evolve(start, viscosity * waves**2, advection, time, n_steps), n
    )


def make_burgers(n_samples, grid=128, *, fine=256, viscosity=0.01, seed=0):
    """Draw initial values and solve for those at time one.

    Parameters
    ----------
    n_samples, grid : int
    fine : int, default=256
        Points that are computed with, a multiple of the grid's.
    viscosity : float, default=0.01
    seed : int, default=0

    Returns
    -------
    initial, final : array of shape (n_samples, grid)
    """
    initial = random_fields(
        (n_samples, fine),
        scale=25.0,
        decay=2.0,
        inverse_length=5.0,
        random=np.random.default_rng(seed),
    )
    # Of mean zero, as is usual: a mean would only move the field along.
    initial -= initial.mean(1, keepdims=True)
    every = fine // grid
    # In parts, which the cache holds.
    parts = np.split(initial, range(50, n_samples, 50))
    final = np.concatenate([solve_burgers(p, viscosity=viscosity) for p in parts])
    return initial[:, ::every], final[:, ::every]


def solve_darcy(coefficient, force=None):
    """Solve ``-div(a grad u) = f`` on the unit square, u zero on its edge.

    Cells are finite volumes; what flows between two sees the harmonic mean of both.

    Parameters
    ----------
    coefficient : array of shape (n, n)
        In the cells' centres.
    force : array of shape (n, n), default=None
        None is one.

    Returns
    -------
    solution : array of shape (n, n)
        In the cells' centres.
    """
    n = len(coefficient)
    force = np.ones((n, n)) if force is None else force
    resistance = 0.5 / coefficient  # of half a cell
    diagonal = np.zeros((n, n))
    off = []
    for axis in (0, 1):
        part = np.moveaxis(resistance, axis, 0)
        flow = 1 / (part[1:] + part[:-1])
        total = np.zeros((n, n))
        total[1:] += flow
        total[:-1] += flow
        total[0] += 1 / part[0]
        total[-1] += 1 / part[-1]
        diagonal += np.moveaxis(total, 0, axis)
        padded = np.zeros((n, n))
        padded[:-1] = flow
        off.append(-np.moveaxis(padded, 0, axis).ravel())
    below, right = off[0][: n * n - n], off[1][:-1]
    matrix = diags_array(
        [diagonal.ravel(), below, below, right, right],
        offsets=[0, n, -n, 1, -1],
        format="csc",
    )
    return spsolve(matrix, force.ravel() / n**2).reshape(n, n)


def make_darcy(n_samples, grid=32, *, fine=64, seed=0):
    """Draw media of two permeabilities and solve for the pressure.

    Parameters
    ----------
    n_samples, grid : int
    fine : int, default=64
        Cells along a side that are computed with, a multiple of the grid's.
    seed : int, default=0

    Returns
    -------
    coefficient, pressure : array of shape (n_samples, grid, grid)
        The coefficient is 12 where a Gaussian field is positive, and 3 elsewhere; both
        are means over blocks of cells.
    """
    fields = random_fields(
        (n_samples, 2 * fine, 2 * fine),
        scale=1.0,
        decay=2.0,
        inverse_length=3.0,
        random=np.random.default_rng(seed),
    )[:, :fine, :fine]  # a quarter, which isn't periodic
    coefficient = np.where(fields > 0, 12.0, 3.0)
    pressure = np.stack([solve_darcy(one) for one in coefficient])
    return block_means(coefficient, grid), block_means(pressure, grid)


def block_means(fields, grid):
    """Means over square blocks, so that (grid, grid) of them are left."""
    n_samples, fine, _ = fields.shape
    every = fine // grid
    blocks = fields.reshape(n_samples, grid, every, grid, every)
    return blocks.mean((2, 4))


def solve_vorticity(initial, *, viscosity=1e-3, time=5.0, n_steps=None, force=None):
    """Solve the Navier-Stokes equations on the periodic unit square.

    ``w_t + u . grad w = viscosity Laplacian w + f``, where the velocity u is the curl
    of the stream function that has minus the vorticity w as its Laplacian.

    Parameters
    ----------
    initial : array of shape (n_samples, n, n)
    viscosity, time : float
    n_steps : int, default=None
        None is as many as keep the method stable for speeds of up to two.
    force : array of shape (n, n), default=None

    Returns
    -------
    final : array of shape (n_samples, n, n)
    """
    n = initial.shape[1]
    along = wave_numbers(n)[:, None]
    across = 2 * np.pi * np.arange(n // 2 + 1)
    square = along**2 + across**2
    inverse = 1 / np.where(square > 0, square, np.inf)
    limit = 2 * np.pi * (n // 3)
    kept = (np.abs(along) <= limit) & (across <= limit)
    source = 0.0 if force is None else kept * np.fft.rfft2(force)
    if n_steps is None:
        n_steps = int(np.ceil(time * 2 * limit / 1.5))

    def advection(spectrum):
        stream = spectrum * inverse
        parts = [
            np.fft.irfft2(part, s=(n, n))
            for part in (
                1j * across * stream,
                -1j * along * stream,
                1j * along * spectrum,
                1j * across * spectrum,
            )
        ]
        transport = parts[0] * parts[2] + parts[1] * parts[3]
        return source - kept * np.fft.rfft2(transport)

    start = kept * np.fft.rfft2(initial)
    end = evolve(start, viscosity * square, advection, time, n_steps)
    return np.fft.irfft2(end, s=(n, n))


def make_vorticity(n_samples, grid=32, *, fine=64, viscosity=1e-3, time=5.0, seed=0):
    """Draw vorticities and solve for those after some time under a steady force.

    Parameters
    ----------
    n_samples, grid : int
    fine : int, default=64
        Points along a side that are computed with, a multiple of the grid's.
    viscosity, time : float
    seed : int, default=0

    Returns
    -------
    initial, final : array of shape (n_samples, grid, grid)
    """
    initial = random_fields(
        (n_samples, fine, fine),
        scale=7**1.5,
        decay=2.5,
        inverse_length=7.0,
        random=np.random.default_rng(seed),
    )
    points = np.arange(fine) / fine
    phase = 2 * np.pi * (points[:, None] + points)
    force = 0.1 * (np.sin(phase) + np.cos(phase))
    parts = np.split(initial, range(20, n_samples, 20))
    settings = {"viscosity": viscosity, "time": time, "force": force}
    final = np.concatenate([solve_vorticity(part, **settings) for part in parts])
    every = fine // grid
    return initial[:, ::every, ::every], final[:, ::every, ::every]


def relative_error(predicted, true):
    """Mean over the samples of the relative L2 error."""
    gap = (predicted - true).reshape(len(true), -1)
    norms = np.linalg.norm(true.reshape(len(true), -1), axis=1)
    return float(np.mean(np.linalg.norm(gap, axis=1) / norms))
