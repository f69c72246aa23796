"""The span protocol: intervals, grammar, rendering, tracker. The specification; no torch."""
