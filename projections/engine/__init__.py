"""The engine of all read models: fold, batches, parked events, pages."""
