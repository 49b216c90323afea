"""Tables and the picture of the cost of a step."""

from _step_shares import PARTS


def as_text(results):
    """Return the ratios, and the parts in percent, as tables of text."""
    size = ["Batch", "Features", "Outputs"]
    ratios = [name for name in results if name not in (*size, *PARTS)]
    text = results.astype(dict.fromkeys(size, int)).astype(object)
    for name in ratios:
        digits = 0 if name.endswith("us") else 2
        text[name] = [f"{value:.{digits}f}" for value in results[name]]
    for name in PARTS:
        text[name] = [f"{value:.0f}" for value in results[name]]
    return {
        "Steps relative to AdamW's, measured and counted": text[[*size, *ratios]],
        "Where the time of a CFLL step goes, in percent": text[[*size, *PARTS]],
    }


def draw(results, path):
    """Draw the measured ratio over the counted one."""
    import matplotlib.pyplot as plt

    figure, ax = plt.subplots(figsize=(5.5, 4.5), layout="constrained")
    for n_outputs, rows in results.groupby("Outputs"):
        for batch, part in rows.groupby("Batch"):
            label = f"batch {batch}, outputs {n_outputs}"
            marker = "o-" if n_outputs == results["Outputs"].min() else "s--"
            ax.semilogx(part["Features"], part["Over count"], marker, label=label, ms=4)
    ax.axhline(1, color="0.7", lw=1)
    ax.axhline(1.1, color="0.7", lw=1, ls=":")
    ax.set(xlabel="features", ylabel="CFLL / AdamW, measured over counted")
    ax.legend(fontsize=7)
    figure.savefig(path, dpi=80)
