"""Held-out figures of the base model as Markdown."""

from training.reports.markdown import read, source, table

PATH = "assets/base/pretraining.json"
LABELS = {
    "loss/": "loss (nats per token), {}",
    "exact_copy/": "exact copies, task “{}”",
    "exact_arithmetic/": "worked arithmetic reproduced exactly, {} operands",
}


def base() -> str:
    """Size, tokens, and every held-out figure."""
    results = read(PATH)
    if results is None:
        return "The base model: not trained yet.\n"
    rows = []
    for key, value in results["heldout"].items():
        prefix = next((prefix for prefix in LABELS if key.startswith(prefix)), None)
        label = LABELS[prefix].format(key.removeprefix(prefix)) if prefix else "exact copies, all tasks"
        rows.append([label, f"{value:.3f}" if key.startswith("loss/") else f"{100 * value:.1f} %"])
    size = f"{results['parameters'] / 1e6:.1f} M parameters, trained on {results['tokens'] / 1e6:,.0f} M tokens"
    intro = f"The base model: {size}. Figures on held-out text:\n\n"
    return intro + table(["figure", "value"], rows) + source(results, PATH)
