"""A language model on a CPU beside llama.cpp, as Markdown."""

from training.reports.markdown import read, source, table

PATH = "assets/results/cpu_llamacpp.json"
MISSING = "A language model beside llama.cpp on a CPU: not measured yet.\n"
LLAMACPP = "llama.cpp"
HEADER = ["system", "context, tokens", "prompt, tokens/s", "then, tokens/s", "× llama.cpp", "floor, tokens/s", "alike"]
SYSTEM_HEADER = ["system", "numbers", "bytes a token, MB", "peak memory, MB", "load, s", "from the process's start, s"]


def llamacpp() -> str:
    """Rates by context, then what each system holds, and how long it loads."""
    results = read(PATH)
    if results is None:
        return MISSING
    rates = [_rates(name, row) for name, one in results["systems"].items() for row in one["contexts"]]
    systems = [_system(name, one) for name, one in results["systems"].items()]
    return f"{_what(results)}\n\n" + table(HEADER, rates) + "\n" + table(SYSTEM_HEADER, systems) + source(results, PATH)


def _what(results: dict) -> str:
    theirs = results["systems"][LLAMACPP]
    version = results["versions"].get("xllamacpp")
    # "CPU : SSE3 = 1 | AVX2 = 1 |"
    flags = [part.rpartition(":")[2].split("=") for part in theirs["instructions"].split("|") if "=" in part]
    instructions = ", ".join(name.strip() for name, is_used in flags if is_used.strip() == "1")
    return (
        f"`{results['file']}` with {results['threads']} threads, one prompt at a time; plain dense attention, no "
        f"drafts. llama.cpp is xllamacpp {version}, whose build uses {instructions}; a build for this "
        "very CPU may be faster. The floor is that of weights and of keys and values over the bandwidth of memory, "
        f"{results['read_bandwidth_gb_per_s']:.1f} GB/s in the same run. Alike: greedy tokens before the first that "
        f"differs. Load average at the start {results['load_average_at_start']:.1f}."
    )


def _rates(name: str, row: dict) -> list[str]:
    return [
        name,
        f"{row['context']:,}",
        f"{row['prompt_tokens_per_s']:,.0f}",
        f"{row['tokens_per_s']:.1f}",
        f"{row['tokens_over_llamacpp']:.2f}x",
        f"{1000 / row['floor_ms']:.0f}",
        f"{row['tokens_alike']} of {row['tokens_written']}",
    ]


def _system(name: str, one: dict) -> list[str]:
    return [
        name,
        one.get("numbers", "as in the file"),
        f"{one['weight_bytes_per_token'] / 1e6:.0f}",
        f"{one['peak_mb']:,.0f}",
        f"{one['loading']['load_s']:.2f}",
        f"{one['loading']['start_s']:.2f}",
    ]
