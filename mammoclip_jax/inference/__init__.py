"""Models for use, what they are asked (prompts), and what they say of an exam; `loading.load` opens one."""
