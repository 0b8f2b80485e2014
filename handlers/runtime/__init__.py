"""The composition of a process: servers, secrets, adapters, worker."""
