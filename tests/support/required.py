"""What a machine must have: with SELFSPAN_REQUIRE=browser,firefox,compiler,model skips for want of it are failures."""

import os

NEEDS = {
    "browser": "needs a browser",
    "firefox": "needs Firefox",
    "compiler": "needs g++",
    "model": "needs: pip install --no-deps",
}
"""How the reason of a skip begins, by what is missing."""


def failed_if_required(report):
    """The report of a test, a failure if it was skipped for want of something that is required."""
    named = [name for name in os.environ.get("SELFSPAN_REQUIRE", "").split(",") if name]
    if unknown := [name for name in named if name not in NEEDS]:
        raise ValueError(f"SELFSPAN_REQUIRE names {unknown}; it may name {sorted(NEEDS)}")
    if report.skipped and isinstance(report.longrepr, tuple) and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2].removeprefix("Skipped: ")
        if any(reason.startswith(NEEDS[name]) for name in named):
            report.outcome, report.longrepr = "failed", f"{reason} (SELFSPAN_REQUIRE)"
    return report
