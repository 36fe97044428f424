//! Train: chat.
