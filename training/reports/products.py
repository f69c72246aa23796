"""Products with weights against cuBLAS as Markdown."""

from training.reports.markdown import read_all, source, table

SHOWN_ROWS = (1, 32, 64, 96, 128)


def products() -> str:
    """Every GPU that the products were measured on."""
    texts = [products_on(results, path) for path, results in read_all("products").items()]
    return "\n".join(texts) or "Products with weights: not measured yet.\n"


def products_on(results: dict, path: str) -> str:
    """One GPU's table: time of each product, and how many times as fast as cuBLAS it is."""
    first = results["weights"][0]["measured"]
    header = [
        "product with a weight, us",
        "time of the bytes",
        *(f"{line['rows']} row{'s' * (line['rows'] > 1)}" for line in first if line["rows"] in SHOWN_ROWS),
    ]
    rows = []
    for weight in results["weights"]:
        shown = [line for line in weight["measured"] if line["rows"] in SHOWN_ROWS]
        cells = (f"{line['us']:.1f} ({min(line['cublas_us'].values()) / line['us']:.2f}x)" for line in shown)
        rows.append([weight["name"], f"{weight['measured'][0]['floor_us']:.1f}", *cells])
    intro = (
        "Each product is launched repeatedly, with other weights each time. “Time of the bytes” is the time that "
        "reading the weights takes at the measured memory bandwidth. In parentheses: speedup over cuBLAS. Inside a "
        "decode step launches overlap, so a product that is slower here can still make the step faster.\n\n"
    )
    return intro + table(header, rows) + source(results, path)
