"""Mail: messages made from templates, and SMTP."""
