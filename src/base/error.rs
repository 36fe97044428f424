//! The one error type: a kind, a message, context pairs and a source.
//!
//! Messages are lower case, name the thing, and say the remedy. The kind decides the exit
//! status of the program: 2 for what the user asked wrongly, 1 for what went wrong while
//! running.

use std::fmt;

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What sort of failure it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The configuration or the command line is wrong; nothing was started.
    Config,
    /// An input file (data, tokenizer, checkpoint) is missing, malformed or does not fit.
    Input,
    /// A budget (memory, disk) cannot work; the message holds the figure that would.
    Budget,
    /// Reading or writing failed.
    Io,
    /// Stored bytes are not what was written: a checksum, an index entry or a length.
    Corrupt,
    /// Somebody else holds what was asked for.
    Busy,
    /// libtorch reported an error.
    Torch,
    /// Another rank failed or went away.
    Peer,
    /// Results differ from those they were compared with.
    Mismatch,
    /// A loss or gradient is not finite.
    NonFinite,
    /// The run was asked to stop.
    Interrupted,
    /// A law of the program was broken: a bug.
    Bug,
}

/// An error with its context. Built with [`Error::new`] and [`Error::with`].
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    message: String,
    context: Vec<(&'static str, String)>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), context: Vec::new(), source: None }
    }

    pub fn config(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Config, message)
    }

    pub fn input(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Input, message)
    }

    pub fn corrupt(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Corrupt, message)
    }

    pub fn bug(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Bug, message)
    }

    /// An I/O error: `doing` says what was attempted, with the path in it. The remedy for a full
    /// disk is added.
    pub fn io(doing: impl Into<String>, source: std::io::Error) -> Self {
        use std::io::ErrorKind::{QuotaExceeded, StorageFull};
        let mut message = doing.into();
        if matches!(source.kind(), StorageFull | QuotaExceeded) {
            message.push_str(": the disk is full; make room on it and go on with --resume");
        }
        Self::new(ErrorKind::Io, message).from_source(source)
    }

    /// Adds a context pair, printed as `key=value` after the message.
    #[must_use]
    pub fn with(mut self, key: &'static str, value: impl fmt::Display) -> Self {
        self.context.push((key, value.to_string()));
        self
    }

    /// Sets the error that caused this one.
    #[must_use]
    pub fn from_source(
        mut self,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        self.source = Some(source.into());
        self
    }

    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    pub fn message(&self) -> &str {
        &self.message
    }

    /// Exit status of the program: 2 for wrong requests, 1 for failures while running.
    pub fn exit_status(&self) -> i32 {
        match self.kind {
            ErrorKind::Config | ErrorKind::Input | ErrorKind::Budget => 2,
            _ => 1,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if !self.context.is_empty() {
            f.write_str(" (")?;
            for (i, (key, value)) in self.context.iter().enumerate() {
                let comma = if i == 0 { "" } else { ", " };
                write!(f, "{comma}{key}={value}")?;
            }
            f.write_str(")")?;
        }
        if let Some(source) = &self.source {
            write!(f, ": {source}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|s| s as _)
    }
}

impl From<tch::TchError> for Error {
    fn from(e: tch::TchError) -> Self {
        let text = e.to_string();
        // libtorch appends a C++ backtrace; the first line is the message.
        let first = text.lines().next().unwrap_or_default().to_owned();
        Self::new(ErrorKind::Torch, first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn display_has_message_context_and_source() {
        let e = Error::io("reading block", std::io::Error::other("boom"))
            .with("layer", 3)
            .with("expert", 7);
        assert_eq!(e.to_string(), "reading block (layer=3, expert=7): boom");
        assert_eq!(e.exit_status(), 1);
        let full = Error::io("writing a", std::io::Error::from_raw_os_error(28)).to_string();
        assert!(full.starts_with("writing a: the disk is full; make room on it"), "{full}");
        assert_eq!(Error::config("x").exit_status(), 2);
    }
}
