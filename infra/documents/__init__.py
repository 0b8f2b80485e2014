"""Invoices and credit notes as PDF, and the deletion of old ones."""
