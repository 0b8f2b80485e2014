"""Keep read models current: run, rebuild, verify."""
