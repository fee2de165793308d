"""The personal data of chats: what an export contains, and how the purge of an account removes it."""
