"""Commands that measure, and write what they measured into docs/."""
