"""What flows between the rooms: documents, conversations, questions, answers, their files, and chat templates."""
