"""The pages that users read are true: their commands run, their links lead somewhere, their lists are complete."""
