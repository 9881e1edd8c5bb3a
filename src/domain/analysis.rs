//! What is asked of a session, and which answer is valid.
