"""The personal data of chats: the content of an export, and the steps of a purge."""
