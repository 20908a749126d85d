"""The model: every component of DeepSeek-V3, from its configuration to the whole, one idea per file."""
