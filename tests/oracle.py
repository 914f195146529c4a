"""The objective once more, in plain numpy and loops over completions and tokens, to compare with.

Nothing here is shared with the package. Log-probabilities may be complex: `gradient` takes the
derivative of a loss by the complex step, exact to rounding; what must carry no gradient is `.real`.
"""

import numpy as np

STEP = 1e-200


def gradient(loss, logps):
    """d loss / d logps, for logps a list of float arrays."""
    found = []
    for i, row in enumerate(logps):
        slopes = np.zeros(len(row))
        for t in range(len(row)):
            moved = [x.astype(complex) for x in logps]
            moved[i][t] += 1j * STEP
            slopes[t] = np.imag(loss(moved)) / STEP
        found.append(slopes)
    return found


def advantages(rewards, kind, ddof=1, epsilon=0.0, lengths=None):
    """Of one group, relative to it."""
    r = np.asarray(rewards, float)
    n = len(r)
    if kind == "rloo":
        return np.array([r[i] - sum(r[j] for j in range(n) if j != i) / (n - 1) for i in range(n)])
    if kind == "opo":
        baseline = sum(length * x for length, x in zip(lengths, r)) / sum(lengths)
        return r - baseline
    centred = r - sum(r) / n
    if kind == "mean":
        return centred
    return centred / (np.sqrt(sum(centred**2) / (n - ddof)) + epsilon)


def whiten(values, epsilon=1e-8):
    """A flat array with mean 0 and variance 1."""
    centred = values - values.sum() / len(values)
    return centred / np.sqrt((centred**2).sum() / (len(values) - 1) + epsilon)


def process(step_rewards, step_ends, ddof):
    """Advantages by token of completions whose steps end at the tokens counted from 1."""
    together = np.concatenate(step_rewards)
    mean, deviation = together.mean(), together.std(ddof=ddof)
    found = []
    for rewards, ends in zip(step_rewards, step_ends):
        normalised = (np.asarray(rewards) - mean) / deviation
        tokens = range(1, max(ends) + 1)
        found.append([sum(x for x, end in zip(normalised, ends) if end >= t) for t in tokens])
    return found


def token_objective(
    new,
    old,
    advantage,
    *,
    ratio="token",
    surrogate="clip",
    low=0.2,
    high=0.2,
    dual=0.0,
    taus=(1.0, 1.05),
):
    """What is maximised, of every token of one completion. `advantage` is a number."""
    count = len(new)
    logs = new - old
    if ratio == "geometric":
        total = 0.0
        for x in logs:
            if advantage > 0:
                total = total + (x if x.real <= high else high)
            else:
                total = total + (x if x.real >= -low else -low)
        return np.array([np.exp(total / count) * advantage] * count)
    if ratio == "sequence":
        logs = np.array([logs.sum() / count] * count)
    if ratio == "sequence_token":
        logs = logs.real.sum() / count + new - new.real
    found = []
    for x, logp in zip(logs, new):
        rho = np.exp(x)
        inside = min(max(rho.real, 1 - low), 1 + high)
        if surrogate == "clip":
            free, bound = rho * advantage, inside * advantage
            value = free if free.real <= bound else bound
            if dual and advantage < 0 and value.real < dual * advantage:
                value = dual * advantage
        elif surrogate == "cispo":
            value = inside * advantage * logp
        elif surrogate == "sapo":
            tau = taus[0] if advantage > 0 else taus[1]
            value = 4 / tau / (1 + np.exp(-tau * (rho - 1))) * advantage
        else:
            value = advantage * logp
        found.append(value)
    return np.array(found)


def token_kl(new, old, ref, kind):
    """What the KL adds to the loss of every token of one completion, for β = 1."""
    if kind == "k2":
        return 0.5 * (ref - new) ** 2
    k3 = np.exp(ref - new) - (ref - new) - 1
    return np.exp(new - old) * k3 if kind == "k3_weighted" else k3


def reduce(rows, reduction, completion_length=4):
    """One number from the token losses of the completions of one prompt."""
    count = len(rows)
    if reduction == "sequence_mean":
        return sum(row.sum() / len(row) for row in rows) / count
    if reduction in ("token_mean", "prompt_mean"):  # of one prompt, they are the same
        return sum(row.sum() for row in rows) / sum(len(row) for row in rows)
    total = sum(row.sum() for row in rows) / count
    return total / completion_length if reduction == "constant" else total


def loss(new, old, ref, advantages, *, beta=0.0, kl="k3", reduction="sequence_mean", **options):
    """The loss of one group, given as a list of arrays."""
    rows = []
    for i, row in enumerate(new):
        values = -token_objective(row, old[i], advantages[i], **options)
        rows.append(values + beta * token_kl(row, old[i], ref[i], kl))
    return reduce(rows, reduction)
