"""The kernels that stand for published rows compute what their publishers' kernels compute."""

import math

import ml_dtypes
import numpy as np
import pytest

from benchmarks.published import (
    autotune_matmul,
    chau_attention,
    chau_mlp,
    conv1d,
    kda,
    mamba,
    matmul,
    nkibench,
    sd_attention,
)


def random(*shape):
    """fp32 in [-0.5, 0.5), the same every time."""
    generator = np.random.default_rng(sum(shape))
    return generator.random(shape, dtype=np.float32) - np.float32(0.5)


def gelu(x):
    erf = np.vectorize(math.erf)
    return x * (1 + erf(x / np.sqrt(2))) / 2


def close(result, reference, tolerance=1e-5):
    """Whether the largest error is within `tolerance` of the largest value."""
    error = np.abs(np.asarray(result, np.float32) - reference).max()
    return error <= tolerance * np.abs(reference).max()


@pytest.mark.parametrize(
    ("kernel", "parameters"),
    [
        (matmul.tiled, {}),
        (matmul.tiled, {"merged": True}),
        (matmul.blocked, {}),
        (matmul.blocked, {"m_tiles": 2, "n_tiles": 2}),
        (matmul.blocked_k, {"m_tiles": 2, "n_tiles": 2, "k_tiles": 2}),
        (matmul.tile_groups, {}),
        (matmul.tile_groups, {"m_tiles": 4, "m_load": 2}),
        (matmul.tile_groups, {"m_tiles": 4, "m_load": 4, "n_load": 2}),
    ],
)
def test_tiled_matmuls(kernel, parameters):
    lhs_t, rhs = random(512, 512), random(512, 1024)
    assert close(kernel(lhs_t, rhs, **parameters), lhs_t.T @ rhs)


@pytest.mark.parametrize(
    ("kernel", "parameters"),
    [
        (autotune_matmul.lhs_t_rhs, {}),
        (autotune_matmul.resident, {"versions": 1}),
        (autotune_matmul.resident, {"versions": 2}),
        (autotune_matmul.single_buffer, {}),
    ],
)
def test_bf16_matmuls(kernel, parameters):
    lhs_t, rhs = (random(1024, 512).astype(ml_dtypes.bfloat16) for _ in range(2))
    reference = lhs_t.astype(np.float32).T @ rhs.astype(np.float32)
    assert close(kernel(lhs_t, rhs, **parameters), reference, 0.02)


def test_matmul_with_dma_transposes():
    lhs, rhs = (random(1024, n).astype(ml_dtypes.bfloat16) for n in (1024, 512))
    reference = lhs.astype(np.float32) @ rhs.astype(np.float32)
    assert close(autotune_matmul.lhs_rhs(lhs, rhs), reference, 0.02)


@pytest.mark.parametrize("seqlen", [512, 1024])
@pytest.mark.parametrize("kernel", [chau_attention.baseline, chau_attention.fused])
def test_attention(kernel, seqlen):
    q, k, v = (4 * random(128, seqlen) for _ in range(3))
    weights = np.exp(q.T @ k - (q.T @ k).max(axis=1, keepdims=True))
    weights /= weights.sum(axis=1, keepdims=True)
    assert close(kernel(q, k, v), weights @ v.T)


@pytest.mark.parametrize("kernel", [chau_mlp.fused_pwl, chau_mlp.fused_taylor])
def test_fused_mlp(kernel):
    lhs_t, rhs, bias = random(256, 128), random(256, 512), random(1, 512)
    assert close(kernel(lhs_t, rhs, bias), gelu(lhs_t.T @ rhs + bias), 5e-3)


def test_mlp_in_two_launches():
    lhs_t, rhs, bias = random(256, 128), random(256, 512), random(1, 512)
    between = chau_mlp.gemm(lhs_t, rhs, bias)
    assert close(between, lhs_t.T @ rhs + bias)
    assert close(chau_mlp.gelu(between), gelu(lhs_t.T @ rhs + bias), 5e-3)


def test_an_operand_that_does_not_fit_is_loaded_again():
    lhs_t, rhs, bias = random(1280, 256), random(1280, 4096), random(1, 4096)
    assert close(chau_mlp.gemm(lhs_t, rhs, bias), lhs_t.T @ rhs + bias)


@pytest.mark.parametrize(
    ("kernel", "parameters"),
    [
        (mamba.states_outside, {}),
        (mamba.channels_outside, {}),
        (mamba.channels_outside, {"load_a_once": True}),
        (mamba.time_tiled, {"width": 256}),
        (mamba.carried, {"width": 256}),
        (mamba.carried, {"chunk_loads": True, "width": 256}),
    ],
)
def test_mamba(kernel, parameters):
    channels, time, states = 256, 512, 3
    delta, u = np.abs(random(channels, time)), random(channels, time)
    a, b, c = -np.abs(random(channels, states)), random(states, time), random(states, time)
    out = np.zeros((channels, time), np.float32)
    for s in range(states):
        h = np.zeros(channels, np.float32)
        for t in range(time):
            h = np.exp(delta[:, t] * a[:, s]) * h + delta[:, t] * u[:, t] * b[s, t]
            out[:, t] += c[s, t] * h
    assert close(kernel(delta, u, a, b, c, **parameters), out)


@pytest.mark.parametrize(
    ("kernel", "parameters"),
    [
        (conv1d.streamed, {}),
        (conv1d.streamed, {"filters_outside": True}),
        (conv1d.psum_blocks, {}),
    ],
)
def test_conv1d(kernel, parameters):
    image, filters = random(2, 128, 512), random(128, 3)
    padded = np.pad(image, ((0, 0), (0, 0), (1, 1)))
    reference = sum(padded[:, :, f : f + 512] * filters[:, f : f + 1] for f in range(3))
    assert close(kernel(image, filters, **parameters), reference)


def test_silu():
    x = 8 * random(128, 2, 1024)
    assert close(nkibench.silu(x), x / (1 + np.exp(-x)))


def test_adamw_with_a_partial_last_tile():
    theta, gradient, first, second = (np.abs(random(200, 1024)) for _ in range(4))
    mean, variance = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
    reference = theta - 1e-5 * theta - 0.01 * mean / (np.sqrt(1000 * variance) + 1e-8)
    assert close(nkibench.adamw(theta, gradient, first, second), reference)


def test_rope():
    x, cos, sin = random(128, 1024), random(64, 1024), random(64, 1024)
    even, odd = x[:64], x[64:]
    reference = np.concatenate([even * cos - odd * sin, odd * cos + even * sin])
    assert close(nkibench.rope(x, cos, sin), reference)


def test_transpose_matmul_with_a_narrow_last_tile():
    lhs_t, rhs = random(128, 2, 1024), random(128, 2, 1300)
    assert close(nkibench.transpose_matmul(lhs_t, rhs), np.einsum("pkm,pkn->mn", lhs_t, rhs))


def test_nkibench_matmul():
    lhs, rhs = random(256, 1024), random(1024, 1024)
    assert close(nkibench.matmul(lhs, rhs), lhs @ rhs)


def normalised(x, eps=0.0):
    return x / np.sqrt((x * x).mean(axis=1, keepdims=True) + eps)


def test_rmsnorm_matmul():
    x, w = random(1024, 1024), random(1024, 1024)
    assert close(nkibench.rmsnorm_matmul(x, w), normalised(x) @ w)


def test_add_rmsnorm_matmul():
    x, z, w, g = random(256, 512), random(256, 512), random(512, 1024), random(1, 512)
    reference = (normalised(x + z, 1e-6) * g) @ w
    assert close(nkibench.add_rmsnorm_matmul(x, w, z, g), reference)


def test_matmul_add_rmsnorm():
    x, w, z, g = random(256, 512), random(512, 1024), random(256, 1024), random(1, 1024)
    reference = normalised(x @ w + z, 1e-6) * g
    assert close(nkibench.matmul_add_rmsnorm(x, w, z, g), reference)


@pytest.mark.parametrize(
    "parameters", [{}, {"slices": 2}, {"parts": 4}, {"slices": 2, "in_place": True}]
)
def test_fused_silu(parameters):
    x = 8 * random(128, 3, 512)
    assert close(kda.silu(x, **parameters), x / (1 + np.exp(-x)))


def test_fused_adamw():
    theta, gradient, first, second = (np.abs(random(256, 512)) for _ in range(4))
    root = np.sqrt(999 * second + gradient**2)
    reference = 0.99999 * theta - 0.001 * (9 * first + gradient) / root
    result = kda.adamw(theta, gradient, first, second, columns=256)
    assert close(np.asarray(result).reshape(256, 512), reference)


def test_rope_by_halves():
    x, cos, sin = random(128, 1024), random(64, 1024), random(64, 1024)
    reference = np.concatenate([x[:64] * cos - x[64:] * sin, x[64:] * cos + x[:64] * sin])
    assert close(kda.rope(x, cos, sin, width=512), reference)


@pytest.mark.parametrize("step", range(7))
def test_small_head_attention(step):
    q, k, v = (4 * random(256, 64) for _ in range(3))
    scores = q @ k.T / 8
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    weights /= weights.sum(axis=1, keepdims=True)
    assert close(sd_attention.attention(q, k, v, step=step), weights @ v, 0.02)
