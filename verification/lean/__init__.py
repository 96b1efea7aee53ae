"""Lean proofs, what they rest on, and what binds them to the code; see ``README.md`` here."""
