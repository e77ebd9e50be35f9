"""Dynamic sparse training: exact, resumable, comparable."""
