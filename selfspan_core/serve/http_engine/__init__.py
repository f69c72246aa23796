"""A vLLM server with the project's plugin as the engine of app and command line: see docs/serving.md."""
