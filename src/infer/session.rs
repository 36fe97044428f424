//! What passes between whoever wants text and the executor that makes it.

use super::sampler::Sampling;
use crate::actors::message::Directive;
use crate::actors::script::Script;
use crate::graph::planner::Pass;
use serde::Serialize;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// A text to be continued.
#[derive(Debug, Clone)]
pub struct Job {
    /// The caller's name for it, given back in [`Said`].
    pub id: u64,
    /// At least one token.
    pub prompt: Vec<u32>,
    pub sampling: Sampling,
    /// Tokens that follow the prompt whatever the logits say; sampling begins after them.
    pub given: Vec<u32>,
    /// Tokens to make at most, given ones among them; 0 only reads the prompt.
    pub most: usize,
    /// Tokens that end the text; they are told, and nothing after them.
    pub ends: Vec<u32>,
    /// Set by anyone: the text ends before its next token.
    pub stop: Arc<AtomicBool>,
    /// Whether the logits of every position are told.
    pub logits: bool,
}

/// Why a text ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Reason {
    /// One of its end tokens came.
    End,
    /// As many tokens as were asked for.
    Length,
    /// The context is full.
    Context,
    /// Somebody asked it to.
    Stopped,
}

/// What the executor tells.
#[derive(Debug, Clone, PartialEq)]
pub enum Said {
    Token {
        id: u64,
        token: u32,
    },
    /// Logits `[V]` of `position` of the text.
    Logits {
        id: u64,
        position: usize,
        logits: Vec<f32>,
    },
    /// The text ended; `reused` tokens of its prompt were in a cache already.
    Ended {
        id: u64,
        reason: Reason,
        reused: usize,
    },
}

/// Jobs on their way to the executor.
#[derive(Debug, Default)]
pub struct Inbox {
    waiting: Mutex<VecDeque<Job>>,
    /// Jobs that were put in and have not ended.
    open: AtomicUsize,
}

impl Inbox {
    pub fn put(&self, job: Job) {
        self.open.fetch_add(1, Ordering::SeqCst);
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).push_back(job);
    }

    pub(super) fn take(&self) -> Option<Job> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }

    pub(super) fn ended(&self) {
        self.open.fetch_sub(1, Ordering::SeqCst);
    }

    pub fn open(&self) -> usize {
        self.open.load(Ordering::SeqCst)
    }
}

/// One pass after another while any job is open.
#[derive(Debug)]
pub struct WhileOpen {
    inbox: Arc<Inbox>,
    step: u64,
}

impl WhileOpen {
    pub fn new(inbox: Arc<Inbox>) -> Self {
        Self { inbox, step: 0 }
    }
}

impl Script for WhileOpen {
    fn next(&mut self) -> Option<Directive> {
        if self.inbox.open() == 0 {
            return None;
        }
        self.step += 1;
        Some(Directive::Pass { step: self.step, pass: Pass::Forward(0) })
    }
}
